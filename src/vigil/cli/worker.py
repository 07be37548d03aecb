"""`vigil worker`: run a function on the jobs of a queue."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.admin import fail
from vigil.cli.api import exit_on_refusal

if TYPE_CHECKING:
    from vigil.worker import Handler

app = typer.Typer(help="Run jobs of a queue (docs/workers.md).", no_args_is_help=True)


@app.callback()
def worker() -> None:
    """Run jobs of a queue."""


@app.command()
def run(
    task: Annotated[
        str, typer.Argument(metavar="MODULE:FUNCTION", help="What to run on each job.", show_default=False)
    ],
    queue: Annotated[str, typer.Option(help="Whose jobs to run.", show_default=False)],
    concurrency: Annotated[int, typer.Option(min=1, help="How many at once, each in a thread.")] = 1,
    lease: Annotated[
        int, typer.Option(min=1, max=43_200, help="Seconds until others get a job of a dead worker.")
    ] = 60,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that running jobs get to end when it is to stop.")] = 30,
    hold: Annotated[int, typer.Option(min=0, max=25, help="Seconds that a claim waits for a job.")] = 20,
    name: Annotated[str | None, typer.Option(help="What to call it, if not host:pid.", show_default=False)] = None,
) -> None:
    """Run MODULE:FUNCTION, found from this directory, on the jobs of a queue, until SIGTERM or Ctrl-C.

    A second signal gives back at once what still runs. Exit code 0 when it was told to stop, 1 when the API refuses it,
    2 when there is no such function.
    """
    from vigil.client import Vigil
    from vigil.worker import Worker

    handler = _load_handler(task)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with exit_on_refusal(), Vigil() as client:
        queue_worker = Worker(
            client, queue, handler, concurrency=concurrency, lease=lease, grace=grace, hold=hold, name=name
        )
        queue_worker.run()


def _load_handler(task: str) -> Handler:
    """The function that is meant. Ends the command when there is none."""
    module_name, _, function_name = task.partition(":")
    if not (module_name and function_name):
        raise fail(f"A function is named module:function, not {task}.", 2)
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise fail(f"{module_name} cannot be imported: {type(error).__name__}: {error}", 2) from error
    candidate = getattr(module, function_name, None)
    if candidate is None:
        raise fail(f"{module_name} has no {function_name}.", 2)
    if not callable(candidate):
        raise fail(f"{function_name} cannot be called.", 2)
    handler: Handler = candidate
    return handler
