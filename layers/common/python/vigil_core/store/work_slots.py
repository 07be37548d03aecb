"""The slots of work that takes long: a namespace has a limited number of them for each kind of work.

A row has up to 32 slots in one write unit. The value of a slot is the end of its work and the name of its owner. A slot
whose end has passed is free, so a crashed process frees its slot by doing nothing. One write acquires a slot and one
frees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from vigil_core.domain.timestamps import to_epoch_s
from vigil_core.store import keys
from vigil_core.store.table import ConditionFailed, Row, Table, Update, WriteCondition

WorkKind: TypeAlias = Literal["webhooks"]

MAX_SLOTS = 32
"""As many slots as fit into one write unit."""
_TTL = timedelta(days=1)
_MS_DIGITS = 13


@dataclass(frozen=True, kw_only=True)
class WorkSlot:
    """The right to do one piece of work, until the time in `value`."""

    key: keys.Key
    attribute: str
    value: str


class WorkSlotStore:
    """The slots of namespaces, one row for each namespace and kind of work."""

    def __init__(self, table: Table) -> None:
        self._table = table

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
        key = keys.work_slots(namespace, kind)
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


def _slot_name(number: int) -> str:
    return f"s{number}"


def _is_used(value: str | None, now: datetime) -> bool:
    return value is not None and value[:_MS_DIGITS] >= _ms(now)


def _ms(at: datetime) -> str:
    return f"{int(at.timestamp() * 1000):0{_MS_DIGITS}}"
