"""Lists, newest first: which ids were created in a namespace, day by day, merged from the shards of each day."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from heapq import merge

from vigil_core.domain.jobs.retention import LIFE
from vigil_core.domain.timestamps import to_epoch_s, to_text
from vigil_core.store import keys
from vigil_core.store.table import ABSENT, Condition, ConditionFailed, Put, Table, Update, query_all

DAY_KEPT = 2 * LIFE
"""Longer than what was created on a day is kept, unless something begins its life anew: then that says how long."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An id with its place in the list: the text sorts like the list itself, oldest first. At the end of each day comes
    one without an id, for a walk that has found nothing is to know how far it has come."""

    entity_id: str | None
    place: str


class ListingStore:
    """Walks index `listing`. What it says is a hint: the caller reads the entities themselves."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._noted: set[tuple[str, keys.Listed, date]] = set()

    def note_day(self, namespace: str, listed: keys.Listed, day: date) -> None:
        """Say that something is created on this day. Costs a write once a process, namespace and day."""
        if (namespace, listed, day) in self._noted:
            return
        key = keys.listed_day(namespace, listed, day)
        with suppress(ConditionFailed):
            ttl = to_epoch_s(_usually_kept(day))
            row = {"pk": key.pk, "sk": key.sk, "entity": "day", "schema_version": 1, "ttl": ttl}
            self._table.put(Put(row=row, condition=ABSENT))
        self._noted.add((namespace, listed, day))

    def newest_first(
        self,
        namespace: str,
        listed: keys.Listed,
        *,
        before_place: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> Iterator[Listed]:
        """Ids created in [created_after, created_before), below `before_place`, lazily: a page is read when needed."""
        bounds = [before_place] if before_place else []
        below = min(bounds + ([to_text(created_before)] if created_before else []), default=None)
        for day in self._days(namespace, listed):
            first, last = _bounds(day)
            if below is not None and below <= first:
                continue
            if created_after is not None and last < to_text(created_after):
                return
            low = first if created_after is None else max(first, to_text(created_after))
            shards = (
                self._shard(keys.listing_partition(namespace, listed, day, shard), low, below or last)
                for shard in range(keys.LISTING_SHARDS)
            )
            yield from merge(*shards, key=lambda listed: listed.place, reverse=True)
            yield Listed(entity_id=None, place=low)

    def _days(self, namespace: str, listed: keys.Listed) -> Iterator[date]:
        pk = keys.listed_day(namespace, listed, date.min).pk
        for row in query_all(self._table, pk, begins=f"{listed}#", newest_first=True, limit=100):
            yield date.fromisoformat(row["sk"].split("#")[1])

    def _shard(self, partition: str, low: str, high: str) -> Iterator[Listed]:
        rows = query_all(self._table, partition, index="listing", between=(low, high), newest_first=True, limit=100)
        for row in rows:
            if row["g2sk"] < high:
                yield Listed(entity_id=keys.listed_id(row["g2sk"]), place=row["g2sk"])


def keep_day(table: Table, namespace: str, listed: keys.Listed, day: date, *, until: datetime) -> None:
    """Have a day found as long as something that was created on it. Costs nothing where that is not long."""
    if until <= _usually_kept(day):
        return
    key = keys.listed_day(namespace, listed, day)
    longer = Condition(
        expression=f"{ABSENT.expression} OR #ttl < :ttl", names={"#ttl": "ttl"}, values={":ttl": to_epoch_s(until)}
    )
    with suppress(ConditionFailed):
        table.update(
            Update(
                key=key,
                expression="SET #ttl = :ttl, entity = :day, schema_version = :one",
                names={"#ttl": "ttl"},
                values={":ttl": to_epoch_s(until), ":day": "day", ":one": 1},
                condition=longer,
            )
        )


def _usually_kept(day: date) -> datetime:
    return datetime.combine(day, time.max, tzinfo=UTC) + DAY_KEPT


def _bounds(day: date) -> tuple[str, str]:
    """The lowest place of a day, and one above its highest."""
    start = to_text(datetime.combine(day, time.min, tzinfo=UTC))
    return start, f"{day.isoformat()}T~"
