"""Lists of a namespace, newest first: the ids created on each day, merged from the partitions of that day."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from heapq import merge

from vigil_core.domain.jobs.retention import OPEN_JOB_TTL
from vigil_core.domain.timestamps import to_epoch_s, to_text
from vigil_core.store import keys
from vigil_core.store.table import ABSENT, ConditionFailed, Put, Table, Update, WriteCondition, query_all

DAY_MARK_TTL = 2 * OPEN_JOB_TTL
"""Longer than the TTL of the entities of that day. `extend_day_ttl` extends it for entities that are retried later."""


@dataclass(frozen=True, kw_only=True)
class ListingEntry:
    """An entity id with its cursor. Cursors sort like the list, oldest first.

    Each day ends with an entry without an id, so a reader that found nothing still has a cursor.
    """

    entity_id: str | None
    cursor: str


class ListingStore:
    """Reader of index `listing`. Its entries are hints: the service reads the entities themselves."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._marked: set[tuple[str, keys.ListName, date]] = set()

    def mark_day(self, namespace: str, list_name: keys.ListName, day: date) -> None:
        """Record that an entity is created on this day: one write per process, namespace and day."""
        if (namespace, list_name, day) in self._marked:
            return
        key = keys.day_mark(namespace, list_name, day)
        with suppress(ConditionFailed):
            ttl = to_epoch_s(_default_day_expiry(day))
            row = {"pk": key.pk, "sk": key.sk, "entity": "day", "schema_version": 1, "ttl": ttl}
            self._table.put(Put(row=row, condition=ABSENT))
        self._marked.add((namespace, list_name, day))

    def newest_first(
        self,
        namespace: str,
        list_name: keys.ListName,
        *,
        before_cursor: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> Iterator[ListingEntry]:
        """Yield the entries created in [created_after, created_before) and below `before_cursor`, newest first.

        The pages are read lazily.
        """
        upper_bounds = [before_cursor] if before_cursor else []
        before = min(upper_bounds + ([to_text(created_before)] if created_before else []), default=None)
        for day in self._days(namespace, list_name):
            first, last = _bounds(day)
            if before is not None and before <= first:
                continue
            if created_after is not None and last < to_text(created_after):
                return
            low = first if created_after is None else max(first, to_text(created_after))
            partitions = (
                self._partition_entries(keys.listing_partition(namespace, list_name, day, shard), low, before or last)
                for shard in range(keys.LISTING_PARTITIONS)
            )
            yield from merge(*partitions, key=lambda listed: listed.cursor, reverse=True)
            yield ListingEntry(entity_id=None, cursor=low)

    def _days(self, namespace: str, list_name: keys.ListName) -> Iterator[date]:
        pk = keys.day_mark(namespace, list_name, date.min).pk
        for row in query_all(self._table, pk, begins=f"{list_name}#", newest_first=True, limit=100):
            yield date.fromisoformat(row["sk"].split("#")[1])

    def _partition_entries(self, partition: str, low: str, high: str) -> Iterator[ListingEntry]:
        rows = query_all(self._table, partition, index="listing", between=(low, high), newest_first=True, limit=100)
        for row in rows:
            if row["g2sk"] < high:
                yield ListingEntry(entity_id=keys.listing_entity_id(row["g2sk"]), cursor=row["g2sk"])


def extend_day_ttl(table: Table, namespace: str, list_name: keys.ListName, day: date, *, expires_at: datetime) -> None:
    """Extend the TTL of a day to that of an entity created on it, if the default is too short."""
    if expires_at <= _default_day_expiry(day):
        return
    key = keys.day_mark(namespace, list_name, day)
    expires_earlier = WriteCondition(
        expression=f"{ABSENT.expression} OR #ttl < :ttl", names={"#ttl": "ttl"}, values={":ttl": to_epoch_s(expires_at)}
    )
    with suppress(ConditionFailed):
        table.update(
            Update(
                key=key,
                expression="SET #ttl = :ttl, entity = :day, schema_version = :one",
                names={"#ttl": "ttl"},
                values={":ttl": to_epoch_s(expires_at), ":day": "day", ":one": 1},
                condition=expires_earlier,
            )
        )


def _default_day_expiry(day: date) -> datetime:
    return datetime.combine(day, time.max, tzinfo=UTC) + DAY_MARK_TTL


def _bounds(day: date) -> tuple[str, str]:
    """Return the lowest cursor of a day, and a text above its highest cursor."""
    start = to_text(datetime.combine(day, time.min, tzinfo=UTC))
    return start, f"{day.isoformat()}T~"
