"""Who depends on whom: a row at each dependency that names its dependent, and how the dependencies of a job have ended.

A dependent's row stands beside the entries of waits, so that one query finds everybody who waits for a job.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from itertools import islice

from vigil_core.domain.jobs.dependencies import END_STATES, DependencyCounts, Dependent, EndState
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.timestamps import to_epoch_s
from vigil_core.store import keys
from vigil_core.store.table import ConditionFailed, Delete, Row, Table, Update, WriteCondition, query_all

TTL_MARGIN = timedelta(days=365)
"""After a waiting job would itself be gone, were it not renewed meanwhile."""


class DependencyStore:
    """Reads and writes what lone jobs wait for."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def put_dependents(self, job: Job) -> None:
        """Name a job at each of its dependencies. Can be repeated."""
        self._table.batch_write(
            puts=[
                {
                    **_head(keys.entry(job.namespace, dependency.job_id, job.job_id, index), "dependent"),
                    "attempt": job.attempt,
                    "known_version": dependency.known_version,
                    "ttl": _ttl(job),
                }
                for index, dependency in enumerate(job.dependencies.depends_on)
            ]
        )

    def remove_dependent(self, namespace: str, job_id: str, dependent: Dependent) -> None:
        """Forget that a job waited for this one, unless it does so again in another attempt."""
        key = keys.entry(namespace, job_id, dependent.job_id, dependent.index)
        same_attempt = WriteCondition(expression="attempt = :attempt", values={":attempt": dependent.attempt})
        with suppress(ConditionFailed):
            self._table.delete(Delete(key=key, condition=same_attempt))

    def dependents(self, namespace: str, job_id: str, limit: int) -> list[str]:
        """The ids of the jobs that wait for this one to end, at most so many."""
        rows = query_all(self._table, keys.entries_of_job(namespace, job_id), limit=limit)
        dependent_ids = (dependent_from_row(row).job_id for row in rows if row["entity"] == "dependent")
        return list(islice(dependent_ids, limit))

    def end_states(self, job: Job) -> dict[int, EndState]:
        """How dependencies have ended, as far as that was noted: by their numbers."""
        row = self._table.get(keys.dependencies(job.namespace, job.job_id, job.attempt)) or {}
        return {int(index): end_state for end_state in END_STATES for index in row.get(end_state, ())}

    def record_end_states(self, job: Job, end_states: Mapping[int, EndState]) -> DependencyCounts:
        """Note how dependencies have ended, each the first time it does; returns the tally of all that have."""
        key = keys.dependencies(job.namespace, job.job_id, job.attempt)
        while True:
            row = self._table.get(key) or {}
            recorded = set().union(*(row.get(end_state, set()) for end_state in END_STATES))
            new = {index: ending for index, ending in end_states.items() if index not in recorded}
            if not new:
                return _counts(job, row)
            try:
                return _counts(job, self._table.update(_record_update(key, new, _ttl(job))))
            except ConditionFailed:
                continue  # Somebody else has just noted one of these.


def dependent_from_row(row: Row) -> Dependent:
    """A row beside the entries of waits."""
    job_id, index = row["sk"].split("#")
    return Dependent(
        job_id=job_id, attempt=int(row["attempt"]), index=int(index), known_version=int(row["known_version"])
    )


def _record_update(key: keys.Key, new: Mapping[int, EndState], ttl: int) -> Update:
    """One write that adds each index to the set of its ending, if it is in none."""
    index_sets: dict[EndState, set[int]] = {}
    for index, end_state in new.items():
        index_sets.setdefault(end_state, set()).add(index)
    conditions = [f"NOT contains({ending}, :i{index})" for index in new for ending in END_STATES]
    return Update(
        key=key,
        expression=(
            f"ADD {', '.join(f'{e} :{e}' for e in index_sets)} SET entity = :entity, schema_version = :one, #ttl = :ttl"
        ),
        names={"#ttl": "ttl"},
        values={
            ":entity": "dependencies",
            ":one": 1,
            ":ttl": ttl,
            **{f":{ending}": found for ending, found in index_sets.items()},
        },
        condition=WriteCondition(expression=" AND ".join(conditions), values={f":i{index}": index for index in new}),
    )


def _ttl(job: Job) -> int:
    """Beyond what an open job is kept for."""
    return to_epoch_s((job.expires_at or job.updated_at) + TTL_MARGIN)


def _counts(job: Job, row: Row) -> DependencyCounts:
    return DependencyCounts(
        total=len(job.dependencies.depends_on), **{end_state: len(row.get(end_state, ())) for end_state in END_STATES}
    )


def _head(key: keys.Key, entity: str) -> Row:
    return {"pk": key.pk, "sk": key.sk, "entity": entity, "schema_version": 1}
