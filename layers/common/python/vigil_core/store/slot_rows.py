"""Rows of slots: rights to do one thing that takes long, such as a long poll or a call.

A row has up to 32 slots in one write unit. The value of a slot is the end of its work and the name of its owner. A slot
whose end has passed is free, so a crashed process frees its slot by doing nothing. One write acquires a slot and one
frees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from vigil_core.domain.timestamps import to_epoch_s
from vigil_core.store.keys import Key
from vigil_core.store.table import ConditionFailed, Row, Table, Update, WriteCondition

SLOTS_PER_ROW = 32
"""As many slots as fit into one write unit."""
_TTL = timedelta(days=1)
_MS_DIGITS = 13


@dataclass(frozen=True, kw_only=True)
class Slot:
    """An acquired slot, until the time in `value`."""

    key: Key
    attribute: str
    value: str


def free_slots(row: Row, slots: int, now: datetime) -> list[str]:
    """Return the names of the free slots of a row that has this number of slots."""
    return [name for name in map(_name, range(slots)) if not _is_used(row.get(name), now)]


def owners(row: Row, now: datetime) -> list[str]:
    """Return the owners of the slots of a row that are in use."""
    values = (row.get(name) for name in map(_name, range(SLOTS_PER_ROW)))
    return [value[_MS_DIGITS:] for value in values if value is not None and _is_used(value, now)]


def slot_of_owner(row: Row, owner: str) -> Slot | None:
    """Return the slot of an owner, also if its end has passed."""
    for name in map(_name, range(SLOTS_PER_ROW)):
        value = row.get(name)
        if value is not None and value[_MS_DIGITS:] == owner:
            return Slot(key=Key(row["pk"], row["sk"]), attribute=name, value=value)
    return None


def acquire_slot(
    table: Table, key: Key, name: str, *, entity: str, owner: str, until: datetime, now: datetime
) -> tuple[Slot, Row]:
    """Acquire one slot, and return it with the row that contains it.

    Raises:
        ConditionFailed: Another process has acquired the slot. The error contains the row.
    """
    slot = Slot(key=key, attribute=name, value=f"{_ms(until)}{owner}")
    row = table.update(
        Update(
            key=key,
            expression="SET #slot = :value, entity = :entity, schema_version = :one, #ttl = :ttl",
            names={"#slot": name, "#ttl": "ttl"},
            values={":value": slot.value, ":entity": entity, ":one": 1, ":ttl": to_epoch_s(until + _TTL)},
            condition=WriteCondition(
                expression="attribute_not_exists(#slot) OR #slot < :now", values={":now": _ms(now)}
            ),
        )
    )
    return slot, row


def release_slot(table: Table, slot: Slot) -> None:
    """Free a slot, unless another process has acquired it after its end."""
    is_owned = WriteCondition(expression="#slot = :value", values={":value": slot.value})
    try:
        table.update(
            Update(key=slot.key, expression="REMOVE #slot", names={"#slot": slot.attribute}, condition=is_owned)
        )
    except ConditionFailed:
        return


def _name(number: int) -> str:
    return f"s{number}"


def _is_used(value: str | None, now: datetime) -> bool:
    return value is not None and value[:_MS_DIGITS] >= _ms(now)


def _ms(at: datetime) -> str:
    return f"{int(at.timestamp() * 1000):0{_MS_DIGITS}}"
