"""The rows of limits: the slots of long polls and the request rates.

The counters are in `store/counters.py`, the settings of namespaces in `store/namespaces.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self
from zlib import crc32

from vigil_core.domain.limits import max_long_polls
from vigil_core.domain.token_bucket import WINDOW_S, Lease, Refuse, TokenBucket
from vigil_core.store import keys
from vigil_core.store.counters import CounterStore
from vigil_core.store.namespaces import NamespaceStore
from vigil_core.store.slot_rows import SLOTS_PER_ROW, Slot, acquire_slot, free_slots, owners, release_slot
from vigil_core.store.table import ConditionFailed, Row, Table, Update, WriteCondition

MAX_REMEMBERED_QUEUES = 10_000
MAX_BUCKETS = 1_000
REQUEST_WINDOW_TTL_S = 60
_MAX_ROWS_TRIED = 3


@dataclass(frozen=True, kw_only=True)
class LongPollStore:
    """The slots of long polls. All namespaces share them, and each may have a part of them.

    The owner of a slot is the hash of its namespace, and a nonce. The slots are spread over rows, and a namespace may
    have the same part of each row. So one row decides alone.
    """

    table: Table
    concurrency: int
    choose: Callable[[int], int] = field(default=random.randrange)
    """Returns a random number from 0 up to its argument."""

    def acquire(self, namespace: str, limit: int, *, until: datetime, now: datetime) -> Slot | None:
        """Acquire a slot for a request, or return None if the namespace or the stack has no free one.

        1. Read a row. If the namespace has its part of the slots, or no slot is free, there is no slot in this row.
        2. Write a free slot, on the condition that it is still free.
        3. If the row that the write returns shows more slots of the namespace than its part, a concurrent request has
           passed step 1 as well: give the slot back.

        Args:
            namespace: The namespace of the request.
            limit: The number of slots that the namespace may have in all rows.
            until: The time at which the slot becomes free by itself.
            now: The current time.
        """
        total = max_long_polls(self.concurrency)
        rows = -(-total // SLOTS_PER_ROW)
        share = -(-min(limit, total) // rows)
        first = self.choose(rows)
        for offset in range(min(rows, _MAX_ROWS_TRIED)):
            row = (first + offset) % rows
            slots = SLOTS_PER_ROW if row < rows - 1 else total - SLOTS_PER_ROW * (rows - 1)
            slot = self._acquire_in(keys.long_poll_slots(row), slots, share, namespace, until, now)
            if slot is not None:
                return slot
        return None

    def release(self, slot: Slot) -> None:
        """Free a slot, unless another request has acquired it after its end."""
        release_slot(self.table, slot)

    def used(self, namespace: str, now: datetime) -> int:
        """Count the slots of a namespace."""
        rows = -(-max_long_polls(self.concurrency) // SLOTS_PER_ROW)
        found = self.table.batch_get([keys.long_poll_slots(row) for row in range(rows)])
        return sum(_count(row, namespace, now) for row in found.values())

    def _acquire_in(
        self, key: keys.Key, slots: int, share: int, namespace: str, until: datetime, now: datetime
    ) -> Slot | None:
        row = self.table.get(key) or {}
        for _ in range(2):
            free = free_slots(row, slots, now)
            if not free or _count(row, namespace, now) >= share:
                return None
            name, owner = free[self.choose(len(free))], f"{_tag(namespace)}{self.choose(10_000):04}"
            try:
                slot, row = acquire_slot(
                    self.table, key, name, entity="long_poll_slots", owner=owner, until=until, now=now
                )
            except ConditionFailed as error:
                row = error.old or {}
                continue
            if _count(row, namespace, now) <= share:
                return slot
            self.release(slot)
            return None
        return None


class RequestRateStore:
    """The request rates of namespaces: a token bucket in this process, and one row for each window."""

    def __init__(self, table: Table, *, now: Callable[[], datetime], concurrency: int) -> None:
        self._table = table
        self._now = now
        self._concurrency = concurrency
        self._buckets: dict[str, TokenBucket] = {}

    def try_request(self, namespace: str, rate: int) -> int | None:
        """Admit a request, or return the seconds after which a repetition may succeed."""
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.clear()
        bucket, now_s = self._buckets.setdefault(namespace, TokenBucket()), self._now().timestamp()
        decision = bucket.request(now_s, rate, self._concurrency)
        while isinstance(decision, Lease):
            self._lease(namespace, bucket, decision)
            decision = bucket.request(now_s, rate, self._concurrency)
        return decision.retry_after_s if isinstance(decision, Refuse) else None

    def _lease(self, namespace: str, bucket: TokenBucket, lease: Lease) -> None:
        """Lease a block from the row of the window, on the condition that the capacity suffices."""
        has_room = WriteCondition(
            expression="attribute_not_exists(leased) OR leased <= :room",
            values={":room": lease.capacity - lease.tokens},
        )
        update = Update(
            key=keys.request_window(namespace, lease.window),
            expression="ADD leased :tokens SET entity = :entity, schema_version = :one, #ttl = :ttl",
            names={"#ttl": "ttl"},
            values={
                ":tokens": lease.tokens,
                ":entity": "request_window",
                ":one": 1,
                ":ttl": (lease.window + 1) * WINDOW_S + REQUEST_WINDOW_TTL_S,
            },
            condition=has_room,
        )
        try:
            bucket.on_lease(lease, "granted", self._table.update(update)["leased"])
        except ConditionFailed as error:
            bucket.on_lease(lease, "refused", (error.old or {}).get("leased", lease.capacity))


@dataclass(frozen=True, kw_only=True)
class LimitStores:
    """The rows of limits."""

    namespaces: NamespaceStore
    counters: CounterStore
    long_polls: LongPollStore
    request_rates: RequestRateStore
    known_queues: dict[str, set[str]] = field(default_factory=dict)
    """The queues by namespace that the process has found to exist, or has admitted."""

    @classmethod
    def over(
        cls,
        table: Table,
        *,
        now: Callable[[], datetime],
        concurrency: int,
        choose: Callable[[int], int] = random.randrange,
    ) -> Self:
        """Build the stores over a table.

        Args:
            table: The table.
            now: Returns the current time.
            concurrency: The concurrent executions of the stack.
            choose: Returns a random number from 0 up to its argument.
        """
        return cls(
            namespaces=NamespaceStore(table, now=now, concurrency=concurrency),
            counters=CounterStore(table, now=now, choose=choose),
            long_polls=LongPollStore(table=table, concurrency=concurrency, choose=choose),
            request_rates=RequestRateStore(table, now=now, concurrency=concurrency),
        )

    def remember_queues(self, namespace: str, names: Iterable[str]) -> None:
        """Remember that these queues exist."""
        if sum(map(len, self.known_queues.values())) > MAX_REMEMBERED_QUEUES:
            self.known_queues.clear()
        self.known_queues.setdefault(namespace, set()).update(names)


def _count(row: Row, namespace: str, now: datetime) -> int:
    """Count the slots of a namespace in a row."""
    return sum(owner.startswith(_tag(namespace)) for owner in owners(row, now))


def _tag(namespace: str) -> str:
    return f"{crc32(namespace.encode()):08x}"
