"""The matcher: a job has changed, who waited for that? Every record may come twice, late, or to two at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias, TypeVar

from vigil_core.domain.exact_json import JsonValue, dumps
from vigil_core.domain.jobs.dependencies import Dependent
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.waits.wait import Interest, Outcome, counts_for
from vigil_core.runtime.tracing import ids_of
from vigil_core.services.context import Context, WideWork
from vigil_core.services.executors.dispatch import dispatch
from vigil_core.services.jobs import batches as batch
from vigil_core.services.jobs.dependencies import heard, watch
from vigil_core.services.locks import hand_over
from vigil_core.services.timers import wake_for_job
from vigil_core.services.waits.resolve import outcome_of, resolve
from vigil_core.services.workflows.advance import follow_jobs, follow_run
from vigil_core.store.jobs.jobs import job_from_row, job_to_row
from vigil_core.store.stream import StreamRecord, new_version

T = TypeVar("T")

NARROW = 200
"""Up to so many waits on one job are matched at once; `fan_out` handles more, so that the stream goes on."""
MESSAGE_BYTES = 200 * 1024
"""What a message for the fan-out function carries at most (SQS: 256 KB)."""

JobKey: TypeAlias = tuple[str, str]
"""(namespace, job id)"""


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """An entry that a version of its job decides."""

    namespace: str
    interest: Interest
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What versions of a job decide: entries of waits, and dependents that hear of its end."""

    sightings: list[Sighting]
    ends_for: list[tuple[Dependent, Job]]


class MatchFailed(Exception):
    """Some jobs of a batch could not be matched; what was matched stays, and all of it can be repeated."""

    def __init__(self, errors: Mapping[JobKey, Exception]) -> None:
        super().__init__(f"{len(errors)} jobs could not be matched, the first because: {next(iter(errors.values()))!r}")
        self.errors = errors


def match(ctx: Context, versions: Iterable[Job]) -> None:
    """Resolve every wait that these versions decide, versions of one job in their order.

    Raises:
        MatchFailed: naming the jobs whose versions have to come again.
    """
    by_job: dict[JobKey, list[Job]] = {}
    for job in versions:
        by_job.setdefault((job.namespace, job.job_id), []).append(job)
    errors: dict[JobKey, Exception] = {}
    seen = ctx.in_parallel(lambda key: _guarded(errors, [key], lambda: _look(ctx, by_job[key])), by_job)
    _settle(ctx, [sighting for found in seen if found is not None for sighting in found.sightings], errors)
    for found in seen:
        if found is not None:
            _tell_dependents(ctx, found.ends_for, errors)
    for (key, job_versions), found in zip(by_job.items(), seen, strict=True):
        if key not in errors and found is not None:
            _guarded(errors, [key], lambda versions=job_versions: _bury(ctx, versions))  # type: ignore[misc]
    if errors:
        raise MatchFailed(errors)


def match_records(ctx: Context, records: Sequence[StreamRecord]) -> dict[str, Exception]:
    """Match a batch of the stream's records of jobs and runs; what failed, by sequence number, has to be delivered
    again."""
    failed: dict[str, Exception] = {}
    versions: dict[str, Job] = {}
    for record in records:
        with _owned_by(failed, record.sequence_number):
            if (row := record.new()) is not None and row["entity"] == "run":
                follow_run(ctx, row, record.old())
            elif (told := new_version(record)) is not None:
                job, before = told
                versions[record.sequence_number] = job
                wake_for_job(ctx, job, before)
    newest = {(job.namespace, job.job_id): sequence_number for sequence_number, job in versions.items()}
    ctx.in_parallel(lambda number: _attend(ctx, number, versions[number], failed), newest.values())
    by_run = of_runs(versions[number] for number in newest.values())
    ctx.in_parallel(lambda run: _follow(ctx, *run, by_run[run], newest, failed), by_run)
    try:
        match(ctx, versions.values())
    except MatchFailed as error:
        for sequence_number, job in versions.items():
            if (reason := error.errors.get((job.namespace, job.job_id))) is not None:
                failed[sequence_number] = reason
    return failed


def attend(ctx: Context, job: Job) -> None:
    """What follows from a job as it is now, besides that others waited for what it is."""
    if job.to_dispatch:
        dispatch(ctx, job.namespace, job.job_id, by="matcher")
    if job.waits_for_others:
        watch(ctx, job)
    if job.concerns_line:
        hand_over(ctx, job.namespace, str(job.mutex_key), by="matcher")
    if job.concerns_batch and job.is_batch:
        batch.follow(ctx, job)
    elif job.concerns_batch:
        batch.item_ended(ctx, job)


def of_runs(versions: Iterable[Job]) -> dict[tuple[str, str], list[Job]]:
    """Versions of jobs that concern runs, by (namespace, workflow id)."""
    found: dict[tuple[str, str], list[Job]] = {}
    for job in versions:
        if job.concerns_run and job.workflow_id is not None:
            found.setdefault((job.namespace, job.workflow_id), []).append(job)
    return found


def _follow(
    ctx: Context,
    namespace: str,
    workflow_id: str,
    jobs: Sequence[Job],
    newest: Mapping[JobKey, str],
    failed: dict[str, Exception],
) -> None:
    try:
        follow_jobs(ctx, namespace, workflow_id, jobs)
    except Exception as error:
        for job in jobs:
            failed.setdefault(newest[job.namespace, job.job_id], error)


def _attend(ctx: Context, sequence_number: str, job: Job, failed: dict[str, Exception]) -> None:
    with _owned_by(failed, sequence_number):
        attend(ctx, job)


def match_wide(ctx: Context, message: Mapping[str, JsonValue], *, still_time: Callable[[], bool]) -> bool:
    """Work off one message of `_queue_up`: all waits on one job, however many. False when time ran out before the end;
    then the message has to come again, and what is done is not done twice."""
    rows = message["rows"]
    assert isinstance(rows, Sequence)
    versions = [job_from_row(dict(row)) for row in rows if isinstance(row, Mapping)]
    namespace, job_id = versions[0].namespace, versions[0].job_id
    cursor = None
    while True:
        page = ctx.waits.interests(namespace, job_id, limit=NARROW, cursor=cursor)
        errors: dict[JobKey, Exception] = {}
        _settle(ctx, _sightings(ctx, page.interests, versions), errors)
        _tell_dependents(ctx, _ends_for(page.dependents, versions), errors)
        if errors:
            raise MatchFailed(errors)
        if page.cursor is None:
            _bury(ctx, versions)
            ctx.waits.close_backlog(namespace, job_id, versions[-1].version)
            return True
        if not still_time():
            return False
        cursor = page.cursor


def _look(ctx: Context, versions: Sequence[Job]) -> Seen | None:
    """What these versions of a job decide; None when that is left to `fan_out`. Whoever waits for a job marks it first,
    and then looks at it himself."""
    if not any(job.awaited for job in versions):
        return Seen(sightings=[], ends_for=[])
    namespace, job_id = versions[0].namespace, versions[0].job_id
    page = ctx.waits.interests(namespace, job_id, limit=NARROW + 1)
    if page.backlog or page.cursor is not None:
        _queue_up(ctx, versions)
        return None
    return Seen(sightings=_sightings(ctx, page.interests, versions), ends_for=_ends_for(page.dependents, versions))


def _bury(ctx: Context, versions: Sequence[Job]) -> None:
    """Of a deleted job, whose last version was matched, only the tombstone is kept."""
    if versions[-1].deleted:
        ctx.jobs.purge(versions[-1])


def _sightings(ctx: Context, interests: Iterable[Interest], versions: Sequence[Job]) -> list[Sighting]:
    """For each entry the first of these versions that decides it, if any does."""
    found: list[Sighting] = []
    for interest in interests:
        for job in versions:
            outcome = outcome_of(ctx, interest, job) if counts_for(interest, job) else None
            if outcome is not None:
                found.append(Sighting(namespace=job.namespace, interest=interest, outcome=outcome))
                break
    return found


def _ends_for(dependents: Iterable[Dependent], versions: Sequence[Job]) -> list[tuple[Dependent, Job]]:
    """For each dependent the first of these versions that tells of the job's end, if any does."""
    found: list[tuple[Dependent, Job]] = []
    for dependent in dependents:
        ended = (job for job in versions if job.ended and job.version > dependent.known_version)
        found += [(dependent, job) for job in islice(ended, 1)]
    return found


def _tell_dependents(ctx: Context, ends_for: Sequence[tuple[Dependent, Job]], errors: dict[JobKey, Exception]) -> None:
    """Have jobs hear of the end of one that they depend on, then forget that they wait for it."""

    def tell(each: tuple[Dependent, Job]) -> None:
        dependent, job = each

        def work() -> None:
            heard(ctx, dependent, job)
            ctx.dependencies.remove_dependent(job.namespace, job.job_id, dependent)

        _guarded(errors, [(job.namespace, job.job_id)], work)

    ctx.in_parallel(tell, ends_for)


def _settle(ctx: Context, sightings: Sequence[Sighting], errors: dict[JobKey, Exception]) -> None:
    """Hand each wait its outcomes, all of a batch in one go, then forget the entries."""
    by_wait: dict[tuple[str, str], list[Sighting]] = {}
    for sighting in sightings:
        by_wait.setdefault((sighting.namespace, sighting.interest.wait_id), []).append(sighting)

    def settle(wait: tuple[str, str]) -> None:
        group = by_wait[wait]
        jobs = [(s.namespace, s.outcome.job_id) for s in group]
        _guarded(errors, jobs, lambda: _settle_wait(ctx, *wait, group))

    ctx.in_parallel(settle, by_wait)


def _settle_wait(ctx: Context, namespace: str, wait_id: str, group: Sequence[Sighting]) -> None:
    outcomes = [sighting.outcome for sighting in group]
    wait = resolve(ctx, namespace, wait_id, outcomes)
    if wait is None:
        # The registrar stores a small wait after its entries: leave it the outcomes, then look whether it came by.
        for outcome in outcomes:
            ctx.waits.put_early_outcome(namespace, wait_id, outcome, now=ctx.now())
        wait = resolve(ctx, namespace, wait_id, outcomes)
    over = [(e.job_id, e.index) for e in wait.entries or ()] if wait is not None and wait.ended else []
    done = {(outcome.job_id, outcome.index) for outcome in outcomes}.union(over)
    ctx.waits.remove_entries(namespace, [(job_id, wait_id, index) for job_id, index in sorted(done)])


def _queue_up(ctx: Context, versions: Sequence[Job]) -> None:
    """Leave these versions to `fan_out`. The mark goes first: whatever comes after has to queue up behind them."""
    first = versions[0]
    ctx.waits.open_backlog(first.namespace, first.job_id, versions[-1].version, now=ctx.now())
    rows: list[str] = []
    for job in (*versions, None):
        row = (
            "" if job is None else dumps({name: value for name, value in job_to_row(job).items() if value is not None})
        )
        if rows and (job is None or sum(map(len, rows)) + len(row) > MESSAGE_BYTES):
            told = dumps({"kind": "match", **ids_of(first), "at": ctx.clock().isoformat()})
            body = f'{told[:-1]},"rows":[{",".join(rows)}]}}'
            ctx.queues.wide_work([WideWork(group=f"{first.namespace}#{first.job_id}", body=body)])
            rows = []
        rows.append(row)


@contextmanager
def _owned_by(failed: dict[str, Exception], sequence_number: str) -> Iterator[None]:
    """What goes wrong in here has this record delivered again, and no other."""
    try:
        yield
    except Exception as error:
        failed.setdefault(sequence_number, error)


def _guarded(errors: dict[JobKey, Exception], jobs: Iterable[JobKey], work: Callable[[], T]) -> T | None:
    """Do one job's or wait's share. What fails there must not keep the others of the batch from theirs."""
    try:
        return work()
    except Exception as error:
        for key in jobs:
            errors.setdefault(key, error)
        return None
