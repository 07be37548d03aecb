"""`vigil demo`: start the local cloud, play the story, and check every answer."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from vigil.cli.local import HERE, Directory, Root, exit_on_local_error
from vigil.cli.terminal import Console, escape
from vigil.local import cloud
from vigil.local.errors import LocalError
from vigil.local.stack import Stack
from vigil.local.state_dir import StateDir


@exit_on_local_error
def demo(
    port: Annotated[
        int | None,
        typer.Option(envvar="VIGIL_LOCAL_PORT", help=f"The emulator's port. The default is {cloud.DEFAULT_PORT}."),
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Also save a picture as SVG.", dir_okay=False)] = None,
    root: Root = HERE,
    directory: Directory = None,
) -> None:
    """Start Vigil on this machine and show how clients wait for jobs. Exit code 1 if an answer is wrong."""
    from vigil.demo import examples, screen
    from vigil.demo.facts import run_checks
    from vigil.demo.play import Play, PlayFailed

    console = Console()
    state_dir = StateDir.of(root, directory)
    holder = state_dir.supervisor.holder() or {}
    stack = cloud.up(
        state_dir,
        port=port or int(holder.get("port", cloud.DEFAULT_PORT)),
        parameters={"AllowedPrivateHosts": examples.CHROMA_HOST} if examples.has_chroma(root) else None,
        say=lambda message: console.print(f"[dim]·[/] {escape(message)}"),
    )
    console.print("[dim]·[/] Warming up the functions")
    try:
        with Play(stack.api_url, stack.ws_url, stack.api_key) as play:
            state = snapshot = play.state
            opening = screen.opening(stack.api_url)
            console.print("", opening, "", sep="\n")
            live = Live(screen.Board(state), console=console, refresh_per_second=12)
            with live if console.is_terminal else nullcontext():
                for fact in play:
                    if not console.is_terminal:
                        console.print(screen.plain_line(fact, state), markup=False, highlight=False, soft_wrap=True)
                    if record and (snapshot is state or not snapshot.is_any_over):
                        snapshot = deepcopy(state)
    except PlayFailed as error:
        raise LocalError(f"The demo failed: {error}") from error
    results = run_checks(state)
    outcome = (screen.answers(state), screen.verdict(results))
    next_steps = screen.next_steps(
        _relative_path(Path(sys.argv[0])), _relative_path(state_dir.stack_file), state.job_ids["aspen"]
    )
    console.print("", outcome[0], "", screen.late_answers(state), "", outcome[1], "", sep="\n")
    _show_examples(console, root, state_dir, stack)
    console.print("", next_steps, sep="\n")
    if record:
        screen.save_picture(record, "make demo", opening, screen.Board(snapshot), *outcome)
    if not all(check.passed for check in results):
        raise typer.Exit(1)


def _show_examples(console: Console, root: Path, state_dir: StateDir, stack: Stack) -> None:
    """Run the examples of `examples/`. The ChromaDB example needs the server that `make venv` installs.

    Raises:
        LocalError: An example failed.
    """
    from vigil.client import Vigil, VigilError
    from vigil.demo import examples
    from vigil.demo.play import PlayFailed

    def show(title: str, lines: Iterator[str]) -> None:
        console.print(f"[bold]{title}[/]")
        for line in lines:
            console.print(f"  {escape(line)}", highlight=False)

    colony = state_dir.directory / "colony"
    credentials = (stack.api_url, stack.api_key)
    try:
        with Vigil(*credentials) as client:
            examples.deploy_colony(root, stack, colony, key=stack.api_key, tags={"of": "the-demo"})
            examples.define_job_types(root, examples.COLONY, examples.OPERATIONS, *credentials)
            show("Mutually exclusive operations in a Lambda function: examples/colony", examples.play_colony(client))
            if examples.has_chroma(root):
                with tempfile.TemporaryDirectory() as data, examples.chroma_server(root, Path(data)) as url:
                    examples.define_job_types(root, examples.CHROMADB, examples.REQUESTS, *credentials, server=url)
                    show("A vector database called over HTTP: examples/chromadb", examples.play_chromadb(client))
    except (PlayFailed, VigilError) as error:
        raise LocalError(f"The demo failed: {error}") from error


def _relative_path(path: Path) -> str:
    """Return a path relative to the current directory if it is below it."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
