"""Find stuck or inconsistent work, and repair it with the operation that should have happened originally.

Vigil recovers by itself within a minute or two. The doctor reports only problems that are older than that, so something
prevents their recovery. Index reads are eventually consistent; the doctor confirms each suspect with a consistent read
before it reports a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Literal, Protocol, TypeAlias, TypeVar

from vigil_core.domain.jobs.job import Job
from vigil_core.services import locks
from vigil_core.services.background.sweeper import SweeperContext, process_due
from vigil_core.services.jobs import dependencies
from vigil_core.services.jobs.transitions import apply_timers
from vigil_core.services.operations.dead_letters import DeadLettersContext, list_dead_letters
from vigil_core.services.operations.dead_letters import redrive as redrive_dead_letters
from vigil_core.services.parallel import POOL_THREADS
from vigil_core.services.timers import request_processing
from vigil_core.store.due_index import DueItem
from vigil_core.store.jobs.jobs import IndexedJob
from vigil_core.store.keys import DUE_PARTITIONS
from vigil_core.store.locks import STALL_CHECK_INTERVAL
from vigil_core.store.table import ConditionFailed


class DoctorContext(SweeperContext, Protocol):
    """Read access to everything that can be stuck, and what the repairs use: those of the sweeper and the matcher."""


T = TypeVar("T")

Mutex: TypeAlias = tuple[str, str]
"""(namespace, name)"""

GRACE = timedelta(minutes=3)
"""The minimum age of a problem: twice the time that a timer and a sweep need, and one minute more."""
MAX_DUE_ROWS = 10_000
"""Maximum number of rows read from one partition of the due index."""
MAX_JOBS_PER_QUEUE = 20_000
MAX_NEW_JOBS = 2_000
"""Number of the newest jobs of a namespace that are examined, whether or not an index contains them."""
MAX_FINDINGS = 1_000
READ_BATCH = 100
"""Number of jobs that one request reads."""
ACTOR = "admin"

FindingKind: TypeAlias = Literal[
    "recount",
    "wait_expiry",
    "wait_registration",
    "delivery",
    "schedule",
    "run",
    "mutex",
    "job_overdue",
    "job_not_dispatched",
    "job_misplaced",
    "job_dependencies",
    "postponed",
    "dead_letters",
    "schedule_refused",
]
_OVERDUE_TEXTS: Mapping[str, tuple[str, str]] = {
    "recount": ("the recount of the namespace is overdue", "continue it"),
    "wait_expiry": ("the wait has expired but is open", "expire it"),
    "wait_registration": ("the registration is incomplete", "resume the registration"),
    "delivery": ("the retry is overdue", "enqueue the delivery"),
    "schedule": ("the schedule is due", "request the fire"),
    "mutex": ("the sweeper did not process its queue", "process the queue"),
    "run": ("the sweeper did not process the run", "request a reconcile"),
    "postponed": ("a change cannot be processed, and later ones queue behind it", "request a retry"),
}
"""The problem and the repair hint of an overdue row, by its kind."""


class RepairIncomplete(Exception):
    """A repair ran, and a part of the problem remains."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One problem, and its repair.

    The problem has existed at least since `since`, which is None if that time is unknown.
    """

    kind: FindingKind
    namespace: str | None
    entity_id: str
    problem: str
    since: datetime | None
    repair_hint: str
    repair: Callable[[datetime], str | None] = field(compare=False, repr=False)
    """Repairs the problem before a time, and returns the outcome if that is more than "done"."""


@dataclass(frozen=True, kw_only=True)
class RepairOutcome:
    """The outcome of one repair."""

    repaired: bool
    message: str


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """The findings, and the number of due rows, queues and jobs that were examined.

    `more` is True if a limit ended the examination, so that there may be more findings.
    """

    findings: Sequence[Finding]
    due_rows: int
    queues: int
    jobs: int
    more: bool


@dataclass(kw_only=True)
class _Examination:
    """The state of an examination. Several threads add to it.

    It looks at everything older than `before`, until `is_out_of_time` returns True.
    """

    before: datetime
    is_out_of_time: Callable[[], bool]
    findings: list[Finding] = field(default_factory=list)
    mutexes: set[Mutex] = field(default_factory=set)
    namespaces: set[str] = field(default_factory=set)
    due_rows: int = 0
    queues: int = 0
    jobs: int = 0
    more: bool = False

    def bounded(self, items: Iterable[T], limit: int) -> Iterator[T]:
        """Yield at most `limit` items, and set `more` if there are others."""
        iterator = iter(items)
        yield from islice(iterator, limit)
        self.more |= next(iterator, None) is not None

    def batches(self, items: Iterable[T], size: int) -> Iterator[list[list[T]]]:
        """Yield groups of batches, one batch for each thread, until the examination must stop."""
        iterator = iter(items)
        while batches := [batch for _ in range(POOL_THREADS) if (batch := list(islice(iterator, size)))]:
            if self.must_stop():
                return
            yield batches

    def must_stop(self) -> bool:
        """Return True, and set `more`, if the time is over or there are enough findings."""
        is_over = self.is_out_of_time() or len(self.findings) > MAX_FINDINGS
        self.more |= is_over
        return is_over


def examine(ctx: DoctorContext, dead_letters: DeadLettersContext, until: datetime) -> Checkup:
    """Find all problems, until there is no time left.

    1. Read the due index: overdue rows, the namespaces with queues, and the contested mutexes.
    2. For each namespace, examine the schedules, the indexed jobs of each queue, then the newest jobs.
    3. Examine the mutexes that steps 1 and 2 found.
    4. Count the dead letters.
    """
    examination = _Examination(before=ctx.now() - GRACE, is_out_of_time=lambda: ctx.now() >= until)
    _examine_due(ctx, examination)
    for namespace in sorted(examination.namespaces):
        _examine_namespace(ctx, examination, namespace)
    for mutexes in examination.batches(sorted(examination.mutexes), 1):
        examination.findings += _drop_none(
            ctx.in_parallel(lambda batch: _check_mutex(ctx, examination, batch[0]), mutexes)
        )
    # The last finding about an entity is the most precise one, so it replaces earlier ones.
    unique_findings = list(
        {(finding.kind, finding.namespace, finding.entity_id): finding for finding in examination.findings}.values()
    )
    return Checkup(
        findings=[*unique_findings[:MAX_FINDINGS], *_drop_none([_check_dead_letters(dead_letters)])],
        due_rows=examination.due_rows,
        queues=examination.queues,
        jobs=examination.jobs,
        more=examination.more or len(unique_findings) > MAX_FINDINGS,
    )


def repair(ctx: DoctorContext, findings: Iterable[Finding], until: datetime) -> list[RepairOutcome | None]:
    """Repair findings in their order. The outcome is None for those for which no time was left."""
    remaining = list(findings)
    outcomes: list[RepairOutcome | None] = []
    while remaining and ctx.now() < until:
        outcomes += ctx.in_parallel(partial(_try_repair, until=until), remaining[:POOL_THREADS])
        del remaining[:POOL_THREADS]
    return outcomes + [None] * len(remaining)


def _examine_due(ctx: DoctorContext, examination: _Examination) -> None:
    """Find overdue rows, and collect the namespaces with queues and the contested mutexes."""
    for partition in range(DUE_PARTITIONS):
        for listed in ctx.due_index.first_queues(partition, after_namespace=None, limit=1):
            examination.namespaces.add(listed.namespace)
        due_items = ctx.due_index.overdue(partition, ctx.now() + STALL_CHECK_INTERVAL)
        for due in examination.bounded(due_items, MAX_DUE_ROWS):
            examination.due_rows += 1
            if due.kind == "schedule":
                examination.namespaces.add(due.namespace)
            if due.kind == "mutex":
                examination.mutexes.add((due.namespace, due.entity_id))
            if due.at is not None and due.at <= examination.before and not examination.must_stop():
                examination.findings.append(_overdue_finding(ctx, due))


def _overdue_finding(ctx: DoctorContext, due: DueItem) -> Finding:
    assert due.kind != "queue"
    problem, repair_hint = _OVERDUE_TEXTS[due.kind]

    def repair_due(_: datetime) -> str | None:
        if due.kind in ("schedule", "run"):
            return _request_processing(ctx, due.kind, due.namespace, due.entity_id)
        process_due(ctx, due)
        return None

    return Finding(
        kind=due.kind,
        namespace=due.namespace,
        entity_id=due.entity_id,
        problem=problem,
        since=due.at,
        repair_hint=repair_hint,
        repair=repair_due,
    )


def _examine_namespace(ctx: DoctorContext, examination: _Examination, namespace: str) -> None:
    """Examine the indexed jobs of each queue, then the newest jobs, which an index may not contain."""
    examined_ids: set[str] = set()
    examination.findings += _refused_schedules(ctx, examination, namespace)
    for queue, paused in ctx.job_queues.list_queues(namespace):
        examination.queues += 1
        indexed_ids = ctx.job_queues.indexed_jobs(namespace, queue, before=examination.before)
        bounded_ids = examination.bounded(indexed_ids, MAX_JOBS_PER_QUEUE)
        _examine_jobs(ctx, examination, namespace, bounded_ids, examined_ids, dispatched=not paused)
    newest_ids = (line.entity_id for line in ctx.listing.newest_first(namespace, "jobs") if line.entity_id)
    unexamined_ids = (job_id for job_id in islice(newest_ids, MAX_NEW_JOBS) if job_id not in examined_ids)
    _examine_jobs(ctx, examination, namespace, unexamined_ids, examined_ids, dispatched=False)


def _refused_schedules(ctx: DoctorContext, examination: _Examination, namespace: str) -> Iterator[Finding]:
    """Find the schedules whose last fire could not create its job or run."""
    after: str | None = None
    while not examination.must_stop():
        schedules, after = ctx.schedules.page(namespace, after=after, limit=READ_BATCH)
        for schedule in schedules:
            fire = schedule.last_fire
            if schedule.enabled and fire is not None and fire.outcome == "refused" and fire.error is not None:
                yield Finding(
                    kind="schedule_refused",
                    namespace=namespace,
                    entity_id=schedule.name,
                    problem=f"the last fire was refused: {fire.error.code}: {fire.error.message}",
                    since=fire.fired_at,
                    repair_hint="correct the definition of the schedule",
                    repair=_needs_correction,
                )
        if after is None:
            return


def _needs_correction(_: datetime) -> str | None:
    raise RepairIncomplete("only a corrected definition of the schedule, or of its job type, repairs this")


def _examine_jobs(
    ctx: DoctorContext,
    examination: _Examination,
    namespace: str,
    job_ids: Iterable[str],
    examined_ids: set[str],
    *,
    dispatched: bool,
) -> None:
    """Examine jobs in parallel batches, and add their ids to `examined_ids`.

    Args:
        ctx: The collaborators.
        examination: The state of the examination.
        namespace: The namespace of the jobs.
        job_ids: The ids of the jobs.
        examined_ids: Receives the ids.
        dispatched: True if jobs with executor `lambda` or `http` should have been dispatched by now.
    """

    def find_problems(batch_ids: list[str]) -> list[Finding]:
        # First a cheap, eventually consistent read of all jobs, then a consistent read of the suspects.
        indexed_by_id = ctx.jobs.find_indexed(namespace, batch_ids, consistent=False)
        suspect_ids = [
            job_id
            for job_id, indexed in indexed_by_id.items()
            if _is_suspect(ctx, examination, indexed, dispatched=dispatched)
        ]
        confirmed = ctx.jobs.find_indexed(namespace, suspect_ids, live=True) if suspect_ids else {}
        # A job with dependencies needs up to a hundred reads, so the time is checked before each job.
        return _drop_none(
            _check_job(ctx, examination, indexed, dispatched=dispatched)
            for indexed in confirmed.values()
            if not examination.must_stop()
        )

    for batches in examination.batches(job_ids, READ_BATCH):
        for batch in batches:
            examined_ids.update(batch)
            examination.jobs += len(batch)
        for findings in ctx.in_parallel(find_problems, batches):
            examination.findings += findings


def _is_suspect(ctx: DoctorContext, examination: _Examination, indexed: IndexedJob, *, dispatched: bool) -> bool:
    job = indexed.job
    if job.mutex.position is not None:
        examination.mutexes.add((job.namespace, str(job.mutex.key)))
    return job.awaits_dependencies or _check_job(ctx, examination, indexed, dispatched=dispatched) is not None


def _check_job(
    ctx: DoctorContext, examination: _Examination, indexed: IndexedJob, *, dispatched: bool
) -> Finding | None:
    """Return the most severe problem of a job, None if it has none."""
    finding = _index_entry_finding(ctx, examination, indexed) or _overdue_job_finding(ctx, examination, indexed.job)
    if finding is not None:
        return finding
    job = indexed.job
    if dispatched and job.dispatchable and job.updated_at <= examination.before:
        return _job_finding(
            job,
            kind="job_not_dispatched",
            problem="it was not dispatched",
            since=job.updated_at,
            repair_hint="request the dispatch",
            repair=lambda _: _request_processing(ctx, "dispatch", job.namespace, job.job_id),
        )
    return _dependencies_finding(ctx, examination, job)


def _index_entry_finding(ctx: DoctorContext, examination: _Examination, indexed: IndexedJob) -> Finding | None:
    job, index_entry = indexed.job, ctx.jobs.index_entry_of(indexed.job)
    if indexed.index_entry == index_entry or job.updated_at > examination.before:
        return None
    indexed_as = "not indexed" if indexed.index_entry is None else f"indexed as {indexed.index_entry[0].split('#')[1]}"
    return _job_finding(
        job,
        kind="job_misplaced",
        problem=f"it is {job.status}, and {indexed_as} in its queue",
        since=job.updated_at,
        repair_hint="correct the index entry" if index_entry else "remove the index entry",
        repair=lambda _: _repair_index_entry(ctx, job),
    )


def _overdue_job_finding(ctx: DoctorContext, examination: _Examination, job: Job) -> Finding | None:
    due_times = (due_time for due_time in (job.due_at, job.indexed_due_at) if due_time is not None)
    due_at = min(due_times, default=None)
    if due_at is None or due_at > examination.before:
        return None
    return _job_finding(
        job,
        kind="job_overdue",
        problem=f"it is {job.status}, and its timer is overdue",
        since=due_at,
        repair_hint="apply its timers",
        repair=lambda _: apply_timers(ctx, job.namespace, job.job_id, actor=ACTOR),
    )


def _dependencies_finding(ctx: DoctorContext, examination: _Examination, job: Job) -> Finding | None:
    if not job.awaits_dependencies or job.updated_at > examination.before:
        return None
    since = dependencies.verdict_at(ctx, job)
    if since is None or since > examination.before:
        return None
    return _job_finding(
        job,
        kind="job_dependencies",
        problem="its dependencies have decided its trigger rule, and it is still waiting",
        since=since,
        repair_hint="apply its trigger rule",
        repair=lambda _: dependencies.register_with_dependencies(ctx, job),
    )


def _job_finding(
    job: Job,
    *,
    kind: FindingKind,
    problem: str,
    since: datetime,
    repair_hint: str,
    repair: Callable[[datetime], str | None],
) -> Finding:
    return Finding(
        kind=kind,
        namespace=job.namespace,
        entity_id=job.job_id,
        problem=problem,
        since=since,
        repair_hint=repair_hint,
        repair=repair,
    )


def _check_mutex(ctx: DoctorContext, examination: _Examination, mutex: Mutex) -> Finding | None:
    namespace, name = mutex
    stall = locks.find_stall(ctx, namespace, name)
    if stall is None or (stall.since is not None and stall.since > examination.before):
        return None
    return Finding(
        kind="mutex",
        namespace=namespace,
        entity_id=name,
        problem=stall.reason,
        since=stall.since,
        repair_hint="promote the first queued job",
        repair=lambda _: locks.repair_wait_queue(ctx, namespace, name, actor=ACTOR),
    )


def _check_dead_letters(ctx: DeadLettersContext) -> Finding | None:
    dead_letters = list_dead_letters(ctx)
    messages = {name: count for name, count in dead_letters.messages.items() if count}
    if not dead_letters.total and not messages:
        return None
    counts_text = ", ".join(f"{count} of {name}" for name, count in messages.items())
    return Finding(
        kind="dead_letters",
        namespace=None,
        entity_id="dead-letters",
        problem=f"{dead_letters.total} batches of stream records, dead messages: {counts_text or 'none'}",
        since=min((batch.stored_at for batch in dead_letters.batches), default=None),
        repair_hint="redrive them",
        repair=partial(_redrive, ctx),
    )


def _repair_index_entry(ctx: DoctorContext, job: Job) -> None:
    with suppress(ConditionFailed):  # A version written in the meantime has the correct index entry.
        ctx.jobs.repair_index_entry(job)


def _redrive(ctx: DeadLettersContext, until: datetime) -> str:
    report = redrive_dead_letters(ctx, until)
    message = f"{report.batches} batches handled, {sum(report.messages.values())} messages sent back"
    if report.failed or report.not_tried:
        raise RepairIncomplete(f"{message}, {len(report.failed)} failed again, {report.not_tried} not tried")
    return message


def _request_processing(
    ctx: DoctorContext, kind: Literal["dispatch", "schedule", "run"], namespace: str, entity_id: str
) -> str:
    request_processing(ctx, kind, namespace, entity_id)
    return "the sweeper was asked to do it"


def _try_repair(finding: Finding, until: datetime) -> RepairOutcome:
    try:
        return RepairOutcome(repaired=True, message=finding.repair(until) or "done")
    except RepairIncomplete as incomplete:
        return RepairOutcome(repaired=False, message=str(incomplete))
    except Exception as error:
        # One failed repair must not prevent the others. The operator reads its error in the outcome.
        return RepairOutcome(repaired=False, message=f"failed: {error!r}")


def _drop_none(findings: Iterable[Finding | None]) -> list[Finding]:
    return [finding for finding in findings if finding is not None]
