"""The slots of work that takes long: a namespace has a limited number of them for each kind of work.

A row has up to 32 slots in one write unit. The value of a slot is the end of its work and the name of its owner. A slot
whose end has passed is free, so a crashed process frees its slot by doing nothing. One write acquires a slot and one
frees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias
from zlib import crc32

from vigil_core.domain.timestamps import to_epoch_s
from vigil_core.store import keys
from vigil_core.store.table import ConditionFailed, Row, Table, Update, WriteCondition, query_all

WorkKind: TypeAlias = Literal["webhooks"]
EXECUTOR_CALLS: Final = "executor_calls"

MAX_SLOTS = 32
"""As many slots as fit into one write unit."""
MAX_CALL_ROWS = 32
"""The rows of executor calls: a limit over 1,024 calls counts as 1,024."""
_KNOWN_FOR = timedelta(seconds=1)
"""The time for which a process remembers that no slot was free."""
_TTL = timedelta(days=1)
_MS_DIGITS = 13


@dataclass(frozen=True, kw_only=True)
class WorkSlot:
    """The right to do one piece of work, until the time in `value`."""

    key: keys.Key
    attribute: str
    value: str


class WorkSlotStore:
    """The slots of namespaces: one row for each namespace and kind of work, several for the calls of executors."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._full_until: dict[tuple[str, str], datetime] = {}

    def acquire(
        self, namespace: str, kind: WorkKind, *, limit: int, owner: str, until: datetime, now: datetime
    ) -> WorkSlot | None:
        """Acquire a slot, or return None if the namespace has all slots of its limit in use.

        1. Read the row. If no slot is free, nothing is written.
        2. Write a free slot, on the condition that it is still free. If another process was faster, the error shows the
           row, and the next free slot is tried.

        Args:
            namespace: The namespace of the work.
            kind: The kind of the work.
            limit: The number of slots, at most `MAX_SLOTS`.
            owner: A name of the work that is unique in the namespace and kind.
            until: The time at which the slot becomes free by itself.
            now: The current time.
        """
        return self._acquire_in(keys.work_slots(namespace, kind), limit, owner, until, now)

    def acquire_call(
        self, namespace: str, *, limit: int, owner: str, until: datetime, now: datetime
    ) -> WorkSlot | None:
        """Acquire a slot for a call of an executor. The slots are spread over rows."""
        for row in _rows_of(owner, min(-(-limit // MAX_SLOTS), MAX_CALL_ROWS)):
            key = keys.work_slots(namespace, f"{EXECUTOR_CALLS}#{row}")
            slot = self._acquire_in(key, limit - row * MAX_SLOTS, owner, until, now)
            if slot is not None:
                return slot
        return None

    def release_call(self, namespace: str, *, owner: str) -> None:
        """Free the slot of a call. The rows are read with one query."""
        for row in query_all(self._table, keys.work_slots(namespace, "").pk, begins=f"{EXECUTOR_CALLS}#"):
            for name in map(_slot_name, range(MAX_SLOTS)):
                value = row.get(name)
                if value is not None and value[_MS_DIGITS:] == owner:
                    self.release(WorkSlot(key=keys.Key(row["pk"], row["sk"]), attribute=name, value=value))
                    return

    def calls_in_flight(self, namespace: str, now: datetime) -> int:
        """Count the calls of executors that have a slot."""
        rows = query_all(self._table, keys.work_slots(namespace, "").pk, begins=f"{EXECUTOR_CALLS}#")
        return sum(_is_used(row.get(name), now) for row in rows for name in map(_slot_name, range(MAX_SLOTS)))

    def is_known_as_full(self, namespace: str, queue: str, now: datetime) -> bool:
        """Return whether this process has just found no free slot for a call of a queue's job."""
        return now < self._full_until.get((namespace, queue), now)

    def remember_full(self, namespace: str, queue: str, now: datetime) -> None:
        """Record that no slot was free for a call of a queue's job."""
        if len(self._full_until) > 1_000:
            self._full_until.clear()
        self._full_until[namespace, queue] = now + _KNOWN_FOR

    def _acquire_in(self, key: keys.Key, limit: int, owner: str, until: datetime, now: datetime) -> WorkSlot | None:
        row: Row = self._table.get(key) or {}
        for name in map(_slot_name, range(min(limit, MAX_SLOTS))):
            if _is_used(row.get(name), now):
                continue
            slot = WorkSlot(key=key, attribute=name, value=f"{_ms(until)}{owner}")
            is_free = WriteCondition(
                expression="attribute_not_exists(#slot) OR #slot < :now", values={":now": _ms(now)}
            )
            try:
                self._table.update(
                    Update(
                        key=key,
                        expression="SET #slot = :value, entity = :entity, schema_version = :one, #ttl = :ttl",
                        names={"#slot": name, "#ttl": "ttl"},
                        values={
                            ":value": slot.value,
                            ":entity": "work_slots",
                            ":one": 1,
                            ":ttl": to_epoch_s(until + _TTL),
                        },
                        condition=is_free,
                    )
                )
            except ConditionFailed as error:
                row = error.old or {}
                continue
            return slot
        return None

    def release(self, slot: WorkSlot) -> None:
        """Free a slot, unless another process has acquired it after its end."""
        is_owned = WriteCondition(expression="#slot = :value", values={":value": slot.value})
        try:
            self._table.update(
                Update(key=slot.key, expression="REMOVE #slot", names={"#slot": slot.attribute}, condition=is_owned)
            )
        except ConditionFailed:
            return


def _rows_of(owner: str, rows: int) -> Iterator[int]:
    """Yield all row numbers, beginning with that of the owner."""
    first = crc32(owner.encode())
    return ((first + offset) % rows for offset in range(rows))


def _slot_name(number: int) -> str:
    return f"s{number}"


def _is_used(value: str | None, now: datetime) -> bool:
    return value is not None and value[:_MS_DIGITS] >= _ms(now)


def _ms(at: datetime) -> str:
    return f"{int(at.timestamp() * 1000):0{_MS_DIGITS}}"
