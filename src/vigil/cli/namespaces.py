"""`vigil namespace`: suspend, resume and delete a namespace."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from vigil.cli.admin import AdminFunction, StackOption, fail
from vigil.cli.limits import NamespaceArgument
from vigil.cli.terminal import echo

MAX_PAUSE_S = 60

app = typer.Typer(help="Suspend, resume and delete namespaces, with AWS credentials.", no_args_is_help=True)


@app.command()
def suspend(namespace: NamespaceArgument, stack: StackOption = None) -> None:
    """Suspend a namespace.

    Within 60 seconds no key works, no schedule fires, and nothing is dispatched or delivered.
    """
    response = AdminFunction.for_stack(stack).invoke("suspend_namespace", namespace=namespace)
    echo(f"{namespace} is suspended since {response['since']}; closed {response['disconnected']} WebSockets.")
    if response["keys"] == 0:
        echo(f"No API key belongs to {namespace}: check the name.", err=True)


@app.command()
def resume(namespace: NamespaceArgument, stack: StackOption = None) -> None:
    """Resume a suspended namespace. What is due by then starts within two minutes."""
    AdminFunction.for_stack(stack).invoke("resume_namespace", namespace=namespace)
    echo(f"{namespace} is active.")


@app.command()
def delete(
    namespace: NamespaceArgument,
    confirm: Annotated[
        str | None, typer.Option(help="The name of the namespace once more.", show_default=False)
    ] = None,
    stack: StackOption = None,
) -> None:
    """Delete a namespace with all its rows and objects, permanently. An interrupted command can be repeated."""
    if confirm != namespace:
        raise fail(f"This removes everything in {namespace}. Confirm with --confirm {namespace}.")
    admin = AdminFunction.for_stack(stack)
    rows = objects = 0
    cursor: dict[str, Any] | None = {}
    while cursor is not None:
        response = admin.invoke("delete_namespace", namespace=namespace, cursor=cursor or None)
        rows, objects, cursor = rows + response["rows"], objects + response["objects"], response["cursor"]
        if cursor is not None:
            echo(f"Removed {rows} rows and {objects} objects.")
        if response["wait_s"]:
            echo("Waiting for functions that may still write.")
            time.sleep(min(MAX_PAUSE_S, response["wait_s"]))
    echo(f"{namespace} is deleted: {rows} rows and {objects} objects.")
