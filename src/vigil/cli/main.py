"""The command `vigil`."""

from __future__ import annotations

from importlib.util import find_spec

import typer

from vigil.cli import dead_letters, jobs, keys, limits, local, namespaces, worker, workflows
from vigil.cli.doctor import doctor

app = typer.Typer(no_args_is_help=True, help="Track long-running jobs, and wait for them.")

if find_spec("vigil.demo"):  # Only a clone of the repository contains the demo.
    from vigil.demo.command import demo

    app.command()(demo)
app.command()(doctor)
app.command()(limits.usage)
app.add_typer(local.app, name="local")
app.add_typer(jobs.app, name="job")
app.add_typer(workflows.app, name="workflow")
app.add_typer(worker.app, name="worker")
app.add_typer(keys.app, name="keys")
app.add_typer(limits.app, name="limit")
app.add_typer(namespaces.app, name="namespace")
app.add_typer(dead_letters.app, name="dead-letters")


@app.callback()
def vigil() -> None:
    """Track long-running jobs, and wait for them."""
