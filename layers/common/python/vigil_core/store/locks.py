"""Locks: the owners of unique keys and mutexes, and the mutex queues.

No process releases a lock: another job acquires it after its owner has ended.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.retention import OPEN_JOB_TTL
from vigil_core.domain.timestamps import to_epoch_s
from vigil_core.store import keys
from vigil_core.store.table import ABSENT, PRESENT, ConditionFailed, Delete, Put, Row, Table, Update, WriteCondition

STALL_CHECK_INTERVAL = timedelta(seconds=60)
"""The interval at which the sweeper checks a contested mutex for a stalled queue."""


@dataclass(frozen=True, kw_only=True)
class Lock:
    """A unique key or a mutex with its owner.

    Every acquisition and every new queue entry increments `counter`. Writes are conditional on the counter that was
    read, so of two processes that read the same lock only one can change it.

    Attributes:
        kind: Unique key or mutex.
        name: The key.
        job_id: The owner.
        counter: The number of changes.
        has_mutex_queue: The mutex queue has entries, or had entries a short time ago.
        ttl: The time in seconds after which DynamoDB removes the lock.
    """

    kind: keys.LockKind
    name: str
    job_id: str
    counter: int
    has_mutex_queue: bool
    ttl: int


@dataclass(frozen=True, kw_only=True)
class LockAcquisition:
    """A lock that a job acquires, if its counter is unchanged.

    Attributes:
        kind: Unique key or mutex.
        name: The key.
        seen_counter: The counter that was read; 0 if the lock does not exist.
        due: The keys of index `due` that keep a contested mutex visible to the sweeper.
    """

    kind: keys.LockKind
    name: str
    seen_counter: int
    due: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class QueueEntry:
    """A job in a mutex queue, with its mutex position."""

    position: int
    job_id: str


class LockStore:
    """Reader of locks, and keeper of the order of mutex queues.

    A job acquires its locks in the transaction that writes the job.
    """

    def __init__(self, table: Table) -> None:
        self._table = table

    def find(self, namespace: str, kind: keys.LockKind, name: str) -> Lock | None:
        """Read a lock with a strongly consistent read; return None if no job has ever acquired it."""
        row = self._table.get(keys.lock(namespace, kind, name))
        if row is None:
            return None
        return Lock(
            kind=kind,
            name=name,
            job_id=row["job_id"],
            counter=row["counter"],
            has_mutex_queue="g1pk" in row,
            ttl=int(row.get("ttl", 0)),
        )

    def next_position(self, namespace: str, name: str, *, now: datetime) -> int:
        """Allocate the last mutex position, which makes the mutex contested.

        Raises:
            ConditionFailed: No job has ever acquired the mutex.
        """
        row = self._table.update(
            Update(
                key=keys.lock(namespace, "mutex", name),
                expression="SET g1pk = :g1pk, g1sk = :g1sk ADD #counter :one",
                names={"#counter": "counter"},
                values={":one": 1, **_due_values(namespace, name, now)},
                condition=PRESENT,
            )
        )
        return int(row["counter"])

    def first_queued(self, namespace: str, name: str) -> QueueEntry | None:
        """Read the first entry of a mutex queue with a strongly consistent read."""
        rows = self._table.query_page(keys.mutex_queue(namespace, name), limit=1).rows
        return QueueEntry(position=int(rows[0]["sk"]), job_id=rows[0]["job_id"]) if rows else None

    def remove_queue_entry(self, namespace: str, name: str, entry: QueueEntry) -> None:
        """Remove a queue entry whose job no longer needs the mutex."""
        self._table.delete(Delete(key=keys.mutex_queue_entry(namespace, name, entry.position)))

    def extend_check(self, namespace: str, lock: Lock, *, now: datetime) -> None:
        """Postpone the next check of a contested mutex; do nothing if another process changed the lock.

        The same write extends the TTL, because the positions of queued jobs come from the counter of the lock.
        """
        ttl = max(lock.ttl, to_epoch_s(now + OPEN_JOB_TTL))
        values = {**_due_values(namespace, lock.name, now), ":ttl": ttl}
        self._update_if_unchanged(namespace, lock, "SET g1pk = :g1pk, g1sk = :g1sk, #ttl = :ttl", values)

    def mark_queue_empty(self, namespace: str, lock: Lock) -> None:
        """Record that the mutex queue is empty; do nothing if a job entered it after the lock was read."""
        self._update_if_unchanged(namespace, lock, "REMOVE g1pk, g1sk", {})

    def _update_if_unchanged(self, namespace: str, lock: Lock, expression: str, values: Mapping[str, Any]) -> None:
        condition = _counter_is(lock.counter)
        with suppress(ConditionFailed):
            self._table.update(
                Update(
                    key=keys.lock(namespace, lock.kind, lock.name),
                    expression=expression,
                    names={"#ttl": "ttl"} if "#ttl" in expression else {},
                    values=values,
                    condition=condition,
                )
            )


def mutex_acquisition(namespace: str, lock: Lock, *, now: datetime) -> LockAcquisition:
    """Build the acquisition of a mutex that may have a queue."""
    due = keys.due(now + STALL_CHECK_INTERVAL, "mutex", namespace, lock.name)
    return LockAcquisition(kind=lock.kind, name=lock.name, seen_counter=lock.counter, due=due)


def lock_put(job: Job, acquisition: LockAcquisition, *, ttl: int) -> Put:
    """Build the write of a lock with its owner, which expires with the side rows of the owner."""
    row: Row = {
        **_head(keys.lock(job.namespace, acquisition.kind, acquisition.name), "lock"),
        "job_id": job.job_id,
        "counter": acquisition.seen_counter + 1,
        "ttl": ttl,
    }
    if acquisition.due is not None:
        row["g1pk"], row["g1sk"] = acquisition.due
    return Put(row=row, condition=ABSENT if acquisition.seen_counter == 0 else _counter_is(acquisition.seen_counter))


def queue_entry_put(job: Job, position: int, *, ttl: int) -> Put:
    """Build the write that adds a job to the queue of its mutex."""
    key = keys.mutex_queue_entry(job.namespace, str(job.mutex.key), position)
    return Put(row={**_head(key, "mutex_entry"), "job_id": job.job_id, "ttl": ttl})


def ttl_extensions(job: Job, *, ttl: int, acquired: Collection[tuple[keys.LockKind, str]] = ()) -> list[Update]:
    """Build the updates that let the locks and the queue entry of a job live as long.

    Args:
        job: The job.
        ttl: The TTL of the job's side rows.
        acquired: The locks that the write of the job acquires with this TTL.
    """
    names: tuple[tuple[keys.LockKind, str | None], ...] = (("unique", job.unique_key), ("mutex", job.mutex.key))
    updates = [
        _ttl_update(keys.lock(job.namespace, kind, name), job, ttl)
        for kind, name in names
        if name is not None and (kind, name) not in acquired
    ]
    if job.mutex.key is not None and job.mutex.position is not None:
        updates.append(_ttl_update(keys.mutex_queue_entry(job.namespace, job.mutex.key, job.mutex.position), job, ttl))
    return updates


def _ttl_update(key: keys.Key, job: Job, ttl: int) -> Update:
    """Build an update of the TTL of a row that still belongs to the job."""
    condition = WriteCondition(expression="job_id = :job_id AND #ttl < :ttl", values={":job_id": job.job_id})
    return Update(
        key=key, expression="SET #ttl = :ttl", names={"#ttl": "ttl"}, values={":ttl": ttl}, condition=condition
    )


def _counter_is(counter: int) -> WriteCondition:
    return WriteCondition(expression="#counter = :seen", names={"#counter": "counter"}, values={":seen": counter})


def _due_values(namespace: str, name: str, now: datetime) -> dict[str, str]:
    g1pk, g1sk = keys.due(now + STALL_CHECK_INTERVAL, "mutex", namespace, name)
    return {":g1pk": g1pk, ":g1sk": g1sk}


def _head(key: keys.Key, entity: str) -> Row:
    return {"pk": key.pk, "sk": key.sk, "entity": entity, "schema_version": 1}
