"""Store of workflow runs: the run's row, its graph, job definitions, node states, slots, parked jobs and decisions."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from threading import Lock
from typing import Any

from vigil_core.domain.errors import StoreConflict
from vigil_core.domain.exact_json import dumps, loads
from vigil_core.domain.jobs.job import NewJob, Priority
from vigil_core.domain.jobs.retention import DEFAULT_RETENTION, OPEN_JOB_TTL
from vigil_core.domain.timestamps import from_text, to_epoch_s, to_text
from vigil_core.domain.workflows.graph import Graph, block_numbers
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.domain.workflows.run_state import StateBlock, StateRecord
from vigil_core.store import keys
from vigil_core.store.jobs.job_rows import PRIORITY_RANKS
from vigil_core.store.jobs.payloads import MAX_ROW_BYTES, PayloadStore
from vigil_core.store.table import (
    ABSENT,
    ConditionFailed,
    Delete,
    Put,
    Row,
    Table,
    Update,
    WriteCondition,
    query_all,
    version_is,
)
from vigil_core.store.workflows.run_rows import (
    SCHEMA_VERSION,
    OperatorDecision,
    SupervisorToken,
    decision_from_row,
    decision_to_attributes,
    definition_from_json,
    definition_to_json,
    graph_from_json,
    graph_to_json,
    prepared_count,
    prepared_number,
    record_to_number,
    run_from_row,
    run_to_row,
    state_block_from_row,
    supervisor_token_from_row,
    version_floor,
)

MAX_CACHED_GRAPHS = 32
MAX_CACHED_JOBS = 60_000
"""The number of jobs in all cached graphs together."""
MAX_STATES_PER_UPDATE = 40
"""State records per update. Each takes five operators of the condition, and DynamoDB allows 300 operators."""
SET_STATE_BLOCK_HEAD = "SET entity = :entity, schema_version = :one, recorded_at = :now, #ttl = :ttl"
"""The attributes that every update of a state block sets. Their values come from `_state_block_values`."""


class RunStore:
    """Read and write workflow runs. Expired runs are not found. A graph never changes, so a warm process caches it."""

    def __init__(
        self,
        table: Table,
        objects: PayloadStore,
        *,
        now: Callable[[], datetime],
        retention: timedelta = DEFAULT_RETENTION,
    ) -> None:
        self._table = table
        self._objects = objects
        self._now = now
        self._retention = retention
        self._graphs: OrderedDict[tuple[str, str], Graph] = OrderedDict()
        # Several threads of the matcher use the cache at once: one may evict a graph while another reads it.
        self._graphs_lock = Lock()

    # The run itself

    def find(self, namespace: str, workflow_id: str) -> WorkflowRun | None:
        """Return the current version of a run. Costs one consistent read of a row of usually 1 or 2 KB."""
        row = self._table.get(keys.run(namespace, workflow_id))
        return None if row is None else self._unless_expired(run_from_row(row))

    def find_many(self, namespace: str, workflow_ids: Iterable[str]) -> dict[str, WorkflowRun]:
        """Return the existing runs among these ids, by id."""
        rows = self._table.batch_get([keys.run(namespace, workflow_id) for workflow_id in workflow_ids])
        runs = map(self._unless_expired, map(run_from_row, rows.values()))
        return {run.workflow_id: run for run in runs if run is not None}

    def create(self, run: WorkflowRun) -> None:
        """Store the first version of a run. Its graph and job definitions are stored before.

        Raises:
            ConditionFailed: The id is taken.
        """
        self._table.put(Put(row=run_to_row(replace(run, expires_at=self._expiry(run))), condition=ABSENT))

    def save(self, before: WorkflowRun, after: WorkflowRun) -> WorkflowRun:
        """Store the version that follows `before`, and return it.

        The update changes only the attributes that differ: the supervisor writes its token into the same row, and that
        token stays. Equal versions cause no write.

        Raises:
            ConditionFailed: The run has changed since `before` was read.
        """
        if after == before:
            return before
        after = replace(after, expires_at=self._expiry(after))
        old, new = run_to_row(before), run_to_row(after)
        changes = {name: value for name, value in new.items() if value is not None and value != old.get(name)}
        removed = [name for name, value in old.items() if value is not None and new.get(name) is None]
        names = {f"#{name}": name for name in (*changes, *removed)}
        assignments = ", ".join(f"#{name} = :{name}" for name in changes)
        removal = f" REMOVE {', '.join(f'#{name}' for name in removed)}" if removed else ""
        self._table.update(
            Update(
                key=keys.run(after.namespace, after.workflow_id),
                expression=f"SET {assignments}{removal}",
                names=names,
                values={f":{name}": value for name, value in changes.items()},
                condition=version_is(before.version),
            )
        )
        return after

    def mark_prepared(self, run: WorkflowRun, block: int) -> int:
        """Record that all jobs of a block exist, and return the number of such blocks of this generation."""
        row = self._table.update(
            Update(
                key=keys.run(run.namespace, run.workflow_id),
                expression="ADD prepared_blocks :block",
                values={":block": {prepared_number(run.generation, block)}},
                condition=WriteCondition(expression="attribute_exists(pk)"),
            )
        )
        return prepared_count(row["prepared_blocks"], run.generation)

    def supervisor_token(self, run: WorkflowRun) -> SupervisorToken | None:
        """Return the task token of the run's supervisor, or None if it does not wait for a signal."""
        row = self._table.get(keys.run(run.namespace, run.workflow_id))
        return None if row is None else supervisor_token_from_row(row)

    def set_side_row_ttl(self, run: WorkflowRun) -> None:
        """Set the TTL of the run's side rows (graph, definitions, states, slots) to the run's own expiry.

        The expiry is near for an ended run, and late for a run that a retry has started again.
        """
        ttl = to_epoch_s(self._expiry(run))
        pk = keys.run(run.namespace, run.workflow_id).pk
        for row in query_all(self._table, pk, between=("B", "Z")):
            if row.get("ttl") != ttl:
                with suppress(ConditionFailed):
                    self._table.update(
                        Update(
                            key=keys.Key(pk, row["sk"]),
                            expression="SET #ttl = :ttl",
                            names={"#ttl": "ttl"},
                            values={":ttl": ttl},
                            condition=WriteCondition(expression="attribute_exists(pk)"),
                        )
                    )

    # Graph, job definitions and result: written once

    def put_graph(self, namespace: str, workflow_id: str, graph: Graph) -> None:
        """Store the graph, compressed, in one row for each 350 KB. The run is created after its graph."""
        packed = zlib.compress(dumps(graph_to_json(graph)).encode(), 9)
        parts = [packed[start : start + MAX_ROW_BYTES] for start in range(0, len(packed), MAX_ROW_BYTES)]
        for number, part in enumerate(parts):
            key = keys.graph_part(namespace, workflow_id, number)
            self._table.put(Put(row={**self._head(key, "graph"), "body": part}))
        self._cache_graph((namespace, workflow_id), graph)

    def graph(self, namespace: str, workflow_id: str) -> Graph:
        """Return the graph of an existing run, from the cache if possible."""
        cache_key = namespace, workflow_id
        with self._graphs_lock:
            if cache_key in self._graphs:
                self._graphs.move_to_end(cache_key)
                return self._graphs[cache_key]
        rows = query_all(self._table, keys.run(namespace, workflow_id).pk, begins=keys.GRAPH_PARTS)
        graph = graph_from_json(loads(zlib.decompress(b"".join(row["body"] for row in rows))))
        self._cache_graph(cache_key, graph)
        return graph

    def put_job_definitions(self, namespace: str, workflow_id: str, block: int, definitions: Sequence[NewJob]) -> None:
        """Store the definitions of the jobs of a block. The run is created after them."""
        key = keys.run_job_definitions(namespace, workflow_id, block)
        text = dumps([definition_to_json(definition) for definition in definitions])
        packed = zlib.compress(text.encode())
        row: Row = {**self._head(key, "run_job_definitions"), "body": packed}
        if len(packed) > MAX_ROW_BYTES:
            self._objects.put(keys.run_object_name(namespace, workflow_id, key.sk), text, retention_class="open")
            row = self._head(key, "run_job_definitions")
        self._table.put(Put(row=row))

    def job_definitions(self, namespace: str, workflow_id: str, block: int) -> list[NewJob]:
        """Return the definitions of the jobs of a block."""
        key = keys.run_job_definitions(namespace, workflow_id, block)
        row = self._table.get(key) or {}
        if "body" in row:
            text: str | None = zlib.decompress(row["body"]).decode()
        else:
            text = self._objects.get(keys.run_object_name(namespace, workflow_id, key.sk))
        definitions: Any = loads(text or "[]")
        return [definition_from_json(definition) for definition in definitions]

    def put_result(self, run: WorkflowRun, nonce: str, text: str) -> str:
        """Store the result of a run and return the pointer to it. The version with the pointer is stored afterwards."""
        key = keys.run_result(run.namespace, run.workflow_id, run.generation, nonce)
        if len(text.encode()) > MAX_ROW_BYTES:
            self._objects.put(
                keys.run_object_name(run.namespace, run.workflow_id, key.sk), text, retention_class="ended"
            )
            return keys.object_ref(len(text.encode()), key.sk)
        self._table.put(Put(row={**self._head(key, "run_result"), "body": text}))
        return key.sk

    def result_object(self, run: WorkflowRun, nonce: str) -> tuple[str, Callable[[int | None], str]]:
        """Return the name of an object for a run's result, and a function from its size to its pointer."""
        sk = keys.run_result(run.namespace, run.workflow_id, run.generation, nonce).sk
        return keys.run_object_name(run.namespace, run.workflow_id, sk), lambda size: keys.object_ref(size, sk)

    def result(self, run: WorkflowRun) -> tuple[str | None, str | None]:
        """Return the result as (JSON text, None), or (None, URL) if it is too large for an answer."""
        if run.result_ref is None:
            return None, None
        if (parsed := keys.parse_object_ref(run.result_ref)) is not None:
            return None, self._objects.url(keys.run_object_name(run.namespace, run.workflow_id, parsed[1]))
        row = self._table.get(keys.Key(keys.run(run.namespace, run.workflow_id).pk, run.result_ref))
        return (None if row is None else str(row["body"])), None

    # Node states

    def state_block(self, namespace: str, workflow_id: str, block: int) -> StateBlock:
        """Return the node states of a block. Costs one consistent read of a row of at most 1 KB."""
        return state_block_from_row(self._table.get(keys.run_state_block(namespace, workflow_id, block)) or {})

    def state_blocks(self, run: WorkflowRun) -> tuple[dict[int, StateBlock], datetime]:
        """Return the node states of all blocks, and the time of the last record.

        Costs one read unit for each 4 KB, which is the size of the states of at least 500 jobs.
        """
        blocks = {number: StateBlock() for number in block_numbers(run.total)}
        last_recorded_at = run.started_at or run.created_at
        for row in query_all(self._table, keys.run(run.namespace, run.workflow_id).pk, begins=keys.RUN_STATE_BLOCKS):
            blocks[int(row["sk"].removeprefix(keys.RUN_STATE_BLOCKS))] = state_block_from_row(row)
            last_recorded_at = max(last_recorded_at, from_text(row["recorded_at"]))
        return blocks, last_recorded_at

    def record_states(
        self, namespace: str, workflow_id: str, block: int, records: Mapping[int, StateRecord]
    ) -> StateBlock:
        """Record node states and return the block after the update.

        A record never replaces one with the same or a higher state version. An empty mapping only creates the row.
        """
        remaining = {index: record_to_number(record) for index, record in records.items()}
        while True:
            batch = dict(list(remaining.items())[:MAX_STATES_PER_UPDATE])
            row = self._record_states(keys.run_state_block(namespace, workflow_id, block), batch)
            remaining = {index: number for index, number in remaining.items() if index not in batch}
            if not remaining:
                return state_block_from_row(row)

    def record_race_losers(
        self, namespace: str, workflow_id: str, block: int, open_records: Mapping[int, StateRecord | None]
    ) -> StateBlock:
        """Record that these open jobs have lost their race, and return the block after the update.

        Args:
            namespace: The namespace of the run.
            workflow_id: The run.
            block: The block of the jobs.
            open_records: The state record of each job as it was read. None: the job has no record.

        Raises:
            ConditionFailed: One of the records has changed, so the job may have ended before the race.
        """
        numbers = {index: record and record_to_number(record) for index, record in open_records.items()}
        row = self._table.update(
            Update(
                key=keys.run_state_block(namespace, workflow_id, block),
                expression=f"ADD race_losers :indexes {SET_STATE_BLOCK_HEAD}",
                names={"#ttl": "ttl"},
                values={":indexes": set(numbers), **self._state_block_values()},
                condition=WriteCondition(
                    expression=" AND ".join(
                        f"attribute_not_exists(j{index})" if number is None else f"j{index} = :seen{index}"
                        for index, number in numbers.items()
                    ),
                    values={f":seen{index}": number for index, number in numbers.items() if number is not None},
                ),
            )
        )
        return state_block_from_row(row)

    def clear_race_losers(self, namespace: str, workflow_id: str, block: int, indexes: Iterable[int]) -> None:
        """Remove the race-loser mark of jobs that run again."""
        self._table.update(
            Update(
                key=keys.run_state_block(namespace, workflow_id, block),
                expression=f"DELETE race_losers :indexes {SET_STATE_BLOCK_HEAD}",
                names={"#ttl": "ttl"},
                values={":indexes": set(indexes), **self._state_block_values()},
            )
        )

    def _record_states(self, key: keys.Key, numbers: Mapping[int, int]) -> Row:
        # Each conflict removes at least one record, the one that another writer has overtaken.
        for _ in range(len(numbers) + 1):
            sets = "".join(f", j{index} = :j{index}" for index in numbers)
            is_newer = " AND ".join(f"(attribute_not_exists(j{index}) OR j{index} < :m{index})" for index in numbers)
            try:
                return self._table.update(
                    Update(
                        key=key,
                        expression=f"{SET_STATE_BLOCK_HEAD}{sets}",
                        names={"#ttl": "ttl"},
                        values={
                            **{f":j{index}": number for index, number in numbers.items()},
                            **self._state_block_values(),
                        },
                        condition=WriteCondition(
                            expression=is_newer,
                            values={f":m{index}": version_floor(number) for index, number in numbers.items()},
                        )
                        if is_newer
                        else None,
                    )
                )
            except ConditionFailed as error:
                old = error.old if error.old is not None else self._table.get(key) or {}
                numbers = {
                    index: number
                    for index, number in numbers.items()
                    if old.get(f"j{index}", -1) < version_floor(number)
                }
                if not numbers:
                    return old
        raise StoreConflict(f"Too many concurrent changes of {key.pk}: try again")

    # Concurrency slots

    def acquire_slot(self, run: WorkflowRun, index: int) -> bool:
        """Acquire a slot for a job and return True, or return False if all slots are taken. Can be repeated."""
        try:
            self._table.update(
                Update(
                    key=keys.run_slots(run.namespace, run.workflow_id),
                    expression="ADD owners :index SET entity = :entity, schema_version = :one, #ttl = :ttl",
                    names={"#ttl": "ttl"},
                    values={":index": {index}, ":entity": "run_slots", ":one": SCHEMA_VERSION, ":ttl": self._ttl()},
                    condition=WriteCondition(
                        expression="attribute_not_exists(owners) OR size(owners) < :max OR contains(owners, :owner)",
                        values={":max": run.max_concurrency, ":owner": index},
                    ),
                )
            )
        except ConditionFailed:
            return False
        return True

    def release_slots(self, run: WorkflowRun, indexes: Iterable[int]) -> None:
        """Release the slots of these jobs."""
        self._table.update(
            Update(
                key=keys.run_slots(run.namespace, run.workflow_id),
                expression="DELETE owners :indexes SET entity = :entity, schema_version = :one, #ttl = :ttl",
                names={"#ttl": "ttl"},
                values={":indexes": set(indexes), ":entity": "run_slots", ":one": SCHEMA_VERSION, ":ttl": self._ttl()},
            )
        )

    def slot_owners(self, run: WorkflowRun) -> set[int]:
        """Return the indexes of the jobs that have a slot."""
        row = self._table.get(keys.run_slots(run.namespace, run.workflow_id)) or {}
        return {int(index) for index in row.get("owners", ())}

    # Parked jobs

    def park(self, namespace: str, workflow_id: str, priority: Priority, index: int) -> None:
        """Store the row of a parked job. The job itself is marked as parked afterwards."""
        key = keys.parked_job(namespace, workflow_id, PRIORITY_RANKS[priority], index)
        self._table.put(Put(row=self._head(key, "parked_job")))

    def parked(self, run: WorkflowRun, limit: int) -> list[keys.Key]:
        """Return the keys of the first parked jobs in the order of their release: by priority, then by index."""
        pk = keys.run(run.namespace, run.workflow_id).pk
        return [
            keys.Key(pk, row["sk"]) for row in self._table.query_page(pk, begins=keys.PARKED_JOBS, limit=limit).rows
        ]

    def unpark(self, key: keys.Key) -> None:
        """Delete the row of a parked job."""
        self._table.delete(Delete(key=key))

    # Operators' decisions

    def put_decision(self, run: WorkflowRun, decision: OperatorDecision) -> OperatorDecision:
        """Store a decision unless the failure has one, before the run counts it as a signal.

        A decision on an earlier failure of the same job is replaced.

        Returns:
            The decision that is stored now: this one, or the earlier one on the same failure.
        """
        key = keys.decision(run.namespace, run.workflow_id, decision.index)
        is_first = WriteCondition(
            expression=f"{ABSENT.expression} OR state_version < :state_version",
            values={":state_version": decision.state_version},
        )
        row = {**self._head(key, "decision"), **decision_to_attributes(decision)}
        try:
            self._table.put(Put(row=row, condition=is_first))
        except ConditionFailed:
            return self.decision(run, decision.index) or decision
        return decision

    def decision(self, run: WorkflowRun, index: int) -> OperatorDecision | None:
        """Return the last decision on a job of a run, whether the supervisor has applied it or not."""
        row = self._table.get(keys.decision(run.namespace, run.workflow_id, index))
        return None if row is None else decision_from_row(row)

    def decisions(self, run: WorkflowRun) -> list[OperatorDecision]:
        """Return all decisions of a run, including those that the supervisor has applied."""
        pk = keys.run(run.namespace, run.workflow_id).pk
        return [decision_from_row(row) for row in query_all(self._table, pk, begins=keys.DECISIONS)]

    def _unless_expired(self, run: WorkflowRun) -> WorkflowRun | None:
        return None if run.expires_at is not None and run.expires_at <= self._now() else run

    def _expiry(self, run: WorkflowRun) -> datetime:
        if run.finished_at is not None:
            return (run.finished_at + self._retention).replace(microsecond=0)
        return (run.deadline_at + OPEN_JOB_TTL + self._retention).replace(microsecond=0)

    def _ttl(self) -> int:
        """Return the TTL of a side row of an open run."""
        return to_epoch_s(self._now() + OPEN_JOB_TTL + self._retention)

    def _state_block_values(self) -> Row:
        return {":entity": "run_state_block", ":one": SCHEMA_VERSION, ":now": to_text(self._now()), ":ttl": self._ttl()}

    def _head(self, key: keys.Key, entity: str) -> Row:
        return {"pk": key.pk, "sk": key.sk, "entity": entity, "schema_version": SCHEMA_VERSION, "ttl": self._ttl()}

    def _cache_graph(self, cache_key: tuple[str, str], graph: Graph) -> None:
        with self._graphs_lock:
            self._graphs[cache_key] = graph
            while len(self._graphs) > 1 and (
                len(self._graphs) > MAX_CACHED_GRAPHS
                or sum(len(cached.nodes) for cached in self._graphs.values()) > MAX_CACHED_JOBS
            ):
                self._graphs.popitem(last=False)
