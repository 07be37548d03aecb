"""Queues in the table: their jobs in index `due`, their workers and their claims.

The index is eventually consistent. A function that acts on an entry reads the job itself and writes conditionally.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any, TypeAlias

from vigil_core.domain.jobs.job import Priority
from vigil_core.domain.jobs.retention import DEFAULT_RETENTION, OPEN_JOB_TTL
from vigil_core.domain.timestamps import from_text, to_epoch_s, to_text
from vigil_core.store import keys
from vigil_core.store.jobs.job_rows import PRIORITY_RANKS
from vigil_core.store.table import ABSENT, ConditionFailed, Put, Row, Table, Update, WriteCondition, query_all

WORKER_TTL = timedelta(days=1)
"""The time after the last claim for which a queue shows a worker."""
CLAIM_TTL = timedelta(days=1)
MIN_QUEUE_TTL = timedelta(days=30)
"""The life of a queue after its last job, unless the retention of jobs is longer."""
MAX_REMEMBERED_QUEUES = 10_000
COUNTED_STATUSES = ("scheduled", "waiting", "running")

Partition: TypeAlias = Callable[[str, str, int], str]
"""The key of an index partition, by namespace, queue and partition number."""


@dataclass(frozen=True, kw_only=True)
class ReadyJob:
    """A ready job in the index. `rank` is the rank of its priority."""

    job_id: str
    rank: int


@dataclass(frozen=True, kw_only=True)
class WorkerActivity:
    """The times of a worker's last claim and of its last granted claim, if any."""

    worker: str
    last_seen: datetime
    last_claim_at: datetime | None


class QueueStore:
    """Reads and writes queues. The index entries of each queue are spread over partitions."""

    def __init__(
        self,
        table: Table,
        *,
        now: Callable[[], datetime],
        retention: timedelta = DEFAULT_RETENTION,
        partitions: int = 1,
    ) -> None:
        self._table = table
        self._now = now
        self._retention = retention
        self._partitions = partitions
        self._ttls: dict[tuple[str, str], int] = {}

    def register(self, namespace: str, queue: str) -> None:
        """Store a queue before a job joins it, or extend its TTL.

        Lists show the queue, and the sweeper sweeps it. The function writes once per process, queue and day. A queue
        expires when it has had no job for `MIN_QUEUE_TTL`.
        """
        ttl = queue_ttl(self._now(), self._retention)
        if self._ttls.get((namespace, queue), 0) >= ttl:
            return
        extend_queue_ttl(self._table, namespace, queue, ttl=ttl)
        if len(self._ttls) >= MAX_REMEMBERED_QUEUES:
            self._ttls.clear()
        self._ttls[namespace, queue] = ttl

    def has_jobs(self, namespace: str, queue: str) -> bool:
        """Return whether the index has any job of a queue."""
        partitions = (keys.timed_jobs, keys.ready_jobs, keys.jobs_to_dispatch)
        return any(self._first_rows(partition_of, namespace, queue, 1) for partition_of in partitions)

    def list_queues(self, namespace: str, *, after: str | None = None) -> Iterator[tuple[str, bool]]:
        """Yield every registered queue in order of name, and whether it is paused."""
        bounds = {} if after is None else {"between": (f"{after}\0", "\U0010ffff")}
        for row in query_all(self._table, keys.queues(namespace), **bounds):
            yield row["sk"], row.get("paused", False)

    def is_paused(self, namespace: str, queue: str) -> bool:
        """Return whether a queue is paused, with a consistent read."""
        row = self._table.get(keys.queue(namespace, queue))
        return row is not None and row.get("paused", False)

    def set_paused(self, namespace: str, queue: str, paused: bool) -> None:
        """Pause or resume a queue, which may be new. A pause lasts at least a year, also without jobs."""
        self.register(namespace, queue)
        values: dict[str, Any] = {":paused": paused}
        if paused:
            values[":ttl"] = to_epoch_s(self._now() + OPEN_JOB_TTL)
        self._table.update(
            Update(
                key=keys.queue(namespace, queue),
                expression="SET paused = :paused" + (", #ttl = :ttl" if paused else ""),
                names={"#ttl": "ttl"} if paused else {},
                values=values,
            )
        )

    def ready(self, namespace: str, queue: str, limit: int) -> list[ReadyJob]:
        """Read the first ready jobs, by priority, then by age."""
        rows = self._first_rows(keys.ready_jobs, namespace, queue, limit)
        return [ReadyJob(job_id=keys.job_of_queue(row["g1sk"]), rank=int(row["g1sk"].split("#")[0])) for row in rows]

    def to_dispatch(self, namespace: str, queue: str, limit: int) -> list[str]:
        """Read the ids of the first undispatched jobs, by priority, then by age."""
        rows = self._first_rows(keys.jobs_to_dispatch, namespace, queue, limit)
        return [keys.job_of_queue(row["g1sk"]) for row in rows]

    def overdue(self, namespace: str, queue: str, status: str, now: datetime, limit: int) -> list[str]:
        """Read the ids of due jobs with this status, longest overdue first."""
        bounds = (f"{status}#", f"{status}#{to_text(now)}~")
        rows = self._first_rows(keys.timed_jobs, namespace, queue, limit, between=bounds)
        return [keys.job_of_queue(row["g1sk"]) for row in rows]

    def running(self, namespace: str, queue: str) -> Iterator[str]:
        """Yield the ids of the running jobs in the index: all with a lease or a timeout."""
        for row in self._all_rows(keys.timed_jobs, namespace, queue, begins="running#"):
            yield keys.job_of_queue(row["g1sk"])

    def indexed_jobs(self, namespace: str, queue: str, *, before: datetime) -> Iterator[str]:
        """Yield the ids of the queue's jobs in the index.

        Running and scheduled jobs are included if they were due before `before`, waiting jobs if they entered that
        status before `before`, and ready and undispatched jobs always.
        """
        for status in ("running", "scheduled", "waiting"):
            bounds = (f"{status}#", f"{status}#{to_text(before)}~")
            for row in self._all_rows(keys.timed_jobs, namespace, queue, between=bounds):
                yield keys.job_of_queue(row["g1sk"])
        for partition in (keys.jobs_to_dispatch, keys.ready_jobs):
            for row in self._all_rows(partition, namespace, queue):
                yield keys.job_of_queue(row["g1sk"])

    def ready_by_priority(self, namespace: str, queue: str) -> Mapping[Priority, int]:
        """Count the ready jobs per priority."""
        return {
            name: self._count(keys.ready_jobs, namespace, queue, f"{rank}#") for name, rank in PRIORITY_RANKS.items()
        }

    def undispatched_by_priority(self, namespace: str, queue: str) -> tuple[Mapping[Priority, int], datetime | None]:
        """Count the undispatched jobs per priority, and return the time of the oldest.

        Usually only a paused queue has any.
        """
        rows = self._all_rows(keys.jobs_to_dispatch, namespace, queue)
        ranks_and_times = [(int(row["g1sk"].split("#")[0]), keys.timed_at(row["g1sk"])) for row in rows]
        counts = Counter(rank for rank, _ in ranks_and_times)
        return {name: counts[rank] for name, rank in PRIORITY_RANKS.items()}, min(
            (at for _, at in ranks_and_times), default=None
        )

    def timed_by_status(self, namespace: str, queue: str) -> Mapping[str, int]:
        """Count the scheduled, waiting and running jobs in the index; running ones only with a lease or a timeout."""
        return {status: self._count(keys.timed_jobs, namespace, queue, f"{status}#") for status in COUNTED_STATUSES}

    def oldest_ready(self, namespace: str, queue: str) -> datetime | None:
        """Return the time of the oldest ready job; None if there is none."""
        first_rows: list[Row] = []
        for rank in PRIORITY_RANKS.values():
            first_rows += self._first_rows(keys.ready_jobs, namespace, queue, 1, begins=f"{rank}#")
        return min((keys.timed_at(row["g1sk"]) for row in first_rows), default=None)

    def ready_since(self, namespace: str, queue: str, *, before: datetime, limit: int) -> list[str]:
        """Read the ids of jobs that became ready before a time; of each priority the oldest, up to `limit`."""
        job_ids: list[str] = []
        for rank in PRIORITY_RANKS.values():
            bounds = (f"{rank}#", f"{rank}#{to_text(before)}")
            rows = self._first_rows(keys.ready_jobs, namespace, queue, limit, between=bounds)
            job_ids += [keys.job_of_queue(row["g1sk"]) for row in rows]
        return job_ids

    def record_worker_activity(self, namespace: str, queue: str, worker: str, *, now: datetime, granted: bool) -> None:
        """Record a claim of a worker and whether it was granted."""
        claimed = ", last_claim_at = :now" if granted else ""
        self._table.update(
            Update(
                key=keys.worker(namespace, queue, worker),
                expression=f"SET entity = :entity, schema_version = :one, last_seen = :now, #ttl = :ttl{claimed}",
                names={"#ttl": "ttl"},
                values={
                    ":entity": "worker",
                    ":one": 1,
                    ":now": to_text(now),
                    ":ttl": to_epoch_s(now + WORKER_TTL),
                },
            )
        )

    def workers(self, namespace: str, queue: str, *, now: datetime) -> Iterator[WorkerActivity]:
        """Yield the workers of the last day in order of name."""
        for row in query_all(self._table, keys.workers(namespace, queue)):
            last_seen = from_text(row["last_seen"])
            if last_seen > now - WORKER_TTL:
                claimed_at = from_text(row["last_claim_at"]) if "last_claim_at" in row else None
                yield WorkerActivity(worker=row["sk"], last_seen=last_seen, last_claim_at=claimed_at)

    def candidates(self, namespace: str, queue: str, claim_id: str) -> Sequence[str] | None:
        """Read the candidates of a claim; None if it has stored none yet."""
        row = self._table.get(keys.claim(namespace, queue, claim_id))
        return None if row is None else tuple(row["candidates"])

    def save_candidates(
        self, namespace: str, queue: str, claim_id: str, candidates: Sequence[str], *, now: datetime
    ) -> Sequence[str]:
        """Store the candidates of a claim before any is granted.

        Returns:
            The stored candidates. If another delivery of the same claim was first, these are its candidates.
        """
        key = keys.claim(namespace, queue, claim_id)
        row = {
            "pk": key.pk,
            "sk": key.sk,
            "entity": "claim",
            "schema_version": 1,
            "candidates": list(candidates),
            "ttl": to_epoch_s(now + CLAIM_TTL),
        }
        try:
            self._table.put(Put(row=row, condition=ABSENT))
        except ConditionFailed as error:
            return tuple(error.old["candidates"]) if error.old else tuple(candidates)
        return tuple(candidates)

    def _first_rows(self, partition_of: Partition, namespace: str, queue: str, limit: int, **bounds: Any) -> list[Row]:
        """Read the first index entries of all partitions together."""
        pages = (
            self._table.query_page(partition_of(namespace, queue, number), index="due", limit=limit, **bounds)
            for number in range(self._partitions)
        )
        rows = [row for page in pages for row in page.rows]
        return sorted(rows, key=lambda row: str(row["g1sk"]))[:limit]

    def _all_rows(self, partition_of: Partition, namespace: str, queue: str, **bounds: Any) -> Iterator[Row]:
        """Yield all index entries, partition after partition."""
        for number in range(self._partitions):
            yield from query_all(self._table, partition_of(namespace, queue, number), index="due", **bounds)

    def _count(self, partition_of: Partition, namespace: str, queue: str, begins: str) -> int:
        return sum(
            self._table.count(partition_of(namespace, queue, number), begins=begins, index="due")
            for number in range(self._partitions)
        )


def queue_ttl(now: datetime, retention: timedelta) -> int:
    """Return the TTL of a queue whose last job was created now, which changes once a day."""
    expires_on = (now + max(retention, MIN_QUEUE_TTL) + timedelta(days=1)).date()
    return to_epoch_s(datetime.combine(expires_on, time.min, tzinfo=UTC))


def extend_queue_ttl(table: Table, namespace: str, queue: str, *, ttl: int) -> None:
    """Store a queue, or extend its TTL; do nothing if it expires later anyway."""
    g1pk, g1sk = keys.queue_due(namespace, queue)
    values = {":entity": "queue", ":one": 1, ":g1pk": g1pk, ":g1sk": g1sk, ":ttl": ttl}
    with suppress(ConditionFailed):
        table.update(
            Update(
                key=keys.queue(namespace, queue),
                expression="SET entity = :entity, schema_version = :one, g1pk = :g1pk, g1sk = :g1sk, #ttl = :ttl",
                names={"#ttl": "ttl"},
                values=values,
                condition=WriteCondition(expression=f"{ABSENT.expression} OR #ttl < :ttl"),
            )
        )
