"""`vigil limit`: list and override the limits of a namespace; `vigil usage`: what a namespace uses of them."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from vigil.cli.admin import AdminFunction, StackOption, fail
from vigil.cli.jobs import api_client
from vigil.cli.terminal import Console

DEFAULT = "default"
NamespaceArgument = Annotated[str, typer.Argument(help="The namespace (tenant).", show_default=False)]

app = typer.Typer(help="List and override the limits of a namespace, with AWS credentials.", no_args_is_help=True)


@app.command("list")
def list_limits(namespace: NamespaceArgument, stack: StackOption = None) -> None:
    """List the limits of a namespace."""
    _print_limits(AdminFunction.for_stack(stack).invoke("list_limits", namespace=namespace)["limits"])


@app.command("set")
def set_limit(
    namespace: NamespaceArgument,
    limit: Annotated[str, typer.Argument(help="The name of the limit, as in `vigil limit list`.", show_default=False)],
    value: Annotated[str, typer.Argument(help="A whole number, or `default`.", show_default=False)],
    stack: StackOption = None,
) -> None:
    """Override a limit of a namespace, or restore its default. It takes effect within a minute."""
    if value != DEFAULT and not value.isdecimal():
        raise fail("The value must be a whole number, or `default`.")
    number = None if value == DEFAULT else int(value)
    admin = AdminFunction.for_stack(stack)
    limits = admin.invoke("set_limit", namespace=namespace, limit=limit, value=number)["limits"]
    _print_limits([shown for shown in limits if shown["name"] == limit])


def usage() -> None:
    """Show the limits of the namespace of your key, and what it uses of them."""
    with api_client() as client:
        document = client.usage()
    table = Table("limit", "used", "of", "unit", "counts", box=None)
    for shown in document["limits"]:
        used = "" if shown["used"] is None else f"{shown['used']:,}"
        table.add_row(shown["name"], used, f"{shown['limit']:,}", shown["unit"], shown["counts"])
    Console().print(table)


def _print_limits(limits: list[dict[str, object]]) -> None:
    table = Table("limit", "value", "default", "unit", "counts", box=None)
    for shown in limits:
        value = f"{shown['limit']:,}" + (" *" if shown["overridden"] else "")
        table.add_row(str(shown["name"]), value, f"{shown['default']:,}", str(shown["unit"]), str(shown["counts"]))
    console = Console()
    console.print(table)
    if any(shown["overridden"] for shown in limits):
        console.print("* overridden. `vigil limit set NAMESPACE LIMIT default` restores the default.")
