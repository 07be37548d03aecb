"""Index `due`, from which the sweeper reads due work, and the sweep leases of its partitions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from vigil_core.domain.timestamps import from_text, to_epoch_s, to_text
from vigil_core.store import keys
from vigil_core.store.table import ABSENT, ConditionFailed, Delete, Put, Table, Update, WriteCondition, query_all

OLDEST = "1"
"""A text after the keys of queues and before every time."""
QUEUE_PAGE = 100
"""The number of queues that one query reads, more than a sweep takes of one namespace."""


@dataclass(frozen=True, kw_only=True)
class NamespaceQueues:
    """The first queues of a namespace in one partition, in order of name, and whether it has more."""

    namespace: str
    queues: tuple[str, ...]
    has_more: bool


@dataclass(frozen=True, kw_only=True)
class DueItem:
    """An entry of index `due`. It is a hint: the row to which it belongs decides."""

    kind: keys.DueKind
    namespace: str
    entity_id: str
    at: datetime | None = None
    """The due time; None in a message, which has no time."""


class DueStore:
    """Reader of index `due`. An entry is written and removed together with the row to which it belongs."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def overdue(self, partition: int, now: datetime) -> Iterator[DueItem]:
        """Yield the due items of one partition except queues, oldest first, page by page."""
        bounds = (OLDEST, f"{to_text(now)}~")
        for row in query_all(self._table, keys.due_partition(partition), index="due", between=bounds, limit=1_000):
            at, kind, namespace, entity_id = keys.parse_due(row["g1sk"])
            yield DueItem(kind=kind, namespace=namespace, entity_id=entity_id, at=from_text(at))

    def first_queues(self, partition: int, *, after_namespace: str | None, limit: int) -> Iterator[NamespaceQueues]:
        """Yield the first queues of each namespace in one partition, in the order of the namespaces.

        The queries skip the other queues, so their number depends on the namespaces and not on the queues.
        """
        pk, after = keys.due_partition(partition), after_namespace
        while True:
            page = self._table.query_page(pk, index="due", between=keys.queues_due_after(after), limit=QUEUE_PAGE)
            names_by_namespace: dict[str, list[str]] = {}
            for row in page.rows:
                _, _, namespace, name = keys.parse_due(row["g1sk"])
                names_by_namespace.setdefault(namespace, []).append(name)
            listed = list(names_by_namespace.items())
            if page.cursor is not None and len(listed) > 1:
                # The queues of the last namespace may continue on the next page: start there with it.
                listed.pop()
            for namespace, names in listed:
                has_more = len(names) > limit or (page.cursor is not None and len(names) == QUEUE_PAGE)
                yield NamespaceQueues(namespace=namespace, queues=tuple(names[:limit]), has_more=has_more)
            if page.cursor is None:
                return
            after = listed[-1][0]

    def queues_of(self, partition: int, namespace: str, *, after: str, limit: int) -> list[str]:
        """Read the next queues of a namespace in one partition after a queue."""
        page = self._table.query_page(
            keys.due_partition(partition), index="due", between=keys.queues_due_of(namespace, after=after), limit=limit
        )
        return [keys.parse_due(row["g1sk"])[3] for row in page.rows]

    def acquire_sweep_lease(self, name: str, owner: str, *, now: datetime, ttl: timedelta) -> bool:
        """Acquire a sweep lease; return False while another owner has it."""
        key = keys.sweep_lease(name)
        row = {
            "pk": key.pk,
            "sk": key.sk,
            "entity": "sweep_lease",
            "schema_version": 1,
            "owner": owner,
            "until": to_text(now + ttl),
            "ttl": to_epoch_s(now + ttl),
        }
        condition = WriteCondition(
            expression=f"{ABSENT.expression} OR #until < :now", names={"#until": "until"}, values={":now": to_text(now)}
        )
        try:
            self._table.put(Put(row=row, condition=condition))
        except ConditionFailed:
            return False
        return True

    def extend_sweep_lease(self, name: str, owner: str, *, now: datetime, ttl: timedelta) -> bool:
        """Extend a sweep lease; return False if its owner has lost it."""
        try:
            self._table.update(
                Update(
                    key=keys.sweep_lease(name),
                    expression="SET #until = :until, #ttl = :ttl",
                    names={"#until": "until", "#ttl": "ttl", "#owner": "owner"},
                    values={":until": to_text(now + ttl), ":ttl": to_epoch_s(now + ttl)},
                    condition=WriteCondition(expression="#owner = :owner", values={":owner": owner}),
                )
            )
        except ConditionFailed:
            return False
        return True

    def release_sweep_lease(self, name: str, owner: str) -> None:
        """Release a sweep lease, unless its owner has lost it."""
        condition = WriteCondition(expression="#owner = :owner", names={"#owner": "owner"}, values={":owner": owner})
        with suppress(ConditionFailed):
            self._table.delete(Delete(key=keys.sweep_lease(name), condition=condition))
