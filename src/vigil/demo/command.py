"""`vigil demo`: have the stack running, play the story on it, hold it to what it promised."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from vigil.cli.local import HERE, Directory, Root, explained
from vigil.local import cloud
from vigil.local.errors import LocalError
from vigil.local.home import Home


@explained
def demo(
    port: Annotated[
        int | None,
        typer.Option(envvar="VIGIL_LOCAL_PORT", help=f"The emulator's port, if not {cloud.DEFAULT_PORT}."),
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Save a picture of it, too, as SVG.", dir_okay=False)] = None,
    root: Root = HERE,
    directory: Directory = None,
) -> None:
    """Start everything on this machine and watch jobs being waited for. Exit code 1 when an answer is wrong."""
    from vigil.demo import screen
    from vigil.demo.facts import checks
    from vigil.demo.play import Play, PlayFailed

    console = Console()
    home = Home.of(root, directory)
    running = home.supervisor.holder() or {}
    stack = cloud.up(
        home,
        port=port or int(running.get("port", cloud.DEFAULT_PORT)),
        say=lambda message: console.print(f"[dim]·[/] {escape(message)}"),
    )
    console.print("[dim]·[/] Waking the functions")
    try:
        with Play(stack.api_url, stack.ws_url, stack.api_key) as play:
            known = moment = play.known
            opening = screen.opening(stack.api_url)
            console.print("", opening, "", sep="\n")
            live = Live(screen.Board(known), console=console, refresh_per_second=12)
            with live if console.is_terminal else nullcontext():
                for fact in play:
                    if not console.is_terminal:
                        console.print(screen.plain_line(fact, known), markup=False, highlight=False, soft_wrap=True)
                    if record and (moment is known or not moment.any_over):
                        moment = deepcopy(known)
    except PlayFailed as error:
        raise LocalError(f"The demo broke off: {error}") from error
    held = checks(known)
    outcome = (screen.answers(known), screen.verdict(held))
    next_steps = screen.next_steps(_here(Path(sys.argv[0])), _here(home.stack_file), known.job_ids["aspen"])
    console.print("", outcome[0], "", screen.late_answers(known), "", outcome[1], "", next_steps, sep="\n")
    if record:
        screen.save_picture(record, "make demo", opening, screen.Board(moment), *outcome)
    if not all(check.kept for check in held):
        raise typer.Exit(1)


def _here(path: Path) -> str:
    """A path as one would type it here."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
