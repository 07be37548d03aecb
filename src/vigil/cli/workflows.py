"""`vigil workflow`: start, show, draw, cancel, retry, pause and resume workflow runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from vigil.cli.admin import fail
from vigil.cli.jobs import (
    EXIT_FAILED,
    EXIT_TIMED_OUT,
    AsJson,
    api_client,
    console,
    dependencies,
    details_table,
    styled,
)
from vigil.cli.terminal import echo, escape, escape_json, print_json

if TYPE_CHECKING:
    from vigil.client import Json, Vigil
    from vigil.workflow import Workflow

app = typer.Typer(help="Run workflows (graphs of jobs), with an API key (docs/client.md).", no_args_is_help=True)
app.command()(dependencies)

WorkflowId = Annotated[str, typer.Argument(metavar="ID", help="The id of the workflow run.", show_default=False)]
File = Annotated[
    str, typer.Option("--file", "-f", help="The definition in JSON or YAML, or - to read stdin.", show_default=False)
]
Statuses = Annotated[
    list[str] | None,
    typer.Option(
        "--status", help="pending running paused completed failed cancelled. May be repeated.", show_default=False
    ),
]
Name = Annotated[str | None, typer.Option(help="The name of the workflow.", show_default=False)]
CorrelationId = Annotated[str | None, typer.Option(help="The correlation id.", show_default=False)]

_COUNTS = ("completed", "running", "pending", "scheduled", "waiting", "failed", "cancelled", "skipped")
_MAX_JOBS_SEARCHED = 2_000
"""The jobs that one view of a status reads to find running and failed ones."""
_MAX_JOBS_SHOWN = 8


class Format(StrEnum):
    """The format of a graph."""

    mermaid = "mermaid"
    dot = "dot"
    json = "json"
    svg = "svg"


class OpenStatus(StrEnum):
    """The statuses of an open run."""

    pending = "pending"
    running = "running"
    paused = "paused"


class Action(StrEnum):
    """The decision on a failed job."""

    retry = "retry"
    skip = "skip"
    abort = "abort"


@app.command()
def create(
    file: File,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the run has ended.")] = False,
    timeout: Annotated[
        float | None, typer.Option(help="The longest time of --wait, in seconds.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a workflow and print the id of the run.

    With --wait: exit code 0 if the run completed, 3 if it ended without completing, 4 at the timeout.
    """
    definition = _read(file)
    with api_client() as client:
        run = client.create_workflow(definition)
        workflow_id = run["workflow_id"]
        if wait:
            if not as_json:
                echo(workflow_id)
            run = client.await_workflow(workflow_id, timedelta.max if timeout is None else timeout) or run
    if as_json:
        print_json(run)
    elif wait:
        _print_status(run)
    else:
        echo(workflow_id)
    if wait:
        _exit_by_status(run)


@app.command()
def validate(
    file: File,
    offline: Annotated[bool, typer.Option("--offline", help="Validate only the graph, without the API.")] = False,
    as_json: AsJson = False,
) -> None:
    """Validate a definition and list every problem. Nothing is stored."""
    from vigil.cli.api import exit_on_refusal

    definition = _read(file)
    if offline:
        with exit_on_refusal():
            definition.validate()
        jobs = definition.to_dict()["jobs"]
        summary = {"valid": True, "jobs": len(jobs), "edges": sum(len(job.get("depends_on") or []) for job in jobs)}
    else:
        with api_client() as client:
            summary = client.validate_workflow(definition)
    if as_json:
        print_json(summary)
    else:
        echo(f"{definition.name} is valid: {summary['jobs']:,} jobs, {summary['edges']:,} dependencies.")


@app.command("list")
def list_workflows(
    status: Statuses = None,
    name: Name = None,
    correlation_id: CorrelationId = None,
    limit: Annotated[int, typer.Option(min=1, help="The largest number of runs.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List workflow runs, newest first."""
    with api_client() as client:
        runs = list(client.list_workflows(limit=limit, status=status, name=name, correlation_id=correlation_id))
    if as_json:
        print_json(runs)
    elif runs:
        table = Table(
            *(Column(title, overflow="fold") for title in ("status", "workflow id", "name", "created", "finished")),
            box=None,
        )
        for run in runs:
            table.add_row(
                styled(run["status"]),
                run["workflow_id"],
                escape(run["name"]),
                run["created_at"],
                run["finished_at"] or "",
            )
        console.print(table)
    else:
        console.print("No workflows.")


@app.command()
def show(
    workflow_id: WorkflowId,
    limit: Annotated[int, typer.Option(min=0, help="The largest number of jobs to show.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Show a workflow run and its jobs, in the order of the definition."""
    with api_client() as client:
        run = client.get_workflow(workflow_id, page_size=1)
        jobs = list(islice(client.workflow_jobs(workflow_id), limit + 1))
    fields = {name: value for name, value in run.items() if name not in ("jobs", "next_page_token")}
    if as_json:
        print_json(fields | {"jobs": jobs[:limit]})
        return
    events = fields.pop("events")
    console.print(details_table(fields))
    history = Table(*(Column(title, overflow="fold") for title in ("time", "event", "by", "reason")), box=None)
    for event in events:
        history.add_row(event["at"], event["event"], escape(event["by"]), escape(event["why"] or ""))
    console.print(history)
    if jobs[:limit]:
        table = Table(
            *(Column(title, overflow="fold") for title in ("status", "job id", "name", "type", "reason")), box=None
        )
        for job in jobs[:limit]:
            name = escape(job["name"] or "")
            table.add_row(styled(job["status"]), job["job_id"], name, escape(job["job_type"]), escape(_reason(job)))
        console.print(table)
    if len(jobs) > limit:
        console.print(f"The first {limit:,} jobs are shown. --limit shows more.")


@app.command()
def status(
    workflow_id: WorkflowId,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh until the run has ended.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two refreshes.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Show the progress of a workflow run with its running and failed jobs.

    With --watch: exit code 3 if the run ends without completing.
    """
    from vigil.client import RUN_ENDED

    with api_client() as client:
        run = client.get_workflow(workflow_id, page_size=1)
        with Live(console=console, auto_refresh=False) as live:
            while True:
                stats = client.workflow_stats(workflow_id)
                if not as_json:
                    live.update(_view(run, stats, _running_and_failed(client, workflow_id, stats)), refresh=True)
                if not watch or run["status"] in RUN_ENDED:
                    break
                time.sleep(interval)
                run = client.get_workflow(workflow_id, page_size=1)
    if as_json:
        field_names = ("workflow_id", "name", "status")
        print_json({**{name: run[name] for name in field_names}, "statistics": stats})
    if watch:
        _exit_by_status(run)


@app.command()
def stats(workflow_id: WorkflowId, as_json: AsJson = False) -> None:
    """Print the number of jobs of a workflow run by status."""
    with api_client() as client:
        statistics = client.workflow_stats(workflow_id)
    if as_json:
        print_json(statistics)
    else:
        console.print(details_table(statistics))


@app.command()
def graph(
    workflow_id: WorkflowId,
    format: Annotated[Format, typer.Option(help="The format of the graph.")] = Format.mermaid,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write. The default is stdout.", show_default=False),
    ] = None,
) -> None:
    """Draw the current graph of a workflow run as Mermaid, Graphviz DOT, JSON or SVG."""
    with api_client() as client:
        text = client.workflow_graph(workflow_id, format.value)
    if output is None:
        text = text.rstrip("\n")
        echo(escape_json(text) if format is Format.json else text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise fail(f"--output: {error}", 2) from error


@app.command()
def cancel(
    workflow_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The id of the workflow run.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Cancel all open runs that match the filters:")] = False,
    status: Annotated[OpenStatus | None, typer.Option(help="The status.", show_default=False)] = None,
    name: Name = None,
    correlation_id: CorrelationId = None,
    as_json: AsJson = False,
) -> None:
    """Cancel a workflow run, or with --all every open run that matches the filters, and print their ids."""
    has_filter = bool(status or name or correlation_id)
    if every == (workflow_id is not None) or has_filter != every:
        raise fail("Name one run by its id, or use --all with --status, --name or --correlation-id.", 2)
    with api_client() as client:
        if workflow_id is not None:
            run = client.cancel_workflow(workflow_id)
            suffix = "" if run["status"] == "cancelled" else " It was asked to cancel."
            print_json(run) if as_json else _print_status(run, suffix)
            return
        cancelled = client.cancel_workflows(
            status=None if status is None else status.value, name=name, correlation_id=correlation_id
        )
        if as_json:
            print_json(list(cancelled))
            return
        for cancelled_id in cancelled:
            echo(cancelled_id)


@app.command()
def retry(
    workflow_id: WorkflowId,
    from_job: Annotated[
        str | None, typer.Option("--from", help="The name of the first job to run again.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Retry the failed jobs of an ended run and their successors. Successful jobs are kept."""
    with api_client() as client:
        run = client.retry_workflow(workflow_id, from_job)
    print_json(run) if as_json else _print_status(run)


@app.command()
def pause(workflow_id: WorkflowId, as_json: AsJson = False) -> None:
    """Pause a workflow run. Running jobs continue; no further job starts."""
    with api_client() as client:
        run = client.pause_workflow(workflow_id)
    print_json(run) if as_json else _print_status(run)


@app.command()
def resume(workflow_id: WorkflowId, as_json: AsJson = False) -> None:
    """Resume a paused workflow run."""
    with api_client() as client:
        run = client.resume_workflow(workflow_id)
    print_json(run) if as_json else _print_status(run)


@app.command()
def decide(
    workflow_id: WorkflowId,
    job: Annotated[str, typer.Argument(help="The name of the failed job.", show_default=False)],
    action: Annotated[Action, typer.Argument(help="The decision.", show_default=False)],
    note: Annotated[str | None, typer.Option(help="A comment for the history.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Decide on a failed job that has paused a run: retry the job, skip it, or abort the run."""
    with api_client() as client:
        run = client.decide(workflow_id, job, action.value, note)
    print_json(run) if as_json else _print_status(run)


def _read(file: str) -> Workflow:
    """Read the definition from a file. End the command if it cannot be read."""
    from vigil.workflow import Workflow

    try:
        return Workflow.from_text(sys.stdin.read()) if file == "-" else Workflow.from_file(file)
    except OSError as error:
        raise fail(f"--file: {error}", 2) from error
    except ValueError as error:
        raise fail(f"--file {file}: {error}", 2) from error


def _running_and_failed(client: Vigil, workflow_id: str, stats: Json) -> tuple[list[Json], list[Json]]:
    """Return the first running and the first failed jobs of a run."""
    running: list[Json] = []
    failed: list[Json] = []
    limits = min(stats["running"], _MAX_JOBS_SHOWN), min(stats["failed"], _MAX_JOBS_SHOWN)
    if any(limits):
        for job in islice(client.workflow_jobs(workflow_id), _MAX_JOBS_SEARCHED):
            running += [job] if job["status"] == "running" else []
            failed += [job] if job["status"] == "failed" else []
            if len(running) >= limits[0] and len(failed) >= limits[1]:
                break
    return running[:_MAX_JOBS_SHOWN], failed[:_MAX_JOBS_SHOWN]


def _view(run: Json, stats: Json, jobs: tuple[Sequence[Json], Sequence[Json]]) -> RenderableType:
    """Lay out the progress of a run: a bar, the counts by status, and the running and failed jobs."""
    running, failed = jobs
    ended = sum(stats[status] for status in ("completed", "failed", "cancelled", "skipped"))
    bar = Table.grid(padding=(0, 1))
    done = "red" if stats["failed"] else "green"
    bar.add_row(
        ProgressBar(total=max(stats["total"], 1), completed=ended, width=40, complete_style=done, finished_style=done),
        f"{stats['completion_percentage']}%",
        f"{ended:,} of {stats['total']:,} jobs have ended",
    )
    counts = ", ".join(f"{stats[name]:,} {styled(name)}" for name in _COUNTS if stats.get(name))
    lines: list[RenderableType] = [
        Text.from_markup(f"[bold]{escape(run['name'])}[/] is {styled(run['status'])}  [dim]{run['workflow_id']}[/]"),
        bar,
        Text.from_markup(counts),
    ]
    if run.get("error"):
        lines.append(Text.from_markup(f"[red]{escape(run['error']['code'])}[/] {escape(run['error']['message'])}"))
    if run.get("undecided"):
        names = ", ".join(run["undecided"][:_MAX_JOBS_SHOWN])
        lines.append(Text.from_markup(f"[magenta]awaiting a decision[/] (vigil workflow decide): {escape(names)}"))
    if running:
        ellipsis = ", …" if stats["running"] > len(running) else ""
        lines.append(Text.from_markup(f"running: {escape(', '.join(_display_name(job) for job in running))}{ellipsis}"))
    lines += [
        Text.from_markup(f"[red]failed[/] {escape(_display_name(job))}: {escape(_reason(job))}") for job in failed
    ]
    if stats["failed"] > len(failed):
        lines.append(Text(f"and {stats['failed'] - len(failed):,} more failed"))
    return Group(*lines)


def _display_name(job: Json) -> str:
    return str(job["name"] or job["job_id"])


def _reason(job: Json) -> str:
    """Return the error of a failed job, or the verdict that skipped a job, otherwise nothing."""
    if job.get("error"):
        return f"{job['error']['code']}: {job['error']['message']}"
    return str(job["verdict"]["reason"]) if job.get("verdict") and job["status"] == "skipped" else ""


def _print_status(run: Json, suffix: str = "") -> None:
    console.print(f"{run['workflow_id']} is {styled(run['status'])}.{suffix}", highlight=False, soft_wrap=True)


def _exit_by_status(run: Json) -> None:
    """End the command with the exit code for the status of a run."""
    from vigil.client import RUN_ENDED

    if run["status"] not in RUN_ENDED:
        raise typer.Exit(EXIT_TIMED_OUT)
    if run["status"] != "completed":
        raise typer.Exit(EXIT_FAILED)
