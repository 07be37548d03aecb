"""`vigil job`: create, show, list, cancel, retry and wait for jobs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from vigil.cli.admin import fail
from vigil.cli.api import exit_on_refusal
from vigil.cli.terminal import Console, echo, escape, print_json
from vigil.strict_json import loads as parse_json

if TYPE_CHECKING:
    from vigil.client import Json, Vigil

EXIT_FAILED = 3
"""The exit code if a job ended without completing."""
EXIT_TIMED_OUT = 4
"""The exit code if a job has not ended in time."""

_STYLES = {
    "completed": "green", "failed": "red", "cancelled": "yellow", "skipped": "yellow", "running": "cyan",
    "paused": "magenta",
}  # fmt: skip

app = typer.Typer(help="Create jobs and follow them, with an API key (docs/client.md).", no_args_is_help=True)
console = Console()

JobId = Annotated[str, typer.Argument(help="The job's id.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer of the API as JSON.")]


@contextmanager
def api_client() -> Iterator[Vigil]:
    """Open a client whose errors end the command."""
    from vigil.client import Vigil

    with exit_on_refusal(), Vigil() as client:
        yield client


@app.command()
def create(
    job_type: Annotated[str, typer.Argument(help="The job type.", show_default=False)],
    payload: Annotated[
        str | None, typer.Option(help="JSON, @FILE to read a file, or - to read stdin.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="The name of the job.", show_default=False)] = None,
    queue: Annotated[str | None, typer.Option(help="The queue, if not the job type's.", show_default=False)] = None,
    priority: Annotated[
        str | None, typer.Option(help="background low normal high critical", show_default=False)
    ] = None,
    at: Annotated[str | None, typer.Option(help="The start: 2026-01-31T09:30:00Z.", show_default=False)] = None,
    attempts: Annotated[int | None, typer.Option(help="The largest number of attempts.", show_default=False)] = None,
    timeout: Annotated[int | None, typer.Option(help="Seconds that an attempt may take.", show_default=False)] = None,
    unique_key: Annotated[str | None, typer.Option(help="At most one open job has it.", show_default=False)] = None,
    mutex: Annotated[str | None, typer.Option(help="Refused while an open job has it.", show_default=False)] = None,
    queue_for_mutex: Annotated[bool, typer.Option("--in-line", help="Wait in the mutex queue instead.")] = False,
    after: Annotated[
        list[str] | None,
        typer.Option(help="The id of a job that must end first. May be repeated.", show_default=False),
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="Their trigger rule, if not all_success.", show_default=False)
    ] = None,
    condition: Annotated[
        str | None, typer.Option("--if", help="A JMESPath condition on their results.", show_default=False)
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag. May be repeated.", show_default=False)] = None,
    field: Annotated[list[str] | None, typer.Option(help="NAME=VALUE. May be repeated.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Create a job and print its id."""
    fields = dict(_parse_field(text) for text in field or [])
    with api_client() as client:
        created = client.submit(
            job_type,
            None if payload is None else _read_json(payload),
            name=name,
            queue=queue,
            priority=priority,  # type: ignore[arg-type] # The API validates it.
            scheduled_at=None if at is None else _parse_time(at),
            retry=None if attempts is None else {"max_attempts": attempts},
            timeout=timeout,
            unique_key=unique_key,
            mutex={"key": mutex, "on_conflict": "queue"} if mutex and queue_for_mutex else mutex,
            depends_on=after,
            trigger_rule=rule,  # type: ignore[arg-type] # The API validates it.
            condition=condition,
            tags=tag,
            fields=fields or None,
        )
        if as_json:
            print_json(client.job(created.job_id))
        else:
            echo(created.job_id)


@app.command()
def show(
    job_id: JobId,
    include_dependencies: Annotated[
        bool, typer.Option("--include-dependencies", help="Also show its dependencies and dependents.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a job."""
    with api_client() as client:
        job = client.job(job_id)
        dependency_view = client.dependencies(job_id) if include_dependencies else None
    if dependency_view is not None:
        job["dependencies"], job["dependents"] = dependency_view["depends_on"], dependency_view["dependents"]
    if as_json:
        print_json(job)
        return
    fields = {name: value for name, value in job.items() if name not in ("dependencies", "dependents")}
    console.print(details_table(fields))
    if dependency_view is not None:
        _print_dependencies(dependency_view)


@app.command()
def dependencies(job_id: JobId, as_json: AsJson = False) -> None:
    """Show the dependencies and the dependents of a job."""
    with api_client() as client:
        dependency_view = client.dependencies(job_id)
    if as_json:
        print_json(dependency_view)
        return
    _print_dependencies(dependency_view)


def _print_dependencies(dependency_view: Json) -> None:
    """Print the dependencies and the dependents of a job."""
    verdict = dependency_view["verdict"]
    reason = (
        verdict["reason"]
        if verdict
        else dependency_view["trigger_rule"]
        if dependency_view["depends_on"]
        else "the job has no dependencies"
    )
    console.print(
        f"dependencies {dependency_view['dependency_status']}: {escape(reason)}", highlight=False, soft_wrap=True
    )
    columns = ("", "status", "job id", "type", "name")
    table = Table(*(Column(name, overflow="fold") for name in columns), box=None)
    for direction, jobs in (("after", dependency_view["depends_on"]), ("before", dependency_view["dependents"])):
        for job in jobs:
            table.add_row(
                direction, styled(job["status"]), job["job_id"], escape(job["job_type"]), escape(job["name"] or "")
            )
    if table.row_count:
        console.print(table)


def details_table(fields: Json) -> Table:
    """Lay out the non-empty members of an object, one per line."""
    table = Table(Column(style="dim"), Column(overflow="fold"), box=None, show_header=False)
    for name, value in fields.items():
        if value not in (None, [], {}):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            table.add_row(name, styled(text) if name == "status" else escape(text))
    return table


@app.command("list")
def list_jobs(
    status: Annotated[list[str] | None, typer.Option(help="The status. May be repeated.", show_default=False)] = None,
    job_type: Annotated[str | None, typer.Option("--type", help="The job type.", show_default=False)] = None,
    queue: Annotated[str | None, typer.Option(help="The queue.", show_default=False)] = None,
    tag: Annotated[str | None, typer.Option(help="The tag.", show_default=False)] = None,
    dependency_status: Annotated[
        str | None, typer.Option(help="none waiting satisfied failed", show_default=False)
    ] = None,
    workflow: Annotated[str | None, typer.Option(help="The id of the workflow run.", show_default=False)] = None,
    correlation_id: Annotated[str | None, typer.Option(help="The correlation id.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help="The largest number of jobs.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with api_client() as client:
        matching = client.jobs(
            limit=limit,
            status=status,
            job_type=job_type,
            queue=queue,
            tag=tag,
            dependency_status=dependency_status,
            workflow_id=workflow,
            correlation_id=correlation_id,
        )
        jobs = list(matching)
    if as_json:
        print_json(jobs)
    elif jobs:
        console.print(_table(jobs))
    else:
        console.print("No jobs.")


@app.command()
def status(job_id: JobId, as_json: AsJson = False) -> None:
    """Print the status of a job. If it does not exist, print `not_found` with exit code 1."""
    with api_client() as client:
        job_status = client.status_only(job_id)
    if as_json:
        print_json({"job_id": job_id, "status": job_status})
    else:
        echo(job_status)
    if job_status == "not_found":
        raise typer.Exit(1)


@app.command()
def result(job_id: JobId) -> None:
    """Print the result of a completed job as JSON.

    Exit code 3 if the job ended without completing, 1 if it is open.
    """
    from vigil.client import JobFailed

    with api_client() as client:
        try:
            job_result = client.result(job_id)
        except JobFailed as failure:
            raise fail(str(failure), EXIT_FAILED) from failure
    print_json(job_result)


@app.command()
def cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """Cancel a job. A running job is asked to stop; any other job ends at once."""
    with api_client() as client:
        job = client.cancel(job_id)
    suffix = " It was asked to cancel." if job["status"] == "running" else ""
    _print_status(job, as_json, suffix)


@app.command()
def retry(job_id: JobId, as_json: AsJson = False) -> None:
    """Retry a failed, cancelled or skipped job."""
    with api_client() as client:
        job = client.retry(job_id)
    _print_status(job, as_json)


@app.command()
def wait(
    job_ids: Annotated[list[str], typer.Argument(metavar="JOB_ID...", help="The ids of the jobs.", show_default=False)],
    timeout: Annotated[
        float | None, typer.Option(help="The longest time to wait, in seconds.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Wait until jobs have ended.

    Exit code 0 if all completed, 3 if one ended without completing, 4 at the timeout.
    """
    with api_client() as client:
        options = {"get_fields": {"status": None}}
        result = client.wait({"wait_on": dict.fromkeys(job_ids), "wait_options": options}, timeout=timeout)
    ended = {job_id: values["status"] for job_id, values in result["waited_jobs"].items()}
    if as_json:
        print_json(result)
    else:
        for job_id in job_ids:
            console.print(
                f"{escape(job_id)} {styled(ended.get(job_id, 'has not ended'))}", highlight=False, soft_wrap=True
            )
    if any(status != "completed" for status in ended.values()):
        raise typer.Exit(EXIT_FAILED)
    if ended.keys() != set(job_ids):
        raise typer.Exit(EXIT_TIMED_OUT)


def _table(jobs: list[Json]) -> Table:
    columns = ("status", "job id", "type", "name", "queue", "stage", "progress", "created")
    table = Table(*(Column(name, overflow="fold") for name in columns), box=None)
    for job in jobs:
        table.add_row(
            styled(job["status"]),
            job["job_id"],
            escape(job["job_type"]),
            escape(job["name"] or ""),
            escape(job["queue"]),
            escape(job["job_stage"]),
            f"{job['progress']:.0%}",
            job["created_at"],
        )
    return table


def _print_status(job: Json, as_json: bool, suffix: str = "") -> None:
    if as_json:
        print_json(job)
    else:
        console.print(f"{job['job_id']} is {styled(job['status'])}.{suffix}", highlight=False, soft_wrap=True)


def styled(status: str) -> str:
    """Return a status in its colour, as Rich markup."""
    style = _STYLES.get(status)
    return f"[{style}]{status}[/]" if style else status


def _read_json(source: str) -> Any:
    """Read the JSON of an option. End the command if it is invalid."""
    try:
        if source == "-":
            text = sys.stdin.read()
        elif source.startswith("@"):
            text = Path(source[1:]).read_text(encoding="utf-8")
        else:
            text = source
        return parse_json(text)
    except OSError as error:
        raise fail(f"--payload: {error}", 2) from error
    except ValueError as error:
        raise fail(f"--payload is not JSON: {error}", 2) from error


def _parse_field(text: str) -> tuple[str, Any]:
    """Parse NAME=VALUE. A value that is not JSON is text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise fail(f"--field takes NAME=VALUE, not {text}.", 2)
    try:
        return name, parse_json(value)
    except ValueError:
        return name, value


def _parse_time(text: str) -> datetime:
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError as error:
        raise fail(f"--at takes a time such as 2026-01-31T09:30:00Z, not {text}.", 2) from error
    # Without a time zone it is local time.
    return parsed.astimezone()
