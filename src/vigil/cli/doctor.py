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
    fix: Annotated[bool, typer.Option("--mend", help="Mend what is found.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    stack: StackOption = None,
) -> None:
    """Look for anything stuck or inconsistent, with AWS credentials, and say what would mend it.

    Exit code 1 when something is found, or could not be mended.
    """
    examination = (
        _repair_all(AdminFunction.for_stack(stack)) if fix else AdminFunction.for_stack(stack).invoke("doctor")
    )
    findings = examination["findings"]
    if as_json:
        typer.echo(dumps(examination))
    else:
        _show(examination, fix)
    if any(not finding["mended"] for finding in findings):
        raise typer.Exit(1)


def _repair_all(admin: AdminFunction) -> dict[str, Any]:
    """Ask again while there is more, and something new is found: a look finds so much and no more."""
    findings_by_id: dict[tuple[str, str | None, str], dict[str, Any]] = {}
    while True:
        examination = admin.invoke("doctor", mend=True)
        new_findings = {(each["kind"], each["namespace"], each["id"]): each for each in examination["findings"]}
        has_new_findings = bool(new_findings.keys() - findings_by_id.keys())
        findings_by_id |= new_findings
        if not examination["more"] or not has_new_findings:
            return {**examination, "findings": list(findings_by_id.values())}


def _show(examination: Mapping[str, Any], fix: bool) -> None:
    console = Console()
    findings = examination["findings"]
    if findings:
        outcome_column = "what came of it" if fix else "--mend would"
        columns = ("kind", "namespace", "id", "since", "what", outcome_column)
        table = Table(*(Column(name, overflow="fold") for name in columns), box=None)
        for finding in findings:
            outcome = (finding["outcome"] or "not tried: no time was left") if fix else finding["mend"]
            cells = (finding["kind"], finding["namespace"], finding["id"], finding["since"], finding["what"], outcome)
            table.add_row(*(escape(cell or "") for cell in cells))
        console.print(table)
    examined = examination["looked_at"]
    scope = f"{examined['queues']} queues, {examined['jobs']} jobs and {examined['due']} due rows"
    if not findings:
        console.print(f"[green]✓[/] Nothing is stuck in {scope}.")
    else:
        repaired = sum(each["mended"] for each in findings)
        suffix = f", {repaired} of them mended" if fix else "; `vigil doctor --mend` mends them"
        console.print(f"{len(findings)} findings in {scope}{suffix}.")
    if examination["more"]:
        console.print("There was more than one look can take: look again.")
