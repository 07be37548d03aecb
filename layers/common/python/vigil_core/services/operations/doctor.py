"""Look for whatever is stuck or inconsistent, and mend it by what would have been done in the first place.

Everything heals by itself, within a minute or two. What is found here has outlived that, so something keeps it from
healing; whatever is found at rest is read again, consistently, before it is told.
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
from vigil_core.services.background.sweeper import process_due
from vigil_core.services.context import (
    DispatchesJobs,
    UsesDueIndex,
    UsesListing,
    UsesMessageQueues,
    UsesParseJob,
    UsesParseRun,
    UsesSchedules,
    UsesTimers,
    UsesWaits,
    UsesWebhooks,
)
from vigil_core.services.jobs import dependencies
from vigil_core.services.jobs.transitions import apply_timers
from vigil_core.services.operations.dead_letters import DeadLetters
from vigil_core.services.parallel import POOL_THREADS
from vigil_core.services.timers import request_processing
from vigil_core.store.due_index import DueItem
from vigil_core.store.jobs.jobs import IndexedJob
from vigil_core.store.keys import DUE_PARTITIONS
from vigil_core.store.locks import STALL_CHECK_INTERVAL
from vigil_core.store.table import ConditionFailed


class DoctorContext(
    DispatchesJobs,
    UsesWaits,
    UsesListing,
    UsesDueIndex,
    UsesWebhooks,
    UsesSchedules,
    UsesMessageQueues,
    UsesTimers,
    UsesParseJob,
    UsesParseRun,
    Protocol,
):
    """What this module uses of the outside world."""


T = TypeVar("T")

Mutex: TypeAlias = tuple[str, str]
"""(namespace, name)"""

GRACE = timedelta(minutes=3)
"""Twice what the sweeper and its sweep need, and one minute more."""
MAX_DUE_ROWS = 10_000
"""Rows of one shard of index `due`."""
MAX_JOBS_PER_QUEUE = 20_000
MAX_NEW_JOBS = 2_000
"""Of the newest jobs of a namespace, which are looked at whether an index shows them or not."""
MAX_FINDINGS = 1_000
READ_BATCH = 100
"""Jobs that one request reads."""
ACTOR = "admin"

FindingKind: TypeAlias = Literal[
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
    "dead_letters",
]
_OVERDUE_TEXTS: Mapping[str, tuple[str, str]] = {
    "wait_expiry": ("its time is over, and it is still open", "end it as expired"),
    "wait_registration": ("its registration has not been finished", "go on with the registration"),
    "delivery": ("it has not been tried again when it was due", "give it to the webhooks' queue"),
    "schedule": ("its run is due", "have the sweeper run it"),
    "mutex": ("the sweeper has not looked after its line", "look after the line"),
    "run": ("the sweeper has not looked after it", "have the sweeper look after it"),
}
"""By the kind of what is due: what is wrong, and what would be done."""


class RepairIncomplete(Exception):
    """It was tried, and something is left."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it should be, and what would mend it. `since` at the latest; None when nobody knows."""

    kind: FindingKind
    namespace: str | None
    entity_id: str
    problem: str
    since: datetime | None
    repair_hint: str
    repair: Callable[[datetime], str | None] = field(compare=False, repr=False)
    """Mends it, with so much time, and says what came of it where that is more than that it was done."""


@dataclass(frozen=True, kw_only=True)
class RepairOutcome:
    """What came of mending."""

    repaired: bool
    message: str


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """What was found, in so many due rows, queues and jobs. `more`: a bound was met, and there may be more."""

    findings: Sequence[Finding]
    due_rows: int
    queues: int
    jobs: int
    more: bool


@dataclass(kw_only=True)
class _Examination:
    """A look under way: at what is older than `before`, as long as there is time. Threads note things in it."""

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
        """At most so many, noting whether there were more."""
        iterator = iter(items)
        yield from islice(iterator, limit)
        self.more |= next(iterator, None) is not None

    def batches(self, items: Iterable[T], size: int) -> Iterator[list[list[T]]]:
        """Batches, as many at a time as there are threads; none once the look has to end, noting that."""
        iterator = iter(items)
        while batches := [batch for _ in range(POOL_THREADS) if (batch := list(islice(iterator, size)))]:
            if self.must_stop():
                return
            yield batches

    def must_stop(self) -> bool:
        """Whether the time is over, or enough was found; then there is more."""
        is_over = self.is_out_of_time() or len(self.findings) > MAX_FINDINGS
        self.more |= is_over
        return is_over


class Doctor:
    """Looks at everything that the index `due` shows, and at what a namespace created last."""

    def __init__(self, ctx: DoctorContext, dead_letters: DeadLetters) -> None:
        self._ctx = ctx
        self._dead_letters = dead_letters

    def examine(self, until: datetime) -> Checkup:
        """Look for everything, as long as there is time."""
        examination = _Examination(before=self._ctx.now() - GRACE, is_out_of_time=lambda: self._ctx.now() >= until)
        self._examine_due(examination)
        for namespace in sorted(examination.namespaces):
            self._examine_namespace(examination, namespace)
        for mutexes in examination.batches(sorted(examination.mutexes), 1):
            examination.findings += _drop_none(
                self._ctx.in_parallel(lambda batch: self._check_mutex(examination, batch[0]), mutexes)
            )
        # What is said last of a thing says most.
        unique_findings = list(
            {(finding.kind, finding.namespace, finding.entity_id): finding for finding in examination.findings}.values()
        )
        return Checkup(
            findings=[*unique_findings[:MAX_FINDINGS], *_drop_none([self._check_dead_letters()])],
            due_rows=examination.due_rows,
            queues=examination.queues,
            jobs=examination.jobs,
            more=examination.more or len(unique_findings) > MAX_FINDINGS,
        )

    def repair(self, findings: Iterable[Finding], until: datetime) -> list[RepairOutcome | None]:
        """Mend each, in their order; None for those for which there was no time."""
        remaining = list(findings)
        outcomes: list[RepairOutcome | None] = []
        while remaining and self._ctx.now() < until:
            outcomes += self._ctx.in_parallel(partial(_try_repair, until=until), remaining[:POOL_THREADS])
            del remaining[:POOL_THREADS]
        return outcomes + [None] * len(remaining)

    def _examine_due(self, examination: _Examination) -> None:
        """Whatever is late; also which namespaces have queues, and which mutexes have somebody in line."""
        for shard in range(DUE_PARTITIONS):
            for due in examination.bounded(
                self._ctx.due_index.overdue(shard, self._ctx.now() + STALL_CHECK_INTERVAL), MAX_DUE_ROWS
            ):
                examination.due_rows += 1
                if due.at is None:
                    examination.namespaces.add(due.namespace)
                    continue
                if due.kind == "mutex":
                    examination.mutexes.add((due.namespace, due.entity_id))
                if due.at <= examination.before and not examination.must_stop():
                    examination.findings.append(self._overdue_finding(due))

    def _examine_namespace(self, examination: _Examination, namespace: str) -> None:
        """What the index shows of each queue, and of what is new what it may not show."""
        examined_ids: set[str] = set()
        for queue, paused in self._ctx.job_queues.list_queues(namespace):
            examination.queues += 1
            indexed_ids = self._ctx.job_queues.indexed_jobs(namespace, queue, before=examination.before)
            self._examine_jobs(
                examination,
                namespace,
                examination.bounded(indexed_ids, MAX_JOBS_PER_QUEUE),
                examined_ids,
                dispatched=not paused,
            )
        newest_ids = (line.entity_id for line in self._ctx.listing.newest_first(namespace, "jobs") if line.entity_id)
        unexamined_ids = (job_id for job_id in islice(newest_ids, MAX_NEW_JOBS) if job_id not in examined_ids)
        self._examine_jobs(examination, namespace, unexamined_ids, examined_ids, dispatched=False)

    def _overdue_finding(self, due: DueItem) -> Finding:
        assert due.kind != "queue"
        problem, repair_hint = _OVERDUE_TEXTS[due.kind]

        def repair(_: datetime) -> str | None:
            if due.kind in ("schedule", "run"):
                return self._request_processing(due.kind, due.namespace, due.entity_id)
            process_due(self._ctx, due)
            return None

        return Finding(
            kind=due.kind,
            namespace=due.namespace,
            entity_id=due.entity_id,
            problem=problem,
            since=due.at,
            repair_hint=repair_hint,
            repair=repair,
        )

    def _examine_jobs(
        self,
        examination: _Examination,
        namespace: str,
        job_ids: Iterable[str],
        examined_ids: set[str],
        *,
        dispatched: bool,
    ) -> None:
        def find_problems(batch_ids: list[str]) -> list[Finding]:
            # Twice: the first time cheaply, then exactly what seemed wrong.
            indexed_by_id = self._ctx.jobs.find_indexed(namespace, batch_ids, consistent=False)
            suspect_ids = [
                job_id
                for job_id, indexed in indexed_by_id.items()
                if self._is_suspect(examination, indexed, dispatched)
            ]
            confirmed = self._ctx.jobs.find_indexed(namespace, suspect_ids, live=True) if suspect_ids else {}
            # Those that wait for others may take long: a hundred reads each.
            return _drop_none(
                self._check_job(examination, indexed, dispatched)
                for indexed in confirmed.values()
                if not examination.must_stop()
            )

        for batches in examination.batches(job_ids, READ_BATCH):
            for batch in batches:
                examined_ids.update(batch)
                examination.jobs += len(batch)
            for findings in self._ctx.in_parallel(find_problems, batches):
                examination.findings += findings

    def _is_suspect(self, examination: _Examination, indexed: IndexedJob, dispatched: bool) -> bool:
        job = indexed.job
        if job.mutex_position is not None:
            examination.mutexes.add((job.namespace, str(job.mutex_key)))
        return job.awaits_dependencies or self._check_job(examination, indexed, dispatched) is not None

    def _check_job(self, examination: _Examination, indexed: IndexedJob, dispatched: bool) -> Finding | None:
        """What is wrong with a job, the worst first."""
        job, index_entry = indexed.job, self._ctx.jobs.index_entry_of(indexed.job)
        finding = partial(Finding, namespace=job.namespace, entity_id=job.job_id)
        if indexed.index_entry != index_entry and job.updated_at <= examination.before:
            indexed_as = (
                "not shown" if indexed.index_entry is None else f"shown as {indexed.index_entry[0].split('#')[1]}"
            )
            return finding(
                kind="job_misplaced",
                problem=f"it is {job.status}, and {indexed_as} in its queue",
                since=job.updated_at,
                repair_hint="show it where it belongs" if index_entry else "show it no longer",
                repair=lambda _: self._repair_index_entry(job),
            )
        due_at = min((moment for moment in (job.due_at, job.indexed_due_at) if moment is not None), default=None)
        if due_at is not None and due_at <= examination.before:
            return finding(
                kind="job_overdue",
                problem=f"it is {job.status}, and nobody has looked after it when it was due",
                since=due_at,
                repair_hint="do what time has brought about",
                repair=lambda _: apply_timers(self._ctx, job.namespace, job.job_id, actor=ACTOR),
            )
        if dispatched and job.dispatchable and job.updated_at <= examination.before:
            return finding(
                kind="job_not_dispatched",
                problem="nobody has set it going",
                since=job.updated_at,
                repair_hint="have the sweeper set it going",
                repair=lambda _: self._request_processing("dispatch", job.namespace, job.job_id),
            )
        if job.awaits_dependencies and job.updated_at <= examination.before:
            since = dependencies.verdict_at(self._ctx, job)
            if since is not None and since <= examination.before:
                return finding(
                    kind="job_dependencies",
                    problem="the jobs that it waits for have decided its rule, and it still waits",
                    since=since,
                    repair_hint="judge it",
                    repair=lambda _: dependencies.register_with_dependencies(self._ctx, job),
                )
        return None

    def _check_mutex(self, examination: _Examination, mutex: Mutex) -> Finding | None:
        namespace, name = mutex
        stall = locks.find_stall(self._ctx, namespace, name)
        if stall is None or (stall.since is not None and stall.since > examination.before):
            return None
        return Finding(
            kind="mutex",
            namespace=namespace,
            entity_id=name,
            problem=stall.reason,
            since=stall.since,
            repair_hint="let the first in line have it",
            repair=lambda _: locks.repair_wait_queue(self._ctx, namespace, name, actor=ACTOR),
        )

    def _check_dead_letters(self) -> Finding | None:
        dead_letters = self._dead_letters.list()
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
            repair=self._redrive,
        )

    def _repair_index_entry(self, job: Job) -> None:
        with suppress(ConditionFailed):  # A version that somebody has written meanwhile shows it where it belongs.
            self._ctx.jobs.repair_index_entry(job)

    def _redrive(self, until: datetime) -> str:
        report = self._dead_letters.redrive(until)
        message = f"{report.batches} batches handled, {sum(report.messages.values())} messages sent back"
        if report.failed or report.not_tried:
            raise RepairIncomplete(f"{message}, {len(report.failed)} failed again, {report.not_tried} not tried")
        return message

    def _request_processing(self, kind: Literal["dispatch", "schedule", "run"], namespace: str, entity_id: str) -> str:
        request_processing(self._ctx, kind, namespace, entity_id)
        return "the sweeper was asked to"


def _try_repair(finding: Finding, until: datetime) -> RepairOutcome:
    try:
        return RepairOutcome(repaired=True, message=finding.repair(until) or "done")
    except RepairIncomplete as rest:
        return RepairOutcome(repaired=False, message=str(rest))
    except Exception as error:
        # Whatever keeps one from being mended is for the operator to know, and must not keep the others from it.
        return RepairOutcome(repaired=False, message=f"failed: {error!r}")


def _drop_none(findings: Iterable[Finding | None]) -> list[Finding]:
    return [finding for finding in findings if finding is not None]
