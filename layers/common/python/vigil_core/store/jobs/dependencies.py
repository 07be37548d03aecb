"""Dependencies in the table: a row per dependent at each dependency, and the end states of a job's dependencies.

The dependent rows are next to the wait entries of a job, so one query finds everything that waits for the job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import islice

from vigil_core.domain.jobs.dependencies import Dependent
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.trigger_rules import END_STATES, FAILED_END_STATES, DependencyCounts, EndState
from vigil_core.domain.timestamps import to_epoch_s
from vigil_core.store import keys
from vigil_core.store.table import ConditionFailed, Delete, Row, Table, Update, WriteCondition, query_all

TTL_MARGIN = timedelta(days=365)
"""The time for which the rows outlive the waiting job, in case its TTL is renewed meanwhile."""


class DependencyStore:
    """Reads and writes the dependencies of jobs outside a run."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def put_dependents(self, job: Job) -> None:
        """Store a dependent row at each dependency of a job. Can be repeated."""
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
        """Remove a dependent row, unless it belongs to another attempt of the dependent."""
        key = keys.entry(namespace, job_id, dependent.job_id, dependent.index)
        same_attempt = WriteCondition(expression="attempt = :attempt", values={":attempt": dependent.attempt})
        with suppress(ConditionFailed):
            self._table.delete(Delete(key=key, condition=same_attempt))

    def dependents(self, namespace: str, job_id: str, limit: int) -> list[str]:
        """Read the ids of up to `limit` dependents of a job."""
        rows = query_all(self._table, keys.entries_of_job(namespace, job_id), limit=limit)
        dependent_ids = (dependent_from_row(row).job_id for row in rows if row["entity"] == "dependent")
        return list(islice(dependent_ids, limit))

    def end_states(self, job: Job) -> dict[int, EndState]:
        """Read the recorded end states of a job's dependencies, by index."""
        row = self._table.get(keys.dependencies(job.namespace, job.job_id, job.attempt)) or {}
        return {int(index): end_state for end_state in END_STATES for index in row.get(end_state, ())}

    def end_states_of_jobs(self, jobs: Sequence[Job]) -> dict[str, frozenset[int]]:
        """Read which dependencies of several jobs are recorded as ended, by job id and index."""
        ids = {keys.dependencies(job.namespace, job.job_id, job.attempt): job.job_id for job in jobs}
        return {
            ids[key]: frozenset(int(index) for end_state in END_STATES for index in row.get(end_state, ()))
            for key, row in self._table.batch_get(list(ids)).items()
        }

    def record_end_states(self, job: Job, end_states: Mapping[int, EndState]) -> DependencyCounts:
        """Record end states of dependencies, and return the counts of all recorded ones.

        1. Read the recorded end states, and drop each new one whose dependency is recorded already.
        2. Write the rest on condition that none of these dependencies is recorded.
        3. If another process recorded one of them first, start again. So each dependency counts once.
        """
        key = keys.dependencies(job.namespace, job.job_id, job.attempt)
        while True:
            row = self._table.get(key) or {}
            recorded = set().union(*(row.get(end_state, set()) for end_state in END_STATES))
            new = {index: end_state for index, end_state in end_states.items() if index not in recorded}
            if not new:
                return _counts(job, row)
            try:
                return _counts(job, self._table.update(_record_update(key, new, _ttl(job))))
            except ConditionFailed:
                continue


def dependent_from_row(row: Row) -> Dependent:
    """Read a dependent from its row, which is next to the wait entries."""
    job_id, index = row["sk"].split("#")
    return Dependent(
        job_id=job_id, attempt=int(row["attempt"]), index=int(index), known_version=int(row["known_version"])
    )


def _record_update(key: keys.Key, new: Mapping[int, EndState], ttl: int) -> Update:
    """Build the update that adds each index to the set of its end state, unless a set has it already."""
    index_sets: dict[EndState, set[int]] = {}
    for index, end_state in new.items():
        index_sets.setdefault(end_state, set()).add(index)
    conditions = [f"NOT contains({end_state}, :i{index})" for index in new for end_state in END_STATES]
    additions = ", ".join(f"{end_state} :{end_state}" for end_state in index_sets)
    return Update(
        key=key,
        expression=f"ADD {additions} SET entity = :entity, schema_version = :one, #ttl = :ttl",
        names={"#ttl": "ttl"},
        values={
            ":entity": "dependencies",
            ":one": 1,
            ":ttl": ttl,
            **{f":{end_state}": indexes for end_state, indexes in index_sets.items()},
        },
        condition=WriteCondition(expression=" AND ".join(conditions), values={f":i{index}": index for index in new}),
    )


def _ttl(job: Job) -> int:
    """Return a TTL after the expiry of an open job."""
    return to_epoch_s((job.expires_at or job.updated_at) + TTL_MARGIN)


def _counts(job: Job, row: Row) -> DependencyCounts:
    depends_on = job.dependencies.depends_on
    failed_indexes = sorted(int(index) for end_state in FAILED_END_STATES for index in row.get(end_state, ()))
    return DependencyCounts.of(
        len(depends_on),
        {end_state: len(row.get(end_state, ())) for end_state in END_STATES},
        [depends_on[index].job_id for index in failed_indexes],
    )


def _head(key: keys.Key, entity: str) -> Row:
    return {"pk": key.pk, "sk": key.sk, "entity": entity, "schema_version": 1}
