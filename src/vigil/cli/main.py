"""The command `vigil`."""

from __future__ import annotations

import typer

from vigil.cli import dead_letters, jobs, keys, local, worker, workflows
from vigil.cli.doctor import doctor
from vigil.demo.command import demo

app = typer.Typer(no_args_is_help=True, help="Vigil keeps watch over long-running jobs.")
app.command()(demo)
app.command()(doctor)
app.add_typer(local.app, name="local")
app.add_typer(jobs.app, name="job")
app.add_typer(workflows.app, name="workflow")
app.add_typer(worker.app, name="worker")
app.add_typer(keys.app, name="keys")
app.add_typer(dead_letters.app, name="dead-letters")


@app.callback()
def vigil() -> None:
    """Vigil keeps watch over long-running jobs."""
