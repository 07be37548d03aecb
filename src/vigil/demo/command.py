"""`vigil demo`: have the stack running, play the story on it, hold it to what it promised."""

from __future__ import annotations

import sys
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
    record: Annotated[Path | None, typer.Option(help="Save a picture of the end as SVG, too.", dir_okay=False)] = None,
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
        play = Play(stack.api_url, stack.ws_url, stack.api_key)
        board = screen.Board(play.known)
        console.print()
        console.print(screen.opening(stack.api_url))
        if console.is_terminal:
            with Live(board, console=console, refresh_per_second=12):
                for _ in play:
                    pass
        else:
            for fact in play:
                console.print(screen.plain_line(fact, play.known), markup=False, highlight=False, soft_wrap=True)
    except PlayFailed as error:
        raise LocalError(f"The demo broke off: {error}") from error
    held = checks(play.known)
    ending = screen.ending(
        play.known,
        held,
        screen.next_steps(_here(Path(sys.argv[0])), _here(home.stack_file), play.known.job_ids["aspen"]),
    )
    console.print(ending)
    if record:
        screen.save_picture(record, "make demo", screen.opening(stack.api_url), board, ending)
    if not all(check.kept for check in held):
        raise typer.Exit(1)


def _here(path: Path) -> str:
    """A path as one would type it here."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
