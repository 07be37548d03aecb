"""The slots of work that takes long: a namespace has a limited number of them for each kind of work."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias
from zlib import crc32

from vigil_core.store import keys
from vigil_core.store.slot_rows import (
    SLOTS_PER_ROW,
    Slot,
    acquire_slot,
    free_slots,
    owners,
    release_slot,
    slot_of_owner,
)
from vigil_core.store.table import ConditionFailed, Row, Table, query_all

WorkKind: TypeAlias = Literal["webhooks"]
EXECUTOR_CALLS: Final = "executor_calls"

MAX_CALL_ROWS = 32
"""The rows of executor calls: a limit over 1,024 calls counts as 1,024."""
_KNOWN_FOR = timedelta(seconds=1)
"""The time for which a process remembers that no slot was free."""


class WorkSlotStore:
    """The slots of namespaces: one row for each namespace and kind of work, several for the calls of executors."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._full_until: dict[tuple[str, str], datetime] = {}

    def acquire(
        self, namespace: str, kind: WorkKind, *, limit: int, owner: str, until: datetime, now: datetime
    ) -> Slot | None:
        """Acquire a slot, or return None if the namespace has all slots of its limit in use.

        1. Read the row. If no slot is free, nothing is written.
        2. Write a free slot, on the condition that it is still free. If another process was faster, the error shows the
           row, and the next free slot is tried.

        Args:
            namespace: The namespace of the work.
            kind: The kind of the work.
            limit: The number of slots, at most `SLOTS_PER_ROW`.
            owner: A name of the work that is unique in the namespace and kind.
            until: The time at which the slot becomes free by itself.
            now: The current time.
        """
        return self._acquire_in(keys.work_slots(namespace, kind), limit, owner, until, now)

    def acquire_call(self, namespace: str, *, limit: int, owner: str, until: datetime, now: datetime) -> Slot | None:
        """Acquire a slot for a call of an executor. The slots are spread over rows."""
        for row in _rows_of(owner, min(-(-limit // SLOTS_PER_ROW), MAX_CALL_ROWS)):
            key = keys.work_slots(namespace, f"{EXECUTOR_CALLS}#{row}")
            slot = self._acquire_in(key, limit - row * SLOTS_PER_ROW, owner, until, now)
            if slot is not None:
                return slot
        return None

    def release_call(self, namespace: str, *, owner: str) -> None:
        """Free the slot of a call. The rows are read with one query."""
        for row in query_all(self._table, keys.work_slots(namespace, "").pk, begins=f"{EXECUTOR_CALLS}#"):
            if (slot := slot_of_owner(row, owner)) is not None:
                self.release(slot)
                return

    def calls_in_flight(self, namespace: str, now: datetime) -> int:
        """Count the calls of executors that have a slot."""
        rows = query_all(self._table, keys.work_slots(namespace, "").pk, begins=f"{EXECUTOR_CALLS}#")
        return sum(len(owners(row, now)) for row in rows)

    def is_known_as_full(self, namespace: str, queue: str, now: datetime) -> bool:
        """Return whether this process has just found no free slot for a call of a queue's job."""
        return now < self._full_until.get((namespace, queue), now)

    def remember_full(self, namespace: str, queue: str, now: datetime) -> None:
        """Record that no slot was free for a call of a queue's job."""
        if len(self._full_until) > 1_000:
            self._full_until.clear()
        self._full_until[namespace, queue] = now + _KNOWN_FOR

    def _acquire_in(self, key: keys.Key, limit: int, owner: str, until: datetime, now: datetime) -> Slot | None:
        row: Row = self._table.get(key) or {}
        slots = min(limit, SLOTS_PER_ROW)
        for _ in range(slots):
            free = free_slots(row, slots, now)
            if not free:
                return None
            try:
                slot, _ = acquire_slot(
                    self._table, key, free[0], entity="work_slots", owner=owner, until=until, now=now
                )
            except ConditionFailed as error:
                row = error.old or {}
            else:
                return slot
        return None

    def release(self, slot: Slot) -> None:
        """Free a slot, unless another process has acquired it after its end."""
        release_slot(self._table, slot)


def _rows_of(owner: str, rows: int) -> Iterator[int]:
    """Yield all row numbers, beginning with that of the owner."""
    first = crc32(owner.encode())
    return ((first + offset) % rows for offset in range(rows))
