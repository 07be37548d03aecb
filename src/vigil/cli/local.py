"""`vigil local`: run all of Vigil on one machine."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer
from rich.table import Table

from vigil.cli.terminal import Console, escape
from vigil.local import cloud, logs
from vigil.local.errors import LocalError
from vigil.local.health import health as examine
from vigil.local.stack import Stack
from vigil.local.state_dir import StateDir, tail

app = typer.Typer(no_args_is_help=True, help="Run Vigil on this machine, on an AWS emulator.")
console = Console()
errors = Console(stderr=True)

_LEVEL_STYLES = {"ERROR": "red", "CRITICAL": "red", "WARNING": "yellow", "DEBUG": "dim"}

Root = Annotated[
    Path, typer.Option("--root", envvar="VIGIL_ROOT", help="The checkout to deploy.", file_okay=False, exists=True)
]
Directory = Annotated[
    Path | None,
    typer.Option("--home", envvar="VIGIL_LOCAL_HOME", help="The state directory. The default is ROOT/.local."),
]
HERE = Path()
P = ParamSpec("P")


def exit_on_local_error(command: Callable[P, None]) -> Callable[P, None]:
    """Make a command print the message of a LocalError and end with exit code 1."""

    @functools.wraps(command)
    def wrapper(*arguments: P.args, **options: P.kwargs) -> None:
        try:
            command(*arguments, **options)
        except LocalError as error:
            if error.details:
                errors.print(error.details, style="dim", markup=False, highlight=False)
            errors.print(f"[red]✗[/] {escape(str(error))}")
            raise typer.Exit(1) from error

    return wrapper


@app.command()
@exit_on_local_error
def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once it runs.")] = False,
    port: Annotated[int, typer.Option(envvar="VIGIL_LOCAL_PORT", help="The emulator's port.")] = cloud.DEFAULT_PORT,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the kept state first.")] = False,
    listen: Annotated[
        list[str] | None,
        typer.Option(
            envvar="VIGIL_LOCAL_LISTEN",
            help="Also listen on this address, for example 172.17.0.1 for containers. The emulator "
            "checks no credentials: every program that reaches the address controls the local cloud.",
        ),
    ] = None,
    parameter: Annotated[list[str] | None, typer.Option(help="A parameter of the template, as NAME=VALUE.")] = None,
    root: Root = HERE,
    directory: Directory = None,
) -> None:
    """Start the local cloud and deploy this checkout. If it runs, deploy only the changes."""
    home = StateDir.of(root, directory)
    was_running = home.supervisor.alive
    if fresh:
        # A state that cannot be saved is not needed. If a process does not stop, `wipe` refuses.
        with contextlib.suppress(LocalError):
            cloud.down(home)
        home.wipe()
        was_running = False
    started_at = time.monotonic()
    stack = cloud.up(
        home, port=port, addresses=tuple(listen or ()), parameters=_parameters(parameter or []), say=_print_step
    )
    console.print(f"[green]✓[/] Vigil runs on this machine ({time.monotonic() - started_at:.1f} s)")
    _print_connection(stack)
    if detach or was_running:
        return
    console.print("[dim]Logs follow. Ctrl-C stops the local cloud and keeps its state.[/]")
    _follow_logs(home, stack)


def _print_step(message: str) -> None:
    console.print(f"[dim]·[/] {escape(message)}")


def _parameters(texts: list[str]) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in texts]
    if invalid := [name for name, equals, _ in pairs if not equals]:
        raise LocalError(f"--parameter takes NAME=VALUE, not {invalid[0]}.")
    return {name: value for name, _, value in pairs}


def _follow_logs(home: StateDir, stack: Stack) -> None:
    """Print the logs until Ctrl-C, or until the local cloud ends by itself."""
    started_ms = int(time.time() * 1000)
    try:
        for line in logs.lines(stack, None, since_ms=started_ms, is_following=lambda: home.supervisor.alive):
            _print(line)
    except KeyboardInterrupt:
        console.print()
        cloud.down(home, say=_print_step)
        console.print("[green]✓[/] Stopped; `vigil local up` continues with the same state")
        return
    raise LocalError("The local cloud ended by itself.", tail(home.supervisor_log))


@app.command()
@exit_on_local_error
def down(root: Root = HERE, directory: Directory = None) -> None:
    """Stop the local cloud and keep its state. Exit code 1 if the state could not be saved."""
    stopped = cloud.down(StateDir.of(root, directory), say=_print_step)
    console.print("[green]✓[/] Stopped; the state is kept" if stopped else "The local cloud was not running.")


@app.command()
@exit_on_local_error
def status(root: Root = HERE, directory: Directory = None) -> None:
    """Show the state of the local cloud.

    Exit code 0 if it is healthy, 1 if not, 3 if it is not running.
    """
    home = StateDir.of(root, directory)
    health = examine(home)
    if not health.running or health.stack is None:
        hint = (
            " (its supervisor was killed and its emulator still runs; `vigil local down` stops it)"
            if home.emulator.alive
            else ""
        )
        console.print(f"The local cloud is not running{hint}. Start it with `vigil local up --detach`.")
        raise typer.Exit(3)
    api_state = "[green]answers[/]" if health.api_status == 200 else f"[red]{health.api_status or 'does not answer'}[/]"
    console.print(f"Vigil runs on this machine (pid {health.stack.pid}); its API {api_state}")
    _print_connection(health.stack)
    table = Table("stream mapping", "pending", "abandoned", "last error", title_justify="left", box=None)
    for reader in health.readers:
        table.add_row(reader["function"], str(reader["pending"]), str(reader["abandoned"]), reader["last_error"] or "")
    console.print(table)
    console.print(f"Dead letters: {'unknown' if health.dead_letters is None else health.dead_letters}")
    console.print(f"Queues: {len(health.queues)}, with {sum(queue['messages'] for queue in health.queues)} messages")
    console.print(f"Timers: {len(health.timers)}")
    for problem in health.problems:
        console.print(f"[red]✗[/] {escape(problem)}", soft_wrap=True)
    if not health.is_healthy:
        console.print(
            "Read `vigil local logs`. `vigil local down` and `vigil local up --detach` restart it with its state.",
            soft_wrap=True,
        )
        raise typer.Exit(1)


@app.command("logs")
@exit_on_local_error
def show_logs(
    function: Annotated[str | None, typer.Argument(help="A function, for example matcher. The default is all.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for further lines.")] = False,
    root: Root = HERE,
    directory: Directory = None,
) -> None:
    """Show the logs of the functions."""
    home = StateDir.of(root, directory)
    stack = Stack.read(home.stack_file)
    if stack is None or not home.supervisor.alive:
        raise LocalError("The local cloud is not running. Start it with `vigil local up --detach`.")
    try:
        for line in logs.lines(stack, function, is_following=lambda: follow and home.supervisor.alive):
            _print(line)
    except KeyboardInterrupt:
        console.print()


def _print(line: logs.Line) -> None:
    style = _LEVEL_STYLES.get(line.level, "")
    console.print(
        f"[dim]{logs.clock_time(line.at)}[/] [cyan]{escape(line.function)}[/] {escape(line.text)}",
        style=style,
        highlight=False,
        soft_wrap=True,
    )


def _print_connection(stack: Stack) -> None:
    values = {
        "HTTP": stack.api_url,
        "WebSocket": stack.ws_url,
        "API key": stack.api_key,
        "AWS": f"{stack.endpoint_url} ({stack.region})",
    }
    for name, value in values.items():
        # Without wrapping, so that values can be copied.
        console.print(f"[bold]{name:<10}[/] {escape(value)}", soft_wrap=True, highlight=False)
