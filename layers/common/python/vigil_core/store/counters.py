"""The counters of a namespace, spread over rows, and the counts of its configuration.

A counter may drift: if a process crashes between the creation of a job and the write of its counter, the job is not
counted. The sweep recounts once a day (`services/limits/recount.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Literal, TypeAlias

from vigil_core.domain.timestamps import from_text, to_epoch_s, to_text
from vigil_core.store import keys
from vigil_core.store.table import ConditionFailed, Delete, Put, Row, Table, Update, WriteCondition, query_all

COUNTER_TTL = timedelta(days=60)
"""The life of a counter that no process changes. The daily recount renews it while the namespace has open work."""
RECOUNT_INTERVAL = timedelta(days=1)
UPLOAD_COUNTER_TTL = timedelta(days=2)
CACHE = timedelta(seconds=10)
"""The age at which a process reads the counters of a namespace again, if they are far from the limit."""
CACHE_HEADROOM = 2_000
"""The distance from the limit below which every request reads the counters: what other processes may add meanwhile."""
MAX_CACHED_AMOUNT = 10
"""The largest number of jobs of one request that relies on the cached counters."""

Configuration: TypeAlias = Literal["queues", "schedules", "job_types", "webhooks"]
_CONFIGURATION: Mapping[Configuration, Callable[[str], str]] = {
    "queues": keys.queues,
    "schedules": keys.schedules,
    "job_types": keys.job_types,
    "webhooks": keys.webhooks,
}
_RECOUNT = "recount"
_WAITS = "waits#"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The numbers of open jobs, and of open waits by the key that registered them."""

    jobs: int = 0
    waits_by_key: Mapping[str, int] = field(default_factory=dict)

    @property
    def waits(self) -> int:
        """The number of open waits."""
        return sum(self.waits_by_key.values())

    def minus(self, other: Counts) -> Counts:
        """Return the differences."""
        names = self.waits_by_key.keys() | other.waits_by_key.keys()
        differences = {name: self.waits_by_key.get(name, 0) - other.waits_by_key.get(name, 0) for name in names}
        return Counts(jobs=self.jobs - other.jobs, waits_by_key={key: n for key, n in differences.items() if n})


@dataclass(frozen=True, kw_only=True)
class RecountProgress:
    """A recount that continues with the next sweep.

    Attributes:
        started_at: The time for which the open jobs and waits are counted.
        before: The counters at that time.
        counted: What the recount has counted so far.
        list_name: The list that it reads.
        cursor: Its position in the list; None at the beginning.
    """

    started_at: datetime
    before: Counts
    counted: Counts
    list_name: Literal["jobs", "waits"]
    cursor: str | None


class CounterStore:
    """The counters of every namespace."""

    def __init__(
        self, table: Table, *, now: Callable[[], datetime], choose: Callable[[int], int] = random.randrange
    ) -> None:
        self._table = table
        self._now = now
        self._choose = choose
        self._cache: dict[str, tuple[datetime, Counts]] = {}

    def add(self, namespace: str, *, jobs: int = 0, waits_by_key: Mapping[str, int] | None = None) -> None:
        """Add to the counters: one write for the jobs, in any row, and one for each key, in its row."""
        if jobs:
            self._add(namespace, self._choose(keys.COUNTER_ROWS), "jobs", jobs)
        for key_id, amount in (waits_by_key or {}).items():
            if amount:
                self._add(namespace, keys.partition_of(key_id, keys.COUNTER_ROWS), f"{_WAITS}{key_id}", amount)
        if namespace in self._cache:
            read_at, counts = self._cache[namespace]
            negative = {key_id: -amount for key_id, amount in (waits_by_key or {}).items()}
            self._cache[namespace] = read_at, counts.minus(Counts(jobs=-jobs, waits_by_key=negative))

    def read(self, namespace: str) -> Counts:
        """Read the counters of a namespace."""
        jobs = 0
        waits: dict[str, int] = {}
        for row in query_all(self._table, keys.counters(namespace), between=("0", str(keys.COUNTER_ROWS - 1))):
            jobs += row.get("jobs", 0)
            for name, value in row.items():
                if name.startswith(_WAITS) and value:
                    waits[name.removeprefix(_WAITS)] = value
        counts = Counts(jobs=jobs, waits_by_key=waits)
        self._cache[namespace] = self._now(), counts
        return counts

    def has_room(self, namespace: str, amount: int, limit: int, count_of: Callable[[Counts], int]) -> bool:
        """Return whether a count stays within its limit with a further amount.

        A small amount far from the limit relies on counters that the process read at most `CACHE` ago.
        """
        cached = self._cache.get(namespace)
        if cached is not None and amount <= MAX_CACHED_AMOUNT and cached[0] <= self._now() < cached[0] + CACHE:
            far_from_limit = count_of(cached[1]) + amount + CACHE_HEADROOM <= limit
            if far_from_limit:
                return True
        return count_of(self.read(namespace)) + amount <= limit

    def add_upload(self, namespace: str, day: date, size: int, limit: int) -> bool:
        """Count an upload of a day, or return False if the bytes of the day would exceed the limit."""
        has_room = WriteCondition(
            expression="attribute_not_exists(#bytes) OR #bytes <= :room",
            names={"#bytes": "bytes"},
            values={":room": limit - size},
        )
        expires_at = datetime.combine(day, datetime.min.time(), tzinfo=self._now().tzinfo) + UPLOAD_COUNTER_TTL
        if size > limit:
            return False
        try:
            self._table.update(
                Update(
                    key=keys.upload_counter(namespace, day),
                    expression="ADD #bytes :size SET entity = :entity, schema_version = :one, #ttl = :ttl",
                    names={"#bytes": "bytes", "#ttl": "ttl"},
                    values={":size": size, ":entity": "upload_counter", ":one": 1, ":ttl": to_epoch_s(expires_at)},
                    condition=has_room,
                )
            )
        except ConditionFailed:
            return False
        return True

    def uploaded(self, namespace: str, day: date) -> int:
        """Return the bytes of the uploads of a day."""
        return int((self._table.get(keys.upload_counter(namespace, day)) or {}).get("bytes", 0))

    def count_configuration(self, namespace: str, kind: Configuration) -> int:
        """Count the queues, schedules, job types or webhooks of a namespace."""
        return self._table.count(_CONFIGURATION[kind](namespace))

    def missing_queues(self, namespace: str, names: Iterable[str]) -> set[str]:
        """Return the names that are not names of registered queues."""
        wanted = set(names)
        found = self._table.batch_get([keys.queue(namespace, name) for name in wanted], consistent=False)
        return wanted - {key.sk for key in found}

    def recount_progress(self, namespace: str) -> RecountProgress | None:
        """Read the progress of a recount that has begun."""
        row = self._table.get(keys.Key(keys.counters(namespace), _RECOUNT))
        if row is None:
            return None
        return RecountProgress(
            started_at=from_text(row["started_at"]),
            before=Counts(**row["before"]),
            counted=Counts(**row["counted"]),
            list_name=row["list_name"],
            cursor=row.get("cursor"),
        )

    def save_recount(self, namespace: str, progress: RecountProgress) -> None:
        """Store the progress of a recount, which continues with the next sweep."""
        key = keys.Key(keys.counters(namespace), _RECOUNT)
        row: Row = {
            "pk": key.pk,
            "sk": key.sk,
            "entity": "recount",
            "schema_version": 1,
            "started_at": to_text(progress.started_at),
            "before": _counts_to_row(progress.before),
            "counted": _counts_to_row(progress.counted),
            "list_name": progress.list_name,
            "cursor": progress.cursor,
            "ttl": to_epoch_s(self._now() + COUNTER_TTL),
        }
        self._table.put(Put(row=row))

    def end_recount(self, namespace: str, *, idle: bool) -> None:
        """Remove the progress of a recount, and set the time of the next one: none if the namespace is idle."""
        self._table.delete(Delete(key=keys.Key(keys.counters(namespace), _RECOUNT)))
        first = keys.counter(namespace, 0)
        if idle:
            self._table.update(Update(key=first, expression="REMOVE g1pk, g1sk"))
            return
        g1pk, g1sk = self._recount_due(namespace)
        expression = "SET g1pk = :g1pk, g1sk = :g1sk, #ttl = :ttl, entity = :entity, schema_version = :one"
        values = {":ttl": to_epoch_s(self._now() + COUNTER_TTL), ":entity": "counter", ":one": 1}
        due = {":g1pk": g1pk, ":g1sk": g1sk}
        names = {"#ttl": "ttl"}
        self._table.update(Update(key=first, expression=expression, names=names, values={**values, **due}))
        expression = "SET #ttl = :ttl, entity = :entity, schema_version = :one"
        for row in range(1, keys.COUNTER_ROWS):
            key = keys.counter(namespace, row)
            self._table.update(Update(key=key, expression=expression, names=names, values=values))

    def _add(self, namespace: str, row: int, attribute: str, amount: int) -> None:
        expression = "ADD #count :amount SET entity = :entity, schema_version = :one, #ttl = :ttl"
        values: dict[str, Any] = {
            ":amount": amount,
            ":entity": "counter",
            ":one": 1,
            ":ttl": to_epoch_s(self._now() + COUNTER_TTL),
        }
        if row == 0:
            # The first row is also the due row of the recount.
            expression += ", g1pk = if_not_exists(g1pk, :g1pk), g1sk = if_not_exists(g1sk, :g1sk)"
            values[":g1pk"], values[":g1sk"] = self._recount_due(namespace)
        names = {"#count": attribute, "#ttl": "ttl"}
        self._table.update(Update(key=keys.counter(namespace, row), expression=expression, names=names, values=values))

    def _recount_due(self, namespace: str) -> tuple[str, str]:
        return keys.due(self._now() + RECOUNT_INTERVAL, "recount", namespace, namespace)


def _counts_to_row(counts: Counts) -> Row:
    return {"jobs": counts.jobs, "waits_by_key": dict(counts.waits_by_key)}
