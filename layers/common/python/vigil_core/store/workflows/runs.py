"""Runs of workflows in the table: the run's own row, its graph and the bodies of its jobs, how its jobs stand, what is
held back, what operators have decided."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from threading import Lock
from typing import Any, get_args

from vigil_core.domain.errors import StoreConflict
from vigil_core.domain.exact_json import JsonValue, dumps, loads
from vigil_core.domain.jobs.job import JobError, NewJob, Priority
from vigil_core.domain.jobs.retention import DEFAULT_RETENTION, OPEN_JOB_TTL
from vigil_core.domain.timestamps import from_epoch_s, from_text, to_epoch_s, to_text
from vigil_core.domain.workflows.graph import Graph, Node, block_numbers
from vigil_core.domain.workflows.run import DecisionAction, RunLogEntry, WorkflowRun, format_supervisor_id
from vigil_core.domain.workflows.run_state import NodeState, StateBlock, StateRecord
from vigil_core.store import keys
from vigil_core.store.jobs.jobs import MAX_ROW_BYTES, PRIORITY_RANKS, PayloadStore, retry_from_row, retry_to_row
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

SCHEMA_VERSION = 1
MAX_CACHED_GRAPHS = 32
MAX_CACHED_JOBS = 60_000
MAX_STATES_PER_UPDATE = 40
"""Notes of one update: each takes five operators of a condition, which may have 300."""
MAX_UPDATE_ATTEMPTS = 12
_NODE_STATES: tuple[NodeState, ...] = get_args(NodeState)
_CODE_BY_NODE_STATE: Mapping[NodeState, int] = {standing: code for code, standing in enumerate(_NODE_STATES)}
_CODE_SPACE = 16
_PREPARED_SPACE = 1_000


@dataclass(frozen=True, kw_only=True)
class SupervisorToken:
    """Whether the supervisor of a run waits to be woken: its token, and up to which fact it has seen."""

    token: str
    seen_signals: int


@dataclass(frozen=True, kw_only=True)
class OperatorDecision:
    """What an operator said is to become of a failed job, as of one moment of its life."""

    index: int
    state_version: int
    action: DecisionAction
    actor: str
    at: datetime
    comment: str | None


class RunStore:
    """Reads and writes runs. What has expired is not found. Graphs never change, and are kept by a warm process."""

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
        # Runs of a batch are followed by several threads, and one may let go of what another is about to take.
        self._graphs_lock = Lock()

    # The run itself

    def find(self, namespace: str, workflow_id: str) -> WorkflowRun | None:
        """The run as it is now. One consistent read of its row, usually of 1 or 2 KB."""
        row = self._table.get(keys.run(namespace, workflow_id))
        return None if row is None else self._unless_expired(run_from_row(row))

    def find_many(self, namespace: str, workflow_ids: Iterable[str]) -> dict[str, WorkflowRun]:
        """The runs that exist, by id."""
        rows = self._table.batch_get([keys.run(namespace, workflow_id) for workflow_id in workflow_ids])
        runs = map(self._unless_expired, map(run_from_row, rows.values()))
        return {run.workflow_id: run for run in runs if run is not None}

    def create(self, run: WorkflowRun) -> None:
        """Store the first version; what it is made of is stored before. Raises ConditionFailed when the id is taken."""
        self._table.put(Put(row=run_to_row(replace(run, expires_at=self._expiry(run))), condition=ABSENT))

    def save(self, before: WorkflowRun, after: WorkflowRun) -> WorkflowRun:
        """Store the version that follows `before`; nothing when they are the same. What the supervisor writes into the
        same row stays as it is. Returns what is stored.

        Raises:
            ConditionFailed: the run has moved on since it was read.
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
        """Note that the jobs of a chunk are there; of how many chunks that is so, in this generation."""
        row = self._table.update(
            Update(
                key=keys.run(run.namespace, run.workflow_id),
                expression="ADD prepared :chunk",
                values={":chunk": {run.generation * _PREPARED_SPACE + block}},
                condition=WriteCondition(expression="attribute_exists(pk)"),
            )
        )
        return sum(number // _PREPARED_SPACE == run.generation for number in row["prepared"])

    def supervisor_token(self, run: WorkflowRun) -> SupervisorToken | None:
        """Whether the supervisor of a run waits to be woken."""
        row = self._table.get(keys.run(run.namespace, run.workflow_id))
        return None if row is None else supervisor_token_from_row(row)

    def set_side_row_ttl(self, run: WorkflowRun) -> None:
        """Have what lies beside the row of a run expire with it: soon once it has ended, late when it begins anew."""
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

    # What never changes

    def put_graph(self, namespace: str, workflow_id: str, graph: Graph) -> None:
        """Store the graph, before the run. A row for each 350 KB, compressed."""
        packed = zlib.compress(dumps(_graph_to_json(graph)).encode(), 9)
        parts = [packed[start : start + MAX_ROW_BYTES] for start in range(0, len(packed), MAX_ROW_BYTES)]
        for number, part in enumerate(parts):
            key = keys.graph_part(namespace, workflow_id, number)
            self._table.put(Put(row={**self._head(key, "graph"), "body": part}))
        self._cache_graph((namespace, workflow_id), graph)

    def graph(self, namespace: str, workflow_id: str) -> Graph:
        """The graph of a run that exists."""
        cache_key = namespace, workflow_id
        with self._graphs_lock:
            if cache_key in self._graphs:
                self._graphs.move_to_end(cache_key)
                return self._graphs[cache_key]
        rows = query_all(self._table, keys.run(namespace, workflow_id).pk, begins=keys.GRAPH_PARTS)
        graph = _graph_from_json(loads(zlib.decompress(b"".join(row["body"] for row in rows))))
        self._cache_graph(cache_key, graph)
        return graph

    def put_job_definitions(self, namespace: str, workflow_id: str, block: int, definitions: Sequence[NewJob]) -> None:
        """Store what the jobs of a chunk are to be, before the run."""
        key = keys.run_job_definitions(namespace, workflow_id, block)
        text = dumps([_definition_to_json(body) for body in definitions])
        packed = zlib.compress(text.encode())
        row: Row = {**self._head(key, "run_bodies"), "body": packed}
        if len(packed) > MAX_ROW_BYTES:
            self._objects.put(keys.run_object_name(namespace, workflow_id, key.sk), text, retention_class="open")
            row = self._head(key, "run_bodies")
        self._table.put(Put(row=row))

    def job_definitions(self, namespace: str, workflow_id: str, block: int) -> list[NewJob]:
        """What the jobs of a chunk are to be."""
        key = keys.run_job_definitions(namespace, workflow_id, block)
        row = self._table.get(key) or {}
        if "body" in row:
            text: str | None = zlib.decompress(row["body"]).decode()
        else:
            text = self._objects.get(keys.run_object_name(namespace, workflow_id, key.sk))
        definitions: Any = loads(text or "[]")
        return [_definition_from_json(body) for body in definitions]

    def put_result(self, run: WorkflowRun, nonce: str, text: str) -> str:
        """Store what the run came to, before the version that points to it. Returns the pointer."""
        key = keys.run_result(run.namespace, run.workflow_id, run.generation, nonce)
        if len(text.encode()) > MAX_ROW_BYTES:
            self._objects.put(
                keys.run_object_name(run.namespace, run.workflow_id, key.sk), text, retention_class="ended"
            )
            return keys.object_ref(len(text.encode()), key.sk)
        self._table.put(Put(row={**self._head(key, "run_result"), "body": text}))
        return key.sk

    def result(self, run: WorkflowRun) -> tuple[str | None, str | None]:
        """What the run came to as JSON text, or where it can be read when it is too large for an answer."""
        if run.result_ref is None:
            return None, None
        if (parsed := keys.parse_object_ref(run.result_ref)) is not None:
            return None, self._objects.url(keys.run_object_name(run.namespace, run.workflow_id, parsed[1]))
        row = self._table.get(keys.Key(keys.run(run.namespace, run.workflow_id).pk, run.result_ref))
        return (None if row is None else str(row["body"])), None

    # How its jobs stand

    def state_block(self, namespace: str, workflow_id: str, block: int) -> StateBlock:
        """How the jobs of a chunk stand. One consistent read of a row of at most 1 KB."""
        return _state_block_from_row(self._table.get(keys.run_state_block(namespace, workflow_id, block)) or {})

    def state_blocks(self, run: WorkflowRun) -> tuple[dict[int, StateBlock], datetime]:
        """How all jobs stand, and when that was last noted. A read unit for each 4 KB, which 500 jobs take or more."""
        blocks = {number: StateBlock() for number in block_numbers(run.total)}
        last_recorded_at = run.started_at or run.created_at
        for row in query_all(self._table, keys.run(run.namespace, run.workflow_id).pk, begins=keys.RUN_STATE_BLOCKS):
            blocks[int(row["sk"].removeprefix(keys.RUN_STATE_BLOCKS))] = _state_block_from_row(row)
            last_recorded_at = max(last_recorded_at, from_text(row["noted_at"]))
        return blocks, last_recorded_at

    def record_states(
        self, namespace: str, workflow_id: str, block: int, records: Mapping[int, StateRecord]
    ) -> StateBlock:
        """Note how jobs stand, each unless that moment of its life or a later one is noted; returns the chunk as it is
        then. An empty mapping only makes the row."""
        remaining = {index: _record_to_number(note) for index, note in records.items()}
        while True:
            batch = dict(list(remaining.items())[:MAX_STATES_PER_UPDATE])
            row = self._record_states(keys.run_state_block(namespace, workflow_id, block), batch)
            remaining = {place: number for place, number in remaining.items() if place not in batch}
            if not remaining:
                return _state_block_from_row(row)

    def record_race_losers(self, namespace: str, workflow_id: str, block: int, indexes: Iterable[int]) -> StateBlock:
        """Note that the race of these jobs is over."""
        row = self._table.update(
            Update(
                key=keys.run_state_block(namespace, workflow_id, block),
                expression="ADD lost :places SET entity = :entity, schema_version = :one, noted_at = :now, #ttl = :ttl",
                names={"#ttl": "ttl"},
                values={":places": set(indexes), **self._state_block_values()},
            )
        )
        return _state_block_from_row(row)

    def clear_race_losers(self, namespace: str, workflow_id: str, block: int, indexes: Iterable[int]) -> None:
        """These jobs, which are to run again, have lost no race."""
        self._table.update(
            Update(
                key=keys.run_state_block(namespace, workflow_id, block),
                expression="DELETE lost :places SET entity = :entity, schema_version = :one, noted_at = :now, "
                "#ttl = :ttl",
                names={"#ttl": "ttl"},
                values={":places": set(indexes), **self._state_block_values()},
            )
        )

    def _record_states(self, key: keys.Key, numbers: Mapping[int, int]) -> Row:
        for _ in range(MAX_UPDATE_ATTEMPTS):
            sets = "".join(f", j{index} = :j{index}" for index in numbers)
            is_newer = " AND ".join(f"(attribute_not_exists(j{place}) OR j{place} < :m{place})" for place in numbers)
            try:
                return self._table.update(
                    Update(
                        key=key,
                        expression=f"SET entity = :entity, schema_version = :one, noted_at = :now, #ttl = :ttl{sets}",
                        names={"#ttl": "ttl"},
                        values={
                            **{f":j{place}": number for place, number in numbers.items()},
                            **self._state_block_values(),
                        },
                        condition=WriteCondition(
                            expression=is_newer,
                            values={f":m{place}": _version_floor(number) for place, number in numbers.items()},
                        )
                        if is_newer
                        else None,
                    )
                )
            except ConditionFailed as error:
                old = error.old if error.old is not None else self._table.get(key) or {}
                numbers = {
                    place: number
                    for place, number in numbers.items()
                    if old.get(f"j{place}", -1) < _version_floor(number)
                }
                if not numbers:
                    return old
        raise StoreConflict(f"How jobs stand in {key.pk} is being noted by too many at once")

    # Who may run at once

    def acquire_slot(self, run: WorkflowRun, index: int) -> bool:
        """Have a job be one of those that may run at once, unless these are enough already. Having it twice is once."""
        try:
            self._table.update(
                Update(
                    key=keys.run_slots(run.namespace, run.workflow_id),
                    expression="ADD owners :place SET entity = :entity, schema_version = :one, #ttl = :ttl",
                    names={"#ttl": "ttl"},
                    values={":place": {index}, ":entity": "run_slots", ":one": SCHEMA_VERSION, ":ttl": self._ttl()},
                    condition=WriteCondition(
                        expression="attribute_not_exists(owners) OR size(owners) < :most OR contains(owners, :owner)",
                        values={":most": run.max_concurrency, ":owner": index},
                    ),
                )
            )
        except ConditionFailed:
            return False
        return True

    def release_slots(self, run: WorkflowRun, indexes: Iterable[int]) -> None:
        """These jobs have ended."""
        self._table.update(
            Update(
                key=keys.run_slots(run.namespace, run.workflow_id),
                expression="DELETE owners :places SET entity = :entity, schema_version = :one, #ttl = :ttl",
                names={"#ttl": "ttl"},
                values={":places": set(indexes), ":entity": "run_slots", ":one": SCHEMA_VERSION, ":ttl": self._ttl()},
            )
        )

    def slot_owners(self, run: WorkflowRun) -> set[int]:
        """Who has one."""
        row = self._table.get(keys.run_slots(run.namespace, run.workflow_id)) or {}
        return {int(index) for index in row.get("owners", ())}

    # What is held back

    def park(self, namespace: str, workflow_id: str, priority: Priority, index: int) -> None:
        """Keep in mind that a job is ready, before it is held back."""
        key = keys.parked_job(namespace, workflow_id, PRIORITY_RANKS[priority], index)
        self._table.put(Put(row=self._head(key, "held_job")))

    def parked(self, run: WorkflowRun, limit: int) -> list[keys.Key]:
        """Jobs that are held back, in the order in which they are let go."""
        pk = keys.run(run.namespace, run.workflow_id).pk
        return [
            keys.Key(pk, row["sk"]) for row in self._table.query_page(pk, begins=keys.PARKED_JOBS, limit=limit).rows
        ]

    def unpark(self, key: keys.Key) -> None:
        """A job is held back no longer."""
        self._table.delete(Delete(key=key))

    # What operators have decided

    def put_decision(self, run: WorkflowRun, decision: OperatorDecision) -> None:
        """Keep a decision, before the run says that there is one. A later one about the same job replaces it."""
        key = keys.decision(run.namespace, run.workflow_id, decision.index)
        attributes: Row = {
            "moment": decision.state_version,
            "action": decision.action,
            "by": decision.actor,
            "at": to_text(decision.at),
            "note": decision.comment,
        }
        self._table.put(Put(row={**self._head(key, "decision"), **attributes}))

    def decisions(self, run: WorkflowRun) -> list[OperatorDecision]:
        """All decisions of a run, also those that have been carried out."""
        pk = keys.run(run.namespace, run.workflow_id).pk
        return [
            OperatorDecision(
                index=int(row["sk"].removeprefix(keys.DECISIONS)),
                state_version=row["moment"],
                action=row["action"],
                actor=row["by"],
                at=from_text(row["at"]),
                comment=row.get("note"),
            )
            for row in query_all(self._table, pk, begins=keys.DECISIONS)
        ]

    def _unless_expired(self, run: WorkflowRun) -> WorkflowRun | None:
        return None if run.expires_at is not None and run.expires_at <= self._now() else run

    def _expiry(self, run: WorkflowRun) -> datetime:
        if run.finished_at is not None:
            return (run.finished_at + self._retention).replace(microsecond=0)
        return (run.deadline_at + OPEN_JOB_TTL + self._retention).replace(microsecond=0)

    def _ttl(self) -> int:
        """Of what lies beside the row of a run that goes on."""
        return to_epoch_s(self._now() + OPEN_JOB_TTL + self._retention)

    def _state_block_values(self) -> Row:
        return {":entity": "run_chunk", ":one": SCHEMA_VERSION, ":now": to_text(self._now()), ":ttl": self._ttl()}

    def _head(self, key: keys.Key, entity: str) -> Row:
        return {"pk": key.pk, "sk": key.sk, "entity": entity, "schema_version": SCHEMA_VERSION, "ttl": self._ttl()}

    def _cache_graph(self, cache_key: tuple[str, str], graph: Graph) -> None:
        with self._graphs_lock:
            self._graphs[cache_key] = graph
            while len(self._graphs) > 1 and (
                len(self._graphs) > MAX_CACHED_GRAPHS
                or sum(len(kept.nodes) for kept in self._graphs.values()) > MAX_CACHED_JOBS
            ):
                self._graphs.popitem(last=False)


def run_from_row(row: Row) -> WorkflowRun:
    """A run from its row."""
    namespace, workflow_id = keys.parse_run(row["pk"])
    log: Any = loads(row["log"])
    return WorkflowRun(
        namespace=namespace,
        workflow_id=workflow_id,
        name=row["name"],
        description=row.get("description"),
        status=row["status"],
        failure_policy=row["failure_policy"],
        priority=row["priority"],
        timeout_s=row.get("timeout_s"),
        max_concurrency=row.get("max_concurrency"),
        health_check_interval_s=row.get("health_check_interval_s"),
        output=row.get("output"),
        trace_id=row.get("trace_id"),
        correlation_id=row.get("correlation_id"),
        total=row["total"],
        edges=row["edges"],
        generation=row["generation"],
        supervisor=row["supervisor"],
        created_at=from_text(row["created_at"]),
        updated_at=from_text(row["updated_at"]),
        started_at=_parse_time(row.get("started_at")),
        finished_at=_parse_time(row.get("finished_at")),
        deadline_at=from_text(row["deadline_at"]),
        version=row["version"],
        log=tuple(
            RunLogEntry(version=version, occurred_at=from_text(at), kind=kind, actor=by, status=status, reason=why)
            for version, at, kind, by, status, why in log
        ),
        registration_complete=row.get("sealed", False),
        signal_count=row.get("facts", 0),
        failed_job=row.get("failed_job"),
        cancel_requested_by=row.get("cancel_requested_by"),
        deadline_passed=row.get("deadline_passed", False),
        aborted=row.get("aborted", False),
        drained=row.get("drained", False),
        has_pending_decisions=row.get("decisions_open", False),
        cancelling=row.get("closing", False),
        paused_by_operator=row.get("paused_by_operator", False),
        rerun=frozenset(_indexes_from_bitmap(row["again"])) if "again" in row else None,
        error=JobError(**row["error"]) if "error" in row else None,
        result_ref=row.get("result_ref"),
        statistics=row.get("statistics"),
        next_check_at=_parse_time(row.get("look_at")),
        stalled_at=_parse_time(row.get("stalled_at")),
        expires_at=from_epoch_s(row["ttl"]) if "ttl" in row else None,
    )


def run_to_row(run: WorkflowRun) -> Row:
    """The row of a run, but for what its supervisor writes there: the inverse of `run_from_row`."""
    key = keys.run(run.namespace, run.workflow_id)
    row: Row = {
        "pk": key.pk,
        "sk": key.sk,
        "entity": "run",
        "schema_version": SCHEMA_VERSION,
        "name": run.name,
        "description": run.description,
        "status": run.status,
        "failure_policy": run.failure_policy,
        "priority": run.priority,
        "timeout_s": run.timeout_s,
        "max_concurrency": run.max_concurrency,
        "health_check_interval_s": run.health_check_interval_s,
        "output": run.output,
        "trace_id": run.trace_id,
        "correlation_id": run.correlation_id,
        "total": run.total,
        "edges": run.edges,
        "generation": run.generation,
        "supervisor": run.supervisor,
        "created_at": to_text(run.created_at),
        "updated_at": to_text(run.updated_at),
        "started_at": run.started_at and to_text(run.started_at),
        "finished_at": run.finished_at and to_text(run.finished_at),
        "deadline_at": to_text(run.deadline_at),
        "version": run.version,
        "log": dumps([[e.version, to_text(e.occurred_at), e.kind, e.actor, e.status, e.reason] for e in run.log]),
        "sealed": run.registration_complete or None,
        "facts": run.signal_count,
        "failed_job": run.failed_job,
        "cancel_requested_by": run.cancel_requested_by,
        "deadline_passed": run.deadline_passed or None,
        "aborted": run.aborted or None,
        "drained": run.drained or None,
        "decisions_open": run.has_pending_decisions or None,
        "closing": run.cancelling or None,
        "paused_by_operator": run.paused_by_operator or None,
        "again": None if run.rerun is None else _indexes_to_bitmap(run.rerun, run.total),
        "error": None if run.error is None else {"code": run.error.code, "message": run.error.message},
        "result_ref": run.result_ref,
        "statistics": None if run.statistics is None else dict(run.statistics),
        "look_at": run.next_check_at and to_text(run.next_check_at),
        "stalled_at": run.stalled_at and to_text(run.stalled_at),
        "ttl": run.expires_at and to_epoch_s(run.expires_at),
    }
    row["g2pk"], row["g2sk"] = keys.listing(run.namespace, "workflows", run.created_at, run.workflow_id)
    if run.next_check_at is not None:
        row["g1pk"], row["g1sk"] = keys.due(run.next_check_at, "run", run.namespace, run.workflow_id)
    return row


def supervisor_token_from_row(row: Row) -> SupervisorToken | None:
    """Whether the supervisor of this generation waits to be woken, as its run's row says."""
    if row.get("supervised") != format_supervisor_id(row["generation"], row["supervisor"]):
        return None
    return SupervisorToken(token=row["supervisor_token"], seen_signals=int(row.get("seen", 0)))


def _graph_to_json(graph: Graph) -> JsonValue:
    nodes = graph.nodes
    return {
        "names": [node.name for node in nodes],
        "types": [None if node.job_type == node.name else node.job_type for node in nodes],
        "after": [list(node.depends_on) for node in nodes],
        "rules": {str(at): node.trigger_rule for at, node in enumerate(nodes) if node.trigger_rule != "all_success"},
        "conditions": {str(at): node.condition for at, node in enumerate(nodes) if node.condition is not None},
        "races": [at for at, node in enumerate(nodes) if node.cancel_losers],
        "delayed": [at for at, node in enumerate(nodes) if node.has_start_delay],
    }


def _graph_from_json(document: Any) -> Graph:
    races, delayed = set(document["races"]), set(document["delayed"])
    return Graph(
        nodes=[
            Node(
                name=name,
                job_type=job_type or name,
                depends_on=tuple(after),
                trigger_rule=document["rules"].get(str(at), "all_success"),
                condition=document["conditions"].get(str(at)),
                cancel_losers=at in races,
                has_start_delay=at in delayed,
            )
            for at, (name, job_type, after) in enumerate(
                zip(document["names"], document["types"], document["after"], strict=True)
            )
        ]
    )


_DEFINITION_FIELDS = {each.name: each for each in fields(NewJob)}


def _definition_to_json(definition: NewJob) -> JsonValue:
    values: dict[str, Any] = {name: getattr(definition, name) for name in _DEFINITION_FIELDS}
    values |= {
        "retry": None if definition.retry is None else retry_to_row(definition.retry),
        "scheduled_at": definition.scheduled_at and to_text(definition.scheduled_at),
    }
    return {
        name: value
        for name, value in values.items()
        if value != _DEFINITION_FIELDS[name].default and value not in ((), {})
    }


def _definition_from_json(document: Mapping[str, Any]) -> NewJob:
    values: dict[str, Any] = dict(document)
    values |= {
        name: tuple(values[name]) for name in ("stages", "tags", "depends_on", "upstream_names") if name in values
    }
    if "retry" in values:
        values["retry"] = retry_from_row(values["retry"])
    if "scheduled_at" in values:
        values["scheduled_at"] = from_text(values["scheduled_at"])
    return NewJob(**values)


def _version_floor(number: int) -> int:
    """What every note on an earlier moment is below, and none on the same or a later one."""
    return number - number % _CODE_SPACE


def _record_to_number(record: StateRecord) -> int:
    """Later moments have higher numbers."""
    return record.state_version * _CODE_SPACE + _CODE_BY_NODE_STATE[record.state]


def _state_block_from_row(row: Row) -> StateBlock:
    records = {
        int(name[1:]): StateRecord(state=_NODE_STATES[number % _CODE_SPACE], state_version=number // _CODE_SPACE)
        for name, number in row.items()
        if name[0] == "j" and name[1:].isdecimal()
    }
    return StateBlock(records=records, race_losers=frozenset(int(index) for index in row.get("lost", ())))


def _indexes_to_bitmap(indexes: Iterable[int], total: int) -> bytes:
    """A bit for each place."""
    bits = bytearray((total + 7) // 8)
    for index in indexes:
        bits[index // 8] |= 1 << index % 8
    return bytes(bits)


def _indexes_from_bitmap(bits: bytes) -> Iterable[int]:
    return (8 * at + bit for at, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1)


def _parse_time(text: str | None) -> datetime | None:
    return from_text(text) if text else None
