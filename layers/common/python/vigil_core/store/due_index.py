"""Index `due`, from which the sweeper reads due work, and the sweep leases of its partitions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from vigil_core.domain.timestamps import from_text, to_epoch_s, to_text
from vigil_core.store import keys
from vigil_core.store.table import ABSENT, ConditionFailed, Delete, Put, Table, WriteCondition, query_all


@dataclass(frozen=True, kw_only=True)
class DueItem:
    """An entry of index `due`. It is a hint: the row to which it belongs decides."""

    kind: keys.DueKind
    namespace: str
    entity_id: str
    at: datetime | None = None
    """The due time; None for queues, which are always due."""


class DueStore:
    """Reader of index `due`. An entry is written and removed together with the row to which it belongs."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def overdue(self, partition: int, now: datetime) -> Iterator[DueItem]:
        """Yield the due items of one partition, oldest first, page by page."""
        pk = keys.due_partition(partition)
        for row in query_all(self._table, pk, index="due", between=("0", f"{to_text(now)}~"), limit=100):
            at, kind, namespace, entity_id = keys.parse_due(row["g1sk"])
            due_at = None if kind == "queue" else from_text(at)
            yield DueItem(kind=kind, namespace=namespace, entity_id=entity_id, at=due_at)

    def acquire_sweep_lease(self, partition: int, *, now: datetime, ttl: timedelta) -> bool:
        """Acquire the sweep lease of a partition; return False while another sweep has it."""
        key = keys.sweep_lease(partition)
        row = {
            "pk": key.pk,
            "sk": key.sk,
            "entity": "sweep_lease",
            "schema_version": 1,
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

    def release_sweep_lease(self, partition: int) -> None:
        """Release the sweep lease of a partition."""
        self._table.delete(Delete(key=keys.sweep_lease(partition)))
