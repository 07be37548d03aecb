"""`vigil workflow`: begin runs of graphs of jobs, look at them, draw them, and decide what becomes of them."""

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
from rich.markup import escape
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
    print_json,
    styled,
)

if TYPE_CHECKING:
    from vigil.client import Json, Vigil
    from vigil.workflow import Workflow

app = typer.Typer(help="Run graphs of jobs, with an API key (docs/client.md).", no_args_is_help=True)
app.command()(dependencies)

WorkflowId = Annotated[str, typer.Argument(metavar="ID", help="The workflow's id.", show_default=False)]
File = Annotated[
    str, typer.Option("--file", "-f", help="The definition, JSON or YAML; - is stdin.", show_default=False)
]
Statuses = Annotated[
    list[str] | None,
    typer.Option(
        "--status", help="pending running paused completed failed cancelled; may be repeated.", show_default=False
    ),
]
Name = Annotated[str | None, typer.Option(help="Of this name.", show_default=False)]
CorrelationId = Annotated[str | None, typer.Option(help="With this id.", show_default=False)]

_COUNTS = ("completed", "running", "pending", "scheduled", "waiting", "failed", "cancelled", "skipped")
_MAX_JOBS_SEARCHED = 2_000
"""In search of jobs that run or have failed, each time that a status is shown."""
_MAX_JOBS_SHOWN = 8


class Format(StrEnum):
    """How a graph is drawn."""

    mermaid = "mermaid"
    dot = "dot"
    json = "json"
    svg = "svg"


class OpenStatus(StrEnum):
    """The statuses of a run that has not ended."""

    pending = "pending"
    running = "running"
    paused = "paused"


class Action(StrEnum):
    """What becomes of a failed job."""

    retry = "retry"
    skip = "skip"
    abort = "abort"


@app.command()
def create(
    file: File,
    wait: Annotated[bool, typer.Option("--wait", help="Until the run has ended.")] = False,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds that --wait lasts at most.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Begin a run and print its id. With --wait: exit code 0 when it completed, 3 when it ended otherwise, 4 when time
    was over."""
    definition = _read(file)
    with api_client() as client:
        run = client.create_workflow(definition)
        workflow_id = run["workflow_id"]
        if wait:
            if not as_json:
                typer.echo(workflow_id)
            run = client.await_workflow(workflow_id, timedelta.max if timeout is None else timeout) or run
    if as_json:
        print_json(run)
    elif wait:
        _print_status(run)
    else:
        typer.echo(workflow_id)
    if wait:
        _exit_by_status(run)


@app.command()
def validate(
    file: File,
    offline: Annotated[
        bool, typer.Option("--offline", help="Look at the graph alone, without asking the API.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say everything that is wrong with a definition, and store nothing."""
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
        typer.echo(f"{definition.name} is valid: {summary['jobs']:,} jobs, {summary['edges']:,} dependencies.")


@app.command("list")
def list_workflows(
    status: Statuses = None,
    name: Name = None,
    correlation_id: CorrelationId = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, at most.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
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
    limit: Annotated[int, typer.Option(min=0, help="How many of its jobs, at most.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Show a run and its jobs, in the definition's order."""
    with api_client() as client:
        run = client.get_workflow(workflow_id, page_size=1)
        jobs = list(islice(client.workflow_jobs(workflow_id), limit + 1))
    fields = {name: value for name, value in run.items() if name not in ("jobs", "next_page_token")}
    if as_json:
        print_json(fields | {"jobs": jobs[:limit]})
        return
    events = fields.pop("events")
    console.print(details_table(fields))
    history = Table(*(Column(title, overflow="fold") for title in ("when", "what", "by", "why")), box=None)
    for event in events:
        history.add_row(event["at"], event["event"], escape(event["by"]), escape(event["why"] or ""))
    console.print(history)
    if jobs[:limit]:
        table = Table(
            *(Column(title, overflow="fold") for title in ("status", "job id", "name", "type", "why")), box=None
        )
        for job in jobs[:limit]:
            name = escape(job["name"] or "")
            table.add_row(styled(job["status"]), job["job_id"], name, escape(job["job_type"]), escape(_reason(job)))
        console.print(table)
    if len(jobs) > limit:
        console.print(f"Of its jobs the first {limit:,}: --limit shows more.")


@app.command()
def status(
    workflow_id: WorkflowId,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until it has ended.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Show how far a run is: what runs, and what failed. With --watch: exit code 3 when it ends, and not well."""
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
    """Print how many of a run's jobs are in which status."""
    with api_client() as client:
        statistics = client.workflow_stats(workflow_id)
    if as_json:
        print_json(statistics)
    else:
        console.print(details_table(statistics))


@app.command()
def graph(
    workflow_id: WorkflowId,
    format: Annotated[Format, typer.Option(help="How to draw it.")] = Format.mermaid,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to, if not stdout.", show_default=False)
    ] = None,
) -> None:
    """Draw a run's graph as it stands: for Mermaid, for Graphviz, as JSON, or as an SVG to look at."""
    with api_client() as client:
        text = client.workflow_graph(workflow_id, format.value)
    if output is None:
        typer.echo(text.rstrip("\n"))
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise fail(f"--output: {error}", 2) from error


@app.command()
def cancel(
    workflow_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The workflow's id.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that have not ended and are meant by these:")] = False,
    status: Annotated[OpenStatus | None, typer.Option(help="Of this status.", show_default=False)] = None,
    name: Name = None,
    correlation_id: CorrelationId = None,
    as_json: AsJson = False,
) -> None:
    """Cancel a run; or, with --all, every run of a status, name or correlation id, whose ids are printed."""
    has_filter = bool(status or name or correlation_id)
    if every == (workflow_id is not None) or has_filter != every:
        raise fail("Say which run, by its id, or --all and of which --status, --name or --correlation-id.", 2)
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
            typer.echo(cancelled_id)


@app.command()
def retry(
    workflow_id: WorkflowId,
    from_job: Annotated[
        str | None, typer.Option("--from", help="From this job on, by its name.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run again what failed of an ended run and what comes after it; what succeeded is kept."""
    with api_client() as client:
        run = client.retry_workflow(workflow_id, from_job)
    print_json(run) if as_json else _print_status(run)


@app.command()
def pause(workflow_id: WorkflowId, as_json: AsJson = False) -> None:
    """Have a run begin nothing new. What runs goes on."""
    with api_client() as client:
        run = client.pause_workflow(workflow_id)
    print_json(run) if as_json else _print_status(run)


@app.command()
def resume(workflow_id: WorkflowId, as_json: AsJson = False) -> None:
    """Have a paused run go on."""
    with api_client() as client:
        run = client.resume_workflow(workflow_id)
    print_json(run) if as_json else _print_status(run)


@app.command()
def decide(
    workflow_id: WorkflowId,
    job: Annotated[str, typer.Argument(help="The failed job's name.", show_default=False)],
    action: Annotated[Action, typer.Argument(help="What becomes of it.", show_default=False)],
    note: Annotated[str | None, typer.Option(help="Why; it is kept.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Decide about a failed job for which a run has paused: try it again, go on as if it had succeeded, or abort."""
    with api_client() as client:
        run = client.decide(workflow_id, job, action.value, note)
    print_json(run) if as_json else _print_status(run)


def _read(file: str) -> Workflow:
    """The definition in a file. Ends the command when there is none."""
    from vigil.workflow import Workflow

    try:
        return Workflow.from_text(sys.stdin.read()) if file == "-" else Workflow.from_file(file)
    except OSError as error:
        raise fail(f"--file: {error}", 2) from error
    except ValueError as error:
        raise fail(f"--file {file}: {error}", 2) from error


def _running_and_failed(client: Vigil, workflow_id: str, stats: Json) -> tuple[list[Json], list[Json]]:
    """Some jobs that run and some that have failed, if there are any."""
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
    """A run at a glance."""
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
        lines.append(Text.from_markup(f"[magenta]to be decided[/] (vigil workflow decide): {escape(names)}"))
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
    """Why a job is as it is, if that has been said."""
    if job.get("error"):
        return f"{job['error']['code']}: {job['error']['message']}"
    return str(job["verdict"]["reason"]) if job.get("verdict") and job["status"] == "skipped" else ""


def _print_status(run: Json, suffix: str = "") -> None:
    console.print(f"{run['workflow_id']} is {styled(run['status'])}.{suffix}", highlight=False, soft_wrap=True)


def _exit_by_status(run: Json) -> None:
    """End the command with what became of a run."""
    from vigil.client import RUN_ENDED

    if run["status"] not in RUN_ENDED:
        raise typer.Exit(EXIT_TIMED_OUT)
    if run["status"] != "completed":
        raise typer.Exit(EXIT_FAILED)
