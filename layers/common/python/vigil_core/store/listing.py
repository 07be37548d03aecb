"""Lists of a namespace, newest first: the ids created on each day, merged from the partitions of that day."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from heapq import merge

from vigil_core.domain.jobs.retention import OPEN_JOB_TTL
from vigil_core.domain.timestamps import to_epoch_s, to_text
from vigil_core.store import keys
from vigil_core.store.table import ABSENT, ConditionFailed, Put, Row, Table, Update, WriteCondition, query_all

DAY_MARK_TTL = 2 * OPEN_JOB_TTL
"""Longer than the TTL of the entities of that day. `extend_day_ttl` extends it for entities that are retried later."""

FILTERED_ROWS = 2_000
"""The number of entries that one query with a filter reads: about 300 KB."""
FIRST_CURSOR, LAST_CURSOR = "0", "9999~"
"""A text below, and one above every cursor."""
DEFAULT_QUEUE = "default"


@dataclass(frozen=True, kw_only=True)
class ListingEntry:
    """An entity id with its cursor. Cursors sort like the list, oldest first.

    Each day ends with an entry without an id, so a reader that found nothing still has a cursor. So does each page of a
    query with a filter.
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
        where: WriteCondition | None = None,
    ) -> Iterator[ListingEntry]:
        """Yield the entries created in [created_after, created_before) and below `before_cursor`, newest first.

        The pages are read lazily. With `where`, only the entries for which it is true have ids, and after each page of
        a partition an entry without an id has the position up to which everything was read.
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
                self._partition_entries(
                    keys.listing_partition(namespace, list_name, day, shard), low, before or last, where
                )
                for shard in range(keys.LISTING_PARTITIONS)
            )
            yield from merge(*partitions, key=lambda listed: listed.cursor, reverse=True)
            yield ListingEntry(entity_id=None, cursor=low)

    def _days(self, namespace: str, list_name: keys.ListName) -> Iterator[date]:
        pk = keys.day_mark(namespace, list_name, date.min).pk
        for row in query_all(self._table, pk, begins=f"{list_name}#", newest_first=True, limit=100):
            yield date.fromisoformat(row["sk"].split("#")[1])

    def with_correlation_id(
        self,
        namespace: str,
        correlation_id: str,
        *,
        before_cursor: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> Iterator[ListingEntry]:
        """Yield the jobs of a correlation id like `newest_first`, without the jobs of others."""
        highs = [before_cursor or LAST_CURSOR, to_text(created_before) if created_before else LAST_CURSOR]
        low = to_text(created_after) if created_after else FIRST_CURSOR
        partitions = (
            self._entries("correlation", keys.correlation_partition(namespace, correlation_id, shard), low, min(highs))
            for shard in range(keys.LISTING_PARTITIONS)
        )
        return merge(*partitions, key=lambda listed: listed.cursor, reverse=True)

    def _partition_entries(
        self, partition: str, low: str, high: str, where: WriteCondition | None
    ) -> Iterator[ListingEntry]:
        if where is None:
            yield from self._entries("listing", partition, low, high)
            return
        cursor: Row | None = None
        while True:
            page = self._table.query_page(
                partition, index="listing", between=(low, high), newest_first=True, limit=FILTERED_ROWS, cursor=cursor,
                where=where,
            )  # fmt: skip
            yield from _entries_below(high, page.rows)
            if page.cursor is None:
                return
            cursor = page.cursor
            yield ListingEntry(entity_id=None, cursor=cursor["g2sk"])

    def _entries(self, index: str, partition: str, low: str, high: str) -> Iterator[ListingEntry]:
        rows = query_all(self._table, partition, index=index, between=(low, high), newest_first=True, limit=100)
        return _entries_below(high, rows)


def _entries_below(high: str, rows: Iterable[Row]) -> Iterator[ListingEntry]:
    for row in rows:
        if row["g2sk"] < high:
            yield ListingEntry(entity_id=keys.listing_entity_id(row["g2sk"]), cursor=row["g2sk"])


def jobs_where(*, queue: str | None, job_type: str | None) -> WriteCondition | None:
    """Return the filter of index `listing` for jobs of a queue or type; None for all jobs.

    A job of the queue `default` does not store its queue.
    """
    conditions, names, values = [], {}, {}
    if queue is not None:
        names["#queue"] = "queue"
        if queue == DEFAULT_QUEUE:
            conditions.append("attribute_not_exists(#queue)")
        else:
            conditions.append("#queue = :queue")
            values[":queue"] = queue
    if job_type is not None:
        names["#job_type"] = "job_type"
        conditions.append("#job_type = :job_type")
        values[":job_type"] = job_type
    if not conditions:
        return None
    return WriteCondition(expression=" AND ".join(conditions), names=names, values=values)


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
