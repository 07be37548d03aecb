"""Queues: what is ready in each, what time will change, who works on it. Index `due` shows the jobs, as hints: whoever
acts on one reads the job itself and writes on a condition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from vigil_core.domain.jobs.job import Priority
from vigil_core.domain.timestamps import from_text, to_epoch_s, to_text
from vigil_core.store import keys
from vigil_core.store.jobs.job_rows import PRIORITY_RANKS
from vigil_core.store.table import ABSENT, ConditionFailed, Put, Row, Table, Update, query_all

WORKER_TTL = timedelta(days=1)
"""A worker that has not claimed for so long is forgotten."""
CLAIM_TTL = timedelta(days=1)
COUNTED_STATUSES = ("scheduled", "waiting", "running")

Partition: TypeAlias = Callable[[str, str, int], str]
"""A partition of the index: of namespace, queue and shard."""


@dataclass(frozen=True, kw_only=True)
class ReadyJob:
    """A job that a worker may have, as the index has it. Jobs of one rank have one priority."""

    job_id: str
    rank: int


@dataclass(frozen=True, kw_only=True)
class WorkerActivity:
    """When a worker asked for jobs last, and when it was given one; None when it never was."""

    worker: str
    last_seen: datetime
    last_claim_at: datetime | None


class QueueStore:
    """The queues of every namespace. What the index shows of each is spread over partitions, one a shard."""

    def __init__(self, table: Table, *, partitions: int = 1) -> None:
        self._table = table
        self._partitions = partitions
        self._registered: set[tuple[str, str]] = set()

    def register(self, namespace: str, queue: str) -> None:
        """Have a queue listed, and looked after by the sweeper, before its first job is stored. Costs a write once a
        process and queue."""
        if (namespace, queue) in self._registered:
            return
        with suppress(ConditionFailed):
            self._table.put(Put(row=_queue_row(namespace, queue), condition=ABSENT))
        self._registered.add((namespace, queue))

    def list_queues(self, namespace: str, *, after: str | None = None) -> Iterator[tuple[str, bool]]:
        """Every queue that ever had a job or was paused, by name, and whether it is paused."""
        bounds = {} if after is None else {"between": (f"{after}\0", "\U0010ffff")}
        for row in query_all(self._table, keys.queues(namespace), **bounds):
            yield row["sk"], row.get("paused", False)

    def is_paused(self, namespace: str, queue: str) -> bool:
        """Whether the queue hands nothing out, consistently."""
        row = self._table.get(keys.queue(namespace, queue))
        return row is not None and row.get("paused", False)

    def set_paused(self, namespace: str, queue: str, paused: bool) -> None:
        """Pause or resume a queue, which need not have had a job yet."""
        self.register(namespace, queue)
        self._table.update(
            Update(key=keys.queue(namespace, queue), expression="SET paused = :paused", values={":paused": paused})
        )

    def ready(self, namespace: str, queue: str, limit: int) -> list[ReadyJob]:
        """The first jobs that workers may have: by priority, then by age."""
        rows = self._first_rows(keys.ready_jobs, namespace, queue, limit)
        return [ReadyJob(job_id=keys.job_of_queue(row["g1sk"]), rank=int(row["g1sk"].split("#")[0])) for row in rows]

    def to_dispatch(self, namespace: str, queue: str, limit: int) -> list[str]:
        """The ids of the first jobs that Vigil itself is to set going: by priority, then by age."""
        rows = self._first_rows(keys.jobs_to_dispatch, namespace, queue, limit)
        return [keys.job_of_queue(row["g1sk"]) for row in rows]

    def overdue(self, namespace: str, queue: str, status: str, now: datetime, limit: int) -> list[str]:
        """The ids of jobs of this status that time has changed by now, the longest overdue first."""
        bounds = (f"{status}#", f"{status}#{to_text(now)}~")
        rows = self._first_rows(keys.timed_jobs, namespace, queue, limit, between=bounds)
        return [keys.job_of_queue(row["g1sk"]) for row in rows]

    def running(self, namespace: str, queue: str) -> Iterator[str]:
        """The ids of running jobs that the sweeper watches: every one with a lease."""
        for row in self._all_rows(keys.timed_jobs, namespace, queue, begins="running#"):
            yield keys.job_of_queue(row["g1sk"])

    def indexed_jobs(self, namespace: str, queue: str, *, before: datetime) -> Iterator[str]:
        """The ids of jobs of a queue that the index shows, page after page: of those that time will change only what it
        has changed by then, of the waiting those that have been so since before."""
        for status in ("running", "scheduled", "waiting"):
            bounds = (f"{status}#", f"{status}#{to_text(before)}~")
            for row in self._all_rows(keys.timed_jobs, namespace, queue, between=bounds):
                yield keys.job_of_queue(row["g1sk"])
        for partition in (keys.jobs_to_dispatch, keys.ready_jobs):
            for row in self._all_rows(partition, namespace, queue):
                yield keys.job_of_queue(row["g1sk"])

    def ready_by_priority(self, namespace: str, queue: str) -> Mapping[Priority, int]:
        """How many jobs workers may have."""
        return {
            name: self._count(keys.ready_jobs, namespace, queue, f"{rank}#") for name, rank in PRIORITY_RANKS.items()
        }

    def undispatched_by_priority(self, namespace: str, queue: str) -> tuple[Mapping[Priority, int], datetime | None]:
        """How many jobs Vigil has yet to set going, and since when the oldest of them waits: usually none does, but for
        a paused queue."""
        rows = self._all_rows(keys.jobs_to_dispatch, namespace, queue)
        ranks_and_times = [(int(row["g1sk"].split("#")[0]), keys.timed_at(row["g1sk"])) for row in rows]
        counts = Counter(rank for rank, _ in ranks_and_times)
        return {name: counts[rank] for name, rank in PRIORITY_RANKS.items()}, min(
            (at for _, at in ranks_and_times), default=None
        )

    def timed_by_status(self, namespace: str, queue: str) -> Mapping[str, int]:
        """How many jobs of each other status the index shows; of the running those that have a lease or a timeout."""
        return {status: self._count(keys.timed_jobs, namespace, queue, f"{status}#") for status in COUNTED_STATUSES}

    def oldest_ready(self, namespace: str, queue: str) -> datetime | None:
        """Since when the oldest of the ready jobs has been waiting; None when none is."""
        first_rows: list[Row] = []
        for rank in PRIORITY_RANKS.values():
            first_rows += self._first_rows(keys.ready_jobs, namespace, queue, 1, begins=f"{rank}#")
        return min((keys.timed_at(row["g1sk"]) for row in first_rows), default=None)

    def ready_since(self, namespace: str, queue: str, *, before: datetime, limit: int) -> list[str]:
        """The ids of jobs that have been ready since before that time, of each priority the oldest."""
        job_ids: list[str] = []
        for rank in PRIORITY_RANKS.values():
            bounds = (f"{rank}#", f"{rank}#{to_text(before)}")
            rows = self._first_rows(keys.ready_jobs, namespace, queue, limit, between=bounds)
            job_ids += [keys.job_of_queue(row["g1sk"]) for row in rows]
        return job_ids

    def record_worker_activity(self, namespace: str, queue: str, worker: str, *, now: datetime, granted: bool) -> None:
        """A worker has asked for jobs, and was given some or not."""
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
        """The workers of the last day, by name."""
        for row in query_all(self._table, keys.workers(namespace, queue)):
            last_seen = from_text(row["last_seen"])
            if last_seen > now - WORKER_TTL:
                claimed_at = from_text(row["last_claim_at"]) if "last_claim_at" in row else None
                yield WorkerActivity(worker=row["sk"], last_seen=last_seen, last_claim_at=claimed_at)

    def candidates(self, namespace: str, queue: str, claim_id: str) -> Sequence[str] | None:
        """The jobs that a claim was about to grant; None when it has not come that far."""
        row = self._table.get(keys.claim(namespace, queue, claim_id))
        return None if row is None else tuple(row["candidates"])

    def save_candidates(
        self, namespace: str, queue: str, claim_id: str, candidates: Sequence[str], *, now: datetime
    ) -> Sequence[str]:
        """Keep what a claim is about to grant, before it does. Returns what is kept: the first to come decides."""
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
        """The first of what the index shows, of all shards together."""
        pages = (
            self._table.query_page(partition_of(namespace, queue, number), index="due", limit=limit, **bounds)
            for number in range(self._partitions)
        )
        rows = [row for page in pages for row in page.rows]
        return sorted(rows, key=lambda row: str(row["g1sk"]))[:limit]

    def _all_rows(self, partition_of: Partition, namespace: str, queue: str, **bounds: Any) -> Iterator[Row]:
        """All of what the index shows, shard after shard, page after page."""
        for number in range(self._partitions):
            yield from query_all(self._table, partition_of(namespace, queue, number), index="due", **bounds)

    def _count(self, partition_of: Partition, namespace: str, queue: str, begins: str) -> int:
        return sum(
            self._table.count(partition_of(namespace, queue, number), begins=begins, index="due")
            for number in range(self._partitions)
        )


def _queue_row(namespace: str, queue: str) -> Row:
    key = keys.queue(namespace, queue)
    g1pk, g1sk = keys.queue_due(namespace, queue)
    return {
        "pk": key.pk,
        "sk": key.sk,
        "entity": "queue",
        "schema_version": 1,
        "g1pk": g1pk,
        "g1sk": g1sk,
    }
