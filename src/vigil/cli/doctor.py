"""`vigil doctor`: find and repair stuck work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from vigil.cli.admin import AdminFunction, StackOption
from vigil.cli.terminal import Console, escape, print_json


def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Repair each problem.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    stack: StackOption = None,
) -> None:
    """Find stuck or inconsistent work, and show the repair of each problem. Needs AWS credentials.

    The exit code is 1 if there are findings that are not repaired.
    """
    examination = (
        _repair_all(AdminFunction.for_stack(stack)) if fix else AdminFunction.for_stack(stack).invoke("doctor")
    )
    findings = examination["findings"]
    if as_json:
        print_json(examination, indent=None)
    else:
        _show(examination, fix)
    if any(not finding["repaired"] for finding in findings):
        raise typer.Exit(1)


def _repair_all(admin: AdminFunction) -> dict[str, Any]:
    """Repeat the examination while it reports more and has new findings. One examination returns a limited number."""
    findings_by_id: dict[tuple[str, str | None, str], dict[str, Any]] = {}
    while True:
        examination = admin.invoke("doctor", fix=True)
        new_findings = {
            (finding["kind"], finding["namespace"], finding["id"]): finding for finding in examination["findings"]
        }
        has_new_findings = bool(new_findings.keys() - findings_by_id.keys())
        findings_by_id |= new_findings
        if not examination["more"] or not has_new_findings:
            return {**examination, "findings": list(findings_by_id.values())}


def _show(examination: Mapping[str, Any], fix: bool) -> None:
    console = Console()
    findings = examination["findings"]
    if findings:
        outcome_column = "outcome" if fix else "--fix would"
        columns = ("kind", "namespace", "id", "since", "problem", outcome_column)
        table = Table(*(Column(name, overflow="fold") for name in columns), box=None)
        for finding in findings:
            outcome = (finding["outcome"] or "not tried: no time was left") if fix else finding["repair_hint"]
            cells = (
                finding["kind"],
                finding["namespace"],
                finding["id"],
                finding["since"],
                finding["problem"],
                outcome,
            )
            table.add_row(*(escape(cell or "") for cell in cells))
        console.print(table)
    examined = examination["examined"]
    scope = f"{examined['queues']} queues, {examined['jobs']} jobs and {examined['due']} due rows"
    if not findings:
        console.print(f"[green]✓[/] Nothing is stuck in {scope}.")
    else:
        repaired = sum(finding["repaired"] for finding in findings)
        suffix = f", {repaired} of them repaired" if fix else "; `vigil doctor --fix` repairs them"
        console.print(f"{len(findings)} findings in {scope}{suffix}.")
    if examination["more"]:
        console.print("There may be more findings than one examination returns: run the command again.")
