"""`vigil dead-letters`: list and redrive dead letters."""

from __future__ import annotations

from collections import Counter
from typing import Any

import typer
from rich.table import Column, Table

from vigil.cli.admin import AdminFunction, StackOption
from vigil.cli.terminal import Console

app = typer.Typer(help="List and redrive dead letters, with AWS credentials.", no_args_is_help=True)


@app.command("list")
def list_dead_letters(stack: StackOption = None) -> None:
    """List the dead batches of stream records, oldest first, and count the dead messages."""
    response = AdminFunction.for_stack(stack).invoke("list_dead_letters")
    console = Console()
    if response["batches"]:
        console.print(_table(response["batches"]))
    console.print(f"{response['total']} batches of stream records; {_messages(response['messages'], 'dead messages')}.")


@app.command()
def redrive(stack: StackOption = None) -> None:
    """Process all dead letters again. Successful ones are removed; failed ones stay and are listed."""
    admin = AdminFunction.for_stack(stack)
    batches, messages = 0, Counter[str]()
    while True:
        response = admin.invoke("redrive_dead_letters")
        batches += response["batches"]
        messages.update(response["messages"])
        if not response["not_tried"] or not (response["batches"] or sum(response["messages"].values())):
            break
    console = Console()
    if response["failed"]:
        console.print(_table(response["failed"]))
    console.print(f"{batches} batches processed; {_messages(messages, 'messages sent back')}.")
    if response["failed"] or response["not_tried"]:
        console.print(f"{len(response['failed'])} batches failed again, {response['not_tried']} were not tried.")
        raise typer.Exit(1)


def _table(batches: list[dict[str, Any]]) -> Table:
    columns = ("stored", "function", "records", "condition", "problem")
    table = Table(*(Column(name, overflow="fold") for name in columns), box=None)
    for batch in batches:
        function = (batch["function"] or "").rpartition(":function:")[2]
        records = "" if batch["records"] is None else str(batch["records"])
        table.add_row(batch["stored_at"], function, records, batch["condition"] or "", batch["problem"] or "")
    return table


def _messages(counts: dict[str, int] | Counter[str], label: str) -> str:
    return f"{label}: " + ", ".join(f"{name} {count}" for name, count in counts.items())
