"""The matcher: a job has changed, who waited for that? Every record may come twice, late, or to two at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeAlias, TypeVar

from vigil_core.domain.exact_json import JsonValue, dumps
from vigil_core.domain.jobs.dependencies import Dependent
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.waits.wait import EntryOutcome, WaitEntry, is_newer_than
from vigil_core.runtime.tracing import ids_of
from vigil_core.services.context import DispatchesJobs, UsesBatches, UsesListing, UsesMessageQueues, UsesWaits
from vigil_core.services.executors.dispatch import dispatch
from vigil_core.services.jobs import batches
from vigil_core.services.jobs.dependencies import on_dependency_finished, register_with_dependencies
from vigil_core.services.locks import promote_next_waiter
from vigil_core.services.ports import FanOutMessage
from vigil_core.services.timers import start_job_timer
from vigil_core.services.waits.resolve import outcome_of, resolve
from vigil_core.services.workflows.advance import on_jobs_changed, on_run_changed
from vigil_core.store.jobs.job_rows import job_from_row, job_to_row
from vigil_core.store.stream import StreamRecord, job_version_of


class MatcherContext(DispatchesJobs, UsesBatches, UsesWaits, UsesListing, UsesMessageQueues, Protocol):
    """What this module uses of the outside world."""


T = TypeVar("T")

MAX_INLINE_WAITS = 200
"""Up to so many waits on one job are matched at once; `fan_out` handles more, so that the stream goes on."""
MAX_MESSAGE_BYTES = 200 * 1024
"""What a message for the fan-out function carries at most (SQS: 256 KB)."""

JobKey: TypeAlias = tuple[str, str]
"""(namespace, job id)"""


@dataclass(frozen=True, kw_only=True)
class WaitMatch:
    """An entry that a version of its job decides."""

    namespace: str
    entry: WaitEntry
    outcome: EntryOutcome


@dataclass(frozen=True, kw_only=True)
class MatchResult:
    """What versions of a job decide: entries of waits, and dependents that hear of its end."""

    wait_matches: list[WaitMatch]
    finished: list[tuple[Dependent, Job]]


class MatchFailed(Exception):
    """Some jobs of a batch could not be matched; what was matched stays, and all of it can be repeated."""

    def __init__(self, errors: Mapping[JobKey, Exception]) -> None:
        super().__init__(f"{len(errors)} jobs could not be matched, the first because: {next(iter(errors.values()))!r}")
        self.errors = errors


def match_versions(ctx: MatcherContext, versions: Iterable[Job]) -> None:
    """Resolve every wait that these versions decide, versions of one job in their order.

    Raises:
        MatchFailed: naming the jobs whose versions have to come again.
    """
    versions_by_job: dict[JobKey, list[Job]] = {}
    for job in versions:
        versions_by_job.setdefault((job.namespace, job.job_id), []).append(job)
    errors: dict[JobKey, Exception] = {}
    results = ctx.in_parallel(
        lambda key: _isolate(errors, [key], lambda: _find_matches(ctx, versions_by_job[key])), versions_by_job
    )
    _record_outcomes(
        ctx, [wait_match for result in results if result is not None for wait_match in result.wait_matches], errors
    )
    for result in results:
        if result is not None:
            _notify_dependents(ctx, result.finished, errors)
    for (key, job_versions), result in zip(versions_by_job.items(), results, strict=True):
        if key not in errors and result is not None:
            _isolate(errors, [key], lambda versions=job_versions: _purge_deleted_job(ctx, versions))  # type: ignore[misc]
    if errors:
        raise MatchFailed(errors)


def match_records(ctx: MatcherContext, records: Sequence[StreamRecord]) -> dict[str, Exception]:
    """Match a batch of the stream's records of jobs and runs; what failed, by sequence number, has to be delivered
    again."""
    failed: dict[str, Exception] = {}
    versions: dict[str, Job] = {}
    for record in records:
        with _attribute_failure(failed, record.sequence_number):
            if (row := record.new()) is not None and row["entity"] == "run":
                on_run_changed(ctx, row, record.old())
            elif (version_pair := job_version_of(record)) is not None:
                job, previous = version_pair
                versions[record.sequence_number] = job
                start_job_timer(ctx, job, previous)
    latest_numbers = {(job.namespace, job.job_id): sequence_number for sequence_number, job in versions.items()}
    ctx.in_parallel(lambda number: _handle_job_change(ctx, number, versions[number], failed), latest_numbers.values())
    jobs_by_run = group_by_run(versions[number] for number in latest_numbers.values())
    ctx.in_parallel(lambda run: _advance_run(ctx, *run, jobs_by_run[run], latest_numbers, failed), jobs_by_run)
    try:
        match_versions(ctx, versions.values())
    except MatchFailed as error:
        for sequence_number, job in versions.items():
            if (reason := error.errors.get((job.namespace, job.job_id))) is not None:
                failed[sequence_number] = reason
    return failed


def handle_job_change(ctx: MatcherContext, job: Job) -> None:
    """What follows from a job as it is now, besides that others waited for what it is."""
    if job.dispatchable:
        dispatch(ctx, job.namespace, job.job_id, actor="matcher")
    if job.awaits_dependencies:
        register_with_dependencies(ctx, job)
    if job.affects_mutex:
        promote_next_waiter(ctx, job.namespace, str(job.mutex.key), actor="matcher")
    if job.affects_batch and job.batch.is_batch:
        batches.on_batch_changed(ctx, job)
    elif job.affects_batch:
        batches.on_item_ended(ctx, job)


def group_by_run(versions: Iterable[Job]) -> dict[tuple[str, str], list[Job]]:
    """Versions of jobs that concern runs, by (namespace, workflow id)."""
    jobs_by_run: dict[tuple[str, str], list[Job]] = {}
    for job in versions:
        if job.affects_run and job.workflow.workflow_id is not None:
            jobs_by_run.setdefault((job.namespace, job.workflow.workflow_id), []).append(job)
    return jobs_by_run


def _advance_run(
    ctx: MatcherContext,
    namespace: str,
    workflow_id: str,
    jobs: Sequence[Job],
    latest_numbers: Mapping[JobKey, str],
    failed: dict[str, Exception],
) -> None:
    try:
        on_jobs_changed(ctx, namespace, workflow_id, jobs)
    except Exception as error:
        for job in jobs:
            failed.setdefault(latest_numbers[job.namespace, job.job_id], error)


def _handle_job_change(ctx: MatcherContext, sequence_number: str, job: Job, failed: dict[str, Exception]) -> None:
    with _attribute_failure(failed, sequence_number):
        handle_job_change(ctx, job)


def match_bulk(ctx: MatcherContext, message: Mapping[str, JsonValue], *, has_time_left: Callable[[], bool]) -> bool:
    """Work off one message of `_queue_up`: all waits on one job, however many. False when time ran out before the end;
    then the message has to come again, and what is done is not done twice."""
    rows = message["rows"]
    assert isinstance(rows, Sequence)
    versions = [job_from_row(dict(row)) for row in rows if isinstance(row, Mapping)]
    namespace, job_id = versions[0].namespace, versions[0].job_id
    cursor = None
    while True:
        page = ctx.waits.entries_of_job(namespace, job_id, limit=MAX_INLINE_WAITS, cursor=cursor)
        errors: dict[JobKey, Exception] = {}
        _record_outcomes(ctx, _match_entries(ctx, page.entries, versions), errors)
        _notify_dependents(ctx, _match_dependents(page.dependents, versions), errors)
        if errors:
            raise MatchFailed(errors)
        if page.cursor is None:
            _purge_deleted_job(ctx, versions)
            ctx.waits.close_backlog(namespace, job_id, versions[-1].version)
            return True
        if not has_time_left():
            return False
        cursor = page.cursor


def _find_matches(ctx: MatcherContext, versions: Sequence[Job]) -> MatchResult | None:
    """What these versions of a job decide; None when that is left to `fan_out`. Whoever waits for a job marks it first,
    and then looks at it himself."""
    if not any(job.has_waits for job in versions):
        return MatchResult(wait_matches=[], finished=[])
    namespace, job_id = versions[0].namespace, versions[0].job_id
    page = ctx.waits.entries_of_job(namespace, job_id, limit=MAX_INLINE_WAITS + 1)
    if page.has_backlog or page.cursor is not None:
        _enqueue_bulk_match(ctx, versions)
        return None
    return MatchResult(
        wait_matches=_match_entries(ctx, page.entries, versions), finished=_match_dependents(page.dependents, versions)
    )


def _purge_deleted_job(ctx: MatcherContext, versions: Sequence[Job]) -> None:
    """Of a deleted job, whose last version was matched, only the tombstone is kept."""
    if versions[-1].deleted:
        ctx.jobs.purge(versions[-1])


def _match_entries(ctx: MatcherContext, entries: Iterable[WaitEntry], versions: Sequence[Job]) -> list[WaitMatch]:
    """For each entry the first of these versions that decides it, if any does."""
    wait_matches: list[WaitMatch] = []
    for entry in entries:
        for job in versions:
            outcome = outcome_of(ctx, entry, job) if is_newer_than(entry, job) else None
            if outcome is not None:
                wait_matches.append(WaitMatch(namespace=job.namespace, entry=entry, outcome=outcome))
                break
    return wait_matches


def _match_dependents(dependents: Iterable[Dependent], versions: Sequence[Job]) -> list[tuple[Dependent, Job]]:
    """For each dependent the first of these versions that tells of the job's end, if any does."""
    finished: list[tuple[Dependent, Job]] = []
    for dependent in dependents:
        ended_versions = (job for job in versions if job.ended and job.version > dependent.known_version)
        finished += [(dependent, job) for job in islice(ended_versions, 1)]
    return finished


def _notify_dependents(
    ctx: MatcherContext, finished: Sequence[tuple[Dependent, Job]], errors: dict[JobKey, Exception]
) -> None:
    """Have jobs hear of the end of one that they depend on, then forget that they wait for it."""

    def notify(pair: tuple[Dependent, Job]) -> None:
        dependent, job = pair

        def work() -> None:
            on_dependency_finished(ctx, dependent, job)
            ctx.dependencies.remove_dependent(job.namespace, job.job_id, dependent)

        _isolate(errors, [(job.namespace, job.job_id)], work)

    ctx.in_parallel(notify, finished)


def _record_outcomes(ctx: MatcherContext, wait_matches: Sequence[WaitMatch], errors: dict[JobKey, Exception]) -> None:
    """Hand each wait its outcomes, all of a batch in one go, then forget the entries."""
    matches_by_wait: dict[tuple[str, str], list[WaitMatch]] = {}
    for wait_match in wait_matches:
        matches_by_wait.setdefault((wait_match.namespace, wait_match.entry.wait_id), []).append(wait_match)

    def record(wait_key: tuple[str, str]) -> None:
        group = matches_by_wait[wait_key]
        job_keys = [(s.namespace, s.outcome.job_id) for s in group]
        _isolate(errors, job_keys, lambda: _record_wait_outcomes(ctx, *wait_key, group))

    ctx.in_parallel(record, matches_by_wait)


def _record_wait_outcomes(ctx: MatcherContext, namespace: str, wait_id: str, group: Sequence[WaitMatch]) -> None:
    outcomes = [wait_match.outcome for wait_match in group]
    wait = resolve(ctx, namespace, wait_id, outcomes)
    if wait is None:
        # The registrar stores a small wait after its entries: leave it the outcomes, then look whether it came by.
        for outcome in outcomes:
            ctx.waits.put_early_outcome(namespace, wait_id, outcome, now=ctx.now())
        wait = resolve(ctx, namespace, wait_id, outcomes)
    entries_of_ended_wait = (
        [(e.job_id, e.index) for e in wait.wait_on_jobs or ()] if wait is not None and wait.ended else []
    )
    entries_to_remove = {(outcome.job_id, outcome.index) for outcome in outcomes}.union(entries_of_ended_wait)
    ctx.waits.remove_entries(namespace, [(job_id, wait_id, index) for job_id, index in sorted(entries_to_remove)])


def _enqueue_bulk_match(ctx: MatcherContext, versions: Sequence[Job]) -> None:
    """Leave these versions to `fan_out`. The mark goes first: whatever comes after has to queue up behind them."""
    first = versions[0]
    ctx.waits.open_backlog(first.namespace, first.job_id, versions[-1].version, now=ctx.now())
    rows: list[str] = []
    for job in (*versions, None):
        row = (
            "" if job is None else dumps({name: value for name, value in job_to_row(job).items() if value is not None})
        )
        if rows and (job is None or sum(map(len, rows)) + len(row) > MAX_MESSAGE_BYTES):
            head = dumps({"kind": "match", **ids_of(first), "at": ctx.clock().isoformat()})
            body = f'{head[:-1]},"rows":[{",".join(rows)}]}}'
            ctx.message_queues.send_fan_out([FanOutMessage(group=f"{first.namespace}#{first.job_id}", body=body)])
            rows = []
        rows.append(row)


@contextmanager
def _attribute_failure(failed: dict[str, Exception], sequence_number: str) -> Iterator[None]:
    """What goes wrong in here has this record delivered again, and no other."""
    try:
        yield
    except Exception as error:
        failed.setdefault(sequence_number, error)


def _isolate(errors: dict[JobKey, Exception], job_keys: Iterable[JobKey], work: Callable[[], T]) -> T | None:
    """Do one job's or wait's share. What fails there must not keep the others of the batch from theirs."""
    try:
        return work()
    except Exception as error:
        for key in job_keys:
            errors.setdefault(key, error)
        return None
