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
from vigil.cli.terminal import LogFormatter

if TYPE_CHECKING:
    from vigil.worker import Handler

app = typer.Typer(help="Run jobs of a queue (docs/workers.md).", no_args_is_help=True)


@app.callback()
def worker() -> None:
    """Run jobs of a queue."""


@app.command()
def run(
    task: Annotated[
        str, typer.Argument(metavar="MODULE:FUNCTION", help="The function to run on each job.", show_default=False)
    ],
    queue: Annotated[str, typer.Option(help="The queue to claim jobs from.", show_default=False)],
    concurrency: Annotated[int, typer.Option(min=1, help="The largest number of jobs at once, each in a thread.")] = 1,
    lease: Annotated[
        int,
        typer.Option(
            min=1,
            max=43_200,
            help="The length of a lease in seconds: the time until a crashed worker's job is claimable.",
        ),
    ] = 60,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that running jobs get to end when the worker stops.")
    ] = 30,
    hold: Annotated[int, typer.Option(min=0, max=25, help="Seconds that a claim waits for a job.")] = 20,
    name: Annotated[
        str | None, typer.Option(help="The name of the worker. The default is host:pid.", show_default=False)
    ] = None,
) -> None:
    """Run MODULE:FUNCTION, imported from this directory, on the jobs of a queue, until SIGTERM or Ctrl-C.

    A second signal releases the running jobs at once. Exit code 0 after a signal, 1 if the API refuses the worker, 2 if
    the function cannot be imported.
    """
    from vigil.client import Vigil
    from vigil.worker import Worker

    handler = _load_handler(task)
    log_lines = logging.StreamHandler(sys.stderr)
    log_lines.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[log_lines])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with exit_on_refusal(), Vigil() as client:
        queue_worker = Worker(
            client, queue, handler, concurrency=concurrency, lease=lease, grace=grace, hold=hold, name=name
        )
        queue_worker.run()


def _load_handler(task: str) -> Handler:
    """Import the function. End the command if it cannot be imported."""
    module_name, _, function_name = task.partition(":")
    if not (module_name and function_name):
        raise fail(f"The function must be named as module:function, not {task}.", 2)
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
