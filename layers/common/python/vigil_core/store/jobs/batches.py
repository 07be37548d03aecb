"""End states of the items of a batch, in one row per page of items."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from vigil_core.domain.jobs.batch import items_on_page
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.status import TERMINAL, JobStatus
from vigil_core.domain.timestamps import to_epoch_s
from vigil_core.store import keys
from vigil_core.store.table import Row, Table, Update, query_all

TTL_MARGIN = timedelta(days=365)
"""The time for which a page row outlives its batch, in case the TTL of the batch is renewed meanwhile."""


class BatchStore:
    """Reads and writes end states of items. An item ends once, so a repeated record changes nothing."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def record_end_state(self, batch: Job, page: int, indexes: Collection[int], end_state: JobStatus) -> bool:
        """Record an end state of items on one page of the current attempt, and return whether the page is complete."""
        row = self._table.update(
            Update(
                key=keys.batch_page(batch.namespace, batch.job_id, batch.attempt, page),
                expression="ADD #ending :index SET entity = :entity, schema_version = :one, #ttl = :ttl",
                names={"#ending": end_state, "#ttl": "ttl"},
                values={
                    ":index": set(indexes),
                    ":entity": "batch_page",
                    ":one": 1,
                    ":ttl": to_epoch_s((batch.expires_at or batch.updated_at) + TTL_MARGIN),
                },
            )
        )
        return len(_end_states(row)) == len(items_on_page(page, batch.batch.size or 0))

    def end_states(self, batch: Job) -> dict[int, JobStatus]:
        """Read the end states of the ended items of the current attempt, by index."""
        first = keys.batch_page(batch.namespace, batch.job_id, batch.attempt, 0)
        rows = query_all(self._table, first.pk, begins=keys.batch_pages(batch.attempt))
        return {index: end_state for row in rows for index, end_state in _end_states(row).items()}


def _end_states(row: Row) -> dict[int, JobStatus]:
    return {index: end_state for end_state in TERMINAL for index in row.get(end_state, ())}
