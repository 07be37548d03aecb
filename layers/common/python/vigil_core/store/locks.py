"""Holds: which job has a `unique_key` or a mutex, and who stands in line for a mutex.

Nothing releases a hold: it is taken over once its holder has ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from vigil_core.domain.jobs.job import Job
from vigil_core.store import keys
from vigil_core.store.table import ABSENT, PRESENT, ConditionFailed, Delete, Put, Row, Table, Update, WriteCondition

STALL_CHECK_INTERVAL = timedelta(seconds=60)
"""How often the sweeper sees whether a line has come to a standstill."""


@dataclass(frozen=True, kw_only=True)
class Lock:
    """Who has a hold. Whatever happens to it raises `counter`, so that of two who saw the same only one can act.

    `contested`: somebody stands in line for it, or has done so lately.
    """

    kind: keys.LockKind
    name: str
    job_id: str
    counter: int
    has_mutex_queue: bool


@dataclass(frozen=True, kw_only=True)
class LockAcquisition:
    """The wish to take a hold that was seen with this counter; 0 when nobody ever had it. `due` keeps a contested one
    on the sweeper's list."""

    kind: keys.LockKind
    name: str
    seen_counter: int
    due: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class QueueEntry:
    """A job's place in line."""

    position: int
    job_id: str


class LockStore:
    """Reads holds and keeps the order in line; holds are taken in the transaction that stores their job."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def find(self, namespace: str, kind: keys.LockKind, name: str) -> Lock | None:
        """Who has it, consistently; None when nobody ever had."""
        row = self._table.get(keys.lock(namespace, kind, name))
        if row is None:
            return None
        return Lock(kind=kind, name=name, job_id=row["job_id"], counter=row["counter"], has_mutex_queue="g1pk" in row)

    def next_position(self, namespace: str, name: str, *, now: datetime) -> int:
        """A place in line behind everybody's who has one: from now on the mutex is contested. Raises ConditionFailed
        when nobody ever had it."""
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
        """Who is next, consistently."""
        rows = self._table.query_page(keys.mutex_queue(namespace, name), limit=1).rows
        return QueueEntry(position=int(rows[0]["sk"]), job_id=rows[0]["job_id"]) if rows else None

    def remove_queue_entry(self, namespace: str, name: str, entry: QueueEntry) -> None:
        """Forget a place whose job no longer wants it."""
        self._table.delete(Delete(key=keys.mutex_queue_entry(namespace, name, entry.position)))

    def extend_check(self, namespace: str, lock: Lock, *, now: datetime) -> None:
        """Keep a contested mutex on the sweeper's list; nothing when somebody else has to do with it."""
        self._update_if_unchanged(
            namespace, lock, "SET g1pk = :g1pk, g1sk = :g1sk", _due_values(namespace, lock.name, now)
        )

    def mark_queue_empty(self, namespace: str, lock: Lock) -> None:
        """Nobody stands in line; nothing when somebody came since the hold was read."""
        self._update_if_unchanged(namespace, lock, "REMOVE g1pk, g1sk", {})

    def _update_if_unchanged(self, namespace: str, lock: Lock, expression: str, values: Mapping[str, str]) -> None:
        condition = _counter_is(lock.counter)
        with suppress(ConditionFailed):
            self._table.update(
                Update(
                    key=keys.lock(namespace, lock.kind, lock.name),
                    expression=expression,
                    values=values,
                    condition=condition,
                )
            )


def mutex_acquisition(namespace: str, lock: Lock, *, now: datetime) -> LockAcquisition:
    """The wish to take a mutex that others may stand in line for."""
    due = keys.due(now + STALL_CHECK_INTERVAL, "mutex", namespace, lock.name)
    return LockAcquisition(kind=lock.kind, name=lock.name, seen_counter=lock.counter, due=due)


def lock_put(job: Job, acquisition: LockAcquisition) -> Put:
    """The write by which a job takes a hold."""
    row: Row = {
        **_head(keys.lock(job.namespace, acquisition.kind, acquisition.name), "hold"),
        "job_id": job.job_id,
        "counter": acquisition.seen_counter + 1,
    }
    if acquisition.due is not None:
        row["g1pk"], row["g1sk"] = acquisition.due
    return Put(row=row, condition=ABSENT if acquisition.seen_counter == 0 else _counter_is(acquisition.seen_counter))


def queue_entry_put(job: Job, position: int) -> Put:
    """The write by which a job stands in line for its mutex."""
    key = keys.mutex_queue_entry(job.namespace, str(job.mutex_key), position)
    return Put(row={**_head(key, "place_in_line"), "job_id": job.job_id})


def _counter_is(counter: int) -> WriteCondition:
    return WriteCondition(expression="#counter = :seen", names={"#counter": "counter"}, values={":seen": counter})


def _due_values(namespace: str, name: str, now: datetime) -> dict[str, str]:
    g1pk, g1sk = keys.due(now + STALL_CHECK_INTERVAL, "mutex", namespace, name)
    return {":g1pk": g1pk, ":g1sk": g1sk}


def _head(key: keys.Key, entity: str) -> Row:
    return {"pk": key.pk, "sk": key.sk, "entity": entity, "schema_version": 1}
