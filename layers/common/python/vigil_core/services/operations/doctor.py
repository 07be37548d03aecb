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
from typing import Literal, TypeAlias, TypeVar

from vigil_core.domain.jobs.job import Job
from vigil_core.services import locks as take_holds
from vigil_core.services.background.sweeper import look_after
from vigil_core.services.context import THREADS, Context
from vigil_core.services.jobs import dependencies as depend
from vigil_core.services.jobs.transitions import on_time
from vigil_core.services.operations.dead_letters import DeadLetters
from vigil_core.services.timers import request_processing
from vigil_core.store.due_index import Due
from vigil_core.store.jobs.jobs import Shown
from vigil_core.store.keys import DUE_SHARDS
from vigil_core.store.locks import LOOK_AGAIN
from vigil_core.store.table import ConditionFailed

T = TypeVar("T")

Mutex: TypeAlias = tuple[str, str]
"""(namespace, name)"""

PATIENCE = timedelta(minutes=3)
"""Twice what the sweeper and its sweep need, and one minute more."""
MOST_DUE = 10_000
"""Rows of one shard of index `due`."""
MOST_OF_A_QUEUE = 20_000
MOST_NEW = 2_000
"""Of the newest jobs of a namespace, which are looked at whether an index shows them or not."""
MOST_FOUND = 1_000
BATCH = 100
"""Jobs that one request reads."""
BY = "admin"

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
_LATE: Mapping[str, tuple[str, str]] = {
    "wait_expiry": ("its time is over, and it is still open", "end it as expired"),
    "wait_registration": ("its registration has not been finished", "go on with the registration"),
    "delivery": ("it has not been tried again when it was due", "give it to the webhooks' queue"),
    "schedule": ("its run is due", "have the sweeper run it"),
    "mutex": ("the sweeper has not looked after its line", "look after the line"),
    "run": ("the sweeper has not looked after it", "have the sweeper look after it"),
}
"""By the kind of what is due: what is wrong, and what would be done."""


class NotMended(Exception):
    """It was tried, and something is left."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it should be, and what would mend it. `since` at the latest; None when nobody knows."""

    kind: FindingKind
    namespace: str | None
    entity_id: str
    what: str
    since: datetime | None
    mend: str
    remedy: Callable[[datetime], str | None] = field(compare=False, repr=False)
    """Mends it, with so much time, and says what came of it where that is more than that it was done."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of mending."""

    mended: bool
    said: str


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """What was found, in so many due rows, queues and jobs. `more`: a bound was met, and there may be more."""

    findings: Sequence[Finding]
    due: int
    queues: int
    jobs: int
    more: bool


@dataclass(kw_only=True)
class _Look:
    """A look under way: at what is older than `before`, as long as there is time. Threads note things in it."""

    before: datetime
    time_is_over: Callable[[], bool]
    findings: list[Finding] = field(default_factory=list)
    mutexes: set[Mutex] = field(default_factory=set)
    namespaces: set[str] = field(default_factory=set)
    due: int = 0
    queues: int = 0
    jobs: int = 0
    more: bool = False

    def bounded(self, items: Iterable[T], most: int) -> Iterator[T]:
        """At most so many, noting whether there were more."""
        each = iter(items)
        yield from islice(each, most)
        self.more |= next(each, None) is not None

    def batches(self, items: Iterable[T], size: int) -> Iterator[list[list[T]]]:
        """Batches, as many at a time as there are threads; none once the look has to end, noting that."""
        each = iter(items)
        while batches := [batch for _ in range(THREADS) if (batch := list(islice(each, size)))]:
            if self.has_to_end():
                return
            yield batches

    def has_to_end(self) -> bool:
        """Whether the time is over, or enough was found; then there is more."""
        over = self.time_is_over() or len(self.findings) > MOST_FOUND
        self.more |= over
        return over


class Doctor:
    """Looks at everything that the index `due` shows, and at what a namespace created last."""

    def __init__(self, ctx: Context, dead_letters: DeadLetters) -> None:
        self._ctx = ctx
        self._dead_letters = dead_letters

    def look(self, until: datetime) -> Checkup:
        """Look for everything, as long as there is time."""
        look = _Look(before=self._ctx.now() - PATIENCE, time_is_over=lambda: self._ctx.now() >= until)
        self._look_at_due(look)
        for namespace in sorted(look.namespaces):
            self._look_at_namespace(look, namespace)
        for mutexes in look.batches(sorted(look.mutexes), 1):
            look.findings += _each(self._ctx.in_parallel(lambda batch: self._mutex(look, batch[0]), mutexes))
        # What is said last of a thing says most.
        known = list({(each.kind, each.namespace, each.entity_id): each for each in look.findings}.values())
        return Checkup(
            findings=[*known[:MOST_FOUND], *_each([self._dead()])],
            due=look.due,
            queues=look.queues,
            jobs=look.jobs,
            more=look.more or len(known) > MOST_FOUND,
        )

    def mend(self, findings: Iterable[Finding], until: datetime) -> list[Outcome | None]:
        """Mend each, in their order; None for those for which there was no time."""
        left = list(findings)
        outcomes: list[Outcome | None] = []
        while left and self._ctx.now() < until:
            outcomes += self._ctx.in_parallel(partial(_mended, until=until), left[:THREADS])
            del left[:THREADS]
        return outcomes + [None] * len(left)

    def _look_at_due(self, look: _Look) -> None:
        """Whatever is late; also which namespaces have queues, and which mutexes have somebody in line."""
        for shard in range(DUE_SHARDS):
            for due in look.bounded(self._ctx.due.overdue(shard, self._ctx.now() + LOOK_AGAIN), MOST_DUE):
                look.due += 1
                if due.at is None:
                    look.namespaces.add(due.namespace)
                    continue
                if due.kind == "mutex":
                    look.mutexes.add((due.namespace, due.entity_id))
                if due.at <= look.before and not look.has_to_end():
                    look.findings.append(self._late(due))

    def _look_at_namespace(self, look: _Look, namespace: str) -> None:
        """What the index shows of each queue, and of what is new what it may not show."""
        seen: set[str] = set()
        for queue, paused in self._ctx.job_queues.listed(namespace):
            look.queues += 1
            shown = self._ctx.job_queues.shown(namespace, queue, before=look.before)
            self._look_at_jobs(look, namespace, look.bounded(shown, MOST_OF_A_QUEUE), seen, dispatched=not paused)
        newest = (line.entity_id for line in self._ctx.listing.newest_first(namespace, "jobs") if line.entity_id)
        unseen = (job_id for job_id in islice(newest, MOST_NEW) if job_id not in seen)
        self._look_at_jobs(look, namespace, unseen, seen, dispatched=False)

    def _late(self, due: Due) -> Finding:
        assert due.kind != "queue"
        what, mend = _LATE[due.kind]

        def remedy(_: datetime) -> str | None:
            if due.kind in ("schedule", "run"):
                return self._asked(due.kind, due.namespace, due.entity_id)
            look_after(self._ctx, due)
            return None

        return Finding(
            kind=due.kind,
            namespace=due.namespace,
            entity_id=due.entity_id,
            what=what,
            since=due.at,
            mend=mend,
            remedy=remedy,
        )

    def _look_at_jobs(
        self, look: _Look, namespace: str, job_ids: Iterable[str], seen: set[str], *, dispatched: bool
    ) -> None:
        def sick(some: list[str]) -> list[Finding]:
            # Twice: the first time cheaply, then exactly what seemed wrong.
            found = self._ctx.jobs.find_shown(namespace, some, consistent=False)
            suspects = [job_id for job_id, shown in found.items() if self._suspect(look, shown, dispatched)]
            sure = self._ctx.jobs.find_shown(namespace, suspects, live=True) if suspects else {}
            # Those that wait for others may take long: a hundred reads each.
            return _each(self._job(look, shown, dispatched) for shown in sure.values() if not look.has_to_end())

        for batches in look.batches(job_ids, BATCH):
            for batch in batches:
                seen.update(batch)
                look.jobs += len(batch)
            for findings in self._ctx.in_parallel(sick, batches):
                look.findings += findings

    def _suspect(self, look: _Look, shown: Shown, dispatched: bool) -> bool:
        job = shown.job
        if job.place_in_line is not None:
            look.mutexes.add((job.namespace, str(job.mutex_key)))
        return job.waits_for_others or self._job(look, shown, dispatched) is not None

    def _job(self, look: _Look, shown: Shown, dispatched: bool) -> Finding | None:
        """What is wrong with a job, the worst first."""
        job, place = shown.job, self._ctx.jobs.place_of(shown.job)
        find = partial(Finding, namespace=job.namespace, entity_id=job.job_id)
        if shown.place != place and job.updated_at <= look.before:
            shown_as = "not shown" if shown.place is None else f"shown as {shown.place[0].split('#')[1]}"
            return find(
                kind="job_misplaced",
                what=f"it is {job.status}, and {shown_as} in its queue",
                since=job.updated_at,
                mend="show it where it belongs" if place else "show it no longer",
                remedy=lambda _: self._show(job),
            )
        due_at = min((moment for moment in (job.due_at, job.shown_due_at) if moment is not None), default=None)
        if due_at is not None and due_at <= look.before:
            return find(
                kind="job_overdue",
                what=f"it is {job.status}, and nobody has looked after it when it was due",
                since=due_at,
                mend="do what time has brought about",
                remedy=lambda _: on_time(self._ctx, job.namespace, job.job_id, by=BY),
            )
        if dispatched and job.to_dispatch and job.updated_at <= look.before:
            return find(
                kind="job_not_dispatched",
                what="nobody has set it going",
                since=job.updated_at,
                mend="have the sweeper set it going",
                remedy=lambda _: self._asked("dispatch", job.namespace, job.job_id),
            )
        if job.waits_for_others and job.updated_at <= look.before:
            since = depend.decided_since(self._ctx, job)
            if since is not None and since <= look.before:
                return find(
                    kind="job_dependencies",
                    what="the jobs that it waits for have decided its rule, and it still waits",
                    since=since,
                    mend="judge it",
                    remedy=lambda _: depend.watch(self._ctx, job),
                )
        return None

    def _mutex(self, look: _Look, mutex: Mutex) -> Finding | None:
        namespace, name = mutex
        found = take_holds.standstill(self._ctx, namespace, name)
        if found is None or (found.since is not None and found.since > look.before):
            return None
        return Finding(
            kind="mutex",
            namespace=namespace,
            entity_id=name,
            what=found.why,
            since=found.since,
            mend="let the first in line have it",
            remedy=lambda _: take_holds.clear_line(self._ctx, namespace, name, by=BY),
        )

    def _dead(self) -> Finding | None:
        letters = self._dead_letters.list()
        messages = {name: count for name, count in letters.messages.items() if count}
        if not letters.total and not messages:
            return None
        counted = ", ".join(f"{count} of {name}" for name, count in messages.items())
        return Finding(
            kind="dead_letters",
            namespace=None,
            entity_id="dead-letters",
            what=f"{letters.total} batches of stream records, dead messages: {counted or 'none'}",
            since=min((batch.stored_at for batch in letters.batches), default=None),
            mend="redrive them",
            remedy=self._redrive,
        )

    def _show(self, job: Job) -> None:
        with suppress(ConditionFailed):  # A version that somebody has written meanwhile shows it where it belongs.
            self._ctx.jobs.show_in_place(job)

    def _redrive(self, until: datetime) -> str:
        done = self._dead_letters.redrive(until)
        said = f"{done.batches} batches handled, {sum(done.messages.values())} messages sent back"
        if done.failed or done.left:
            raise NotMended(f"{said}, {len(done.failed)} failed again, {done.left} not tried")
        return said

    def _asked(self, kind: Literal["dispatch", "schedule", "run"], namespace: str, entity_id: str) -> str:
        request_processing(self._ctx, kind, namespace, entity_id)
        return "the sweeper was asked to"


def _mended(finding: Finding, until: datetime) -> Outcome:
    try:
        return Outcome(mended=True, said=finding.remedy(until) or "done")
    except NotMended as rest:
        return Outcome(mended=False, said=str(rest))
    except Exception as error:
        # Whatever keeps one from being mended is for the operator to know, and must not keep the others from it.
        return Outcome(mended=False, said=f"failed: {error!r}")


def _each(findings: Iterable[Finding | None]) -> list[Finding]:
    return [finding for finding in findings if finding is not None]
