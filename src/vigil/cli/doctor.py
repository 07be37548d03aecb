"""`vigil doctor`: is anything stuck, and what would mend it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from vigil.cli.admin import AdminFunction, StackOption
from vigil_core.domain.exact_json import dumps


def doctor(
    mend: Annotated[bool, typer.Option("--mend", help="Mend what is found.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    stack: StackOption = None,
) -> None:
    """Look for anything stuck or inconsistent, with AWS credentials, and say what would mend it.

    Exit code 1 when something is found, or could not be mended.
    """
    found = _mended(AdminFunction.of(stack)) if mend else AdminFunction.of(stack).ask("doctor")
    findings = found["findings"]
    if as_json:
        typer.echo(dumps(found))
    else:
        _show(found, mend)
    if any(not finding["mended"] for finding in findings):
        raise typer.Exit(1)


def _mended(admin: AdminFunction) -> dict[str, Any]:
    """Ask again while there is more, and something new is found: a look finds so much and no more."""
    known: dict[tuple[str, str | None, str], dict[str, Any]] = {}
    while True:
        found = admin.ask("doctor", mend=True)
        fresh = {(each["kind"], each["namespace"], each["id"]): each for each in found["findings"]}
        is_news = bool(fresh.keys() - known.keys())
        known |= fresh
        if not found["more"] or not is_news:
            return {**found, "findings": list(known.values())}


def _show(found: Mapping[str, Any], mend: bool) -> None:
    console = Console()
    findings = found["findings"]
    if findings:
        last = "what came of it" if mend else "--mend would"
        columns = ("kind", "namespace", "id", "since", "what", last)
        table = Table(*(Column(name, overflow="fold") for name in columns), box=None)
        for each in findings:
            said = (each["outcome"] or "not tried: no time was left") if mend else each["mend"]
            cells = (each["kind"], each["namespace"], each["id"], each["since"], each["what"], said)
            table.add_row(*(escape(cell or "") for cell in cells))
        console.print(table)
    looked = found["looked_at"]
    where = f"{looked['queues']} queues, {looked['jobs']} jobs and {looked['due']} due rows"
    if not findings:
        console.print(f"[green]✓[/] Nothing is stuck in {where}.")
    else:
        mended = sum(each["mended"] for each in findings)
        done = f", {mended} of them mended" if mend else "; `vigil doctor --mend` mends them"
        console.print(f"{len(findings)} findings in {where}{done}.")
    if found["more"]:
        console.print("There was more than one look can take: look again.")
