"""`vigil keys`: create, list and revoke API keys."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from vigil.cli.admin import AdminFunction, NamespaceOption, StackOption
from vigil.cli.terminal import Console, echo

app = typer.Typer(help="Create, list and revoke API keys, with AWS credentials.", no_args_is_help=True)


@app.command()
def create(
    namespace: NamespaceOption,
    scopes: Annotated[
        str, typer.Option(help="Any of read, submit, work and admin, separated by commas.", show_default=False)
    ],
    name: Annotated[str | None, typer.Option(help="A name to show in lists.", show_default=False)] = None,
    stack: StackOption = None,
) -> None:
    """Create a key and print it. Vigil stores only its hash, so it cannot be printed again."""
    admin = AdminFunction.for_stack(stack)
    scope_list = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    response = admin.invoke("create_key", namespace=namespace, scopes=scope_list, name=name)
    echo(f"Key {response['key']['key_id']} for {namespace} on {admin.label}. Keep it: it is not shown again.", err=True)
    echo(response["token"])


@app.command("list")
def list_keys(namespace: NamespaceOption, stack: StackOption = None) -> None:
    """List the keys of a namespace, including revoked ones."""
    keys = AdminFunction.for_stack(stack).invoke("list_keys", namespace=namespace)["keys"]
    table = Table("key id", "name", "scopes", "created", "revoked", box=None)
    for key in keys:
        table.add_row(
            key["key_id"], key["name"] or "", ",".join(key["scopes"]), key["created_at"], key["revoked_at"] or ""
        )
    Console().print(table if keys else f"{namespace} has no keys.")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key id that `vigil keys list` shows.", show_default=False)],
    namespace: NamespaceOption,
    stack: StackOption = None,
) -> None:
    """Revoke a key permanently. Its WebSockets close at once; the API refuses it within 60 seconds."""
    response = AdminFunction.for_stack(stack).invoke("revoke_key", namespace=namespace, key_id=key_id)
    echo(f"Revoked {key_id} at {response['key']['revoked_at']}; closed {response['disconnected']} WebSockets.")
