"""Mapping between workflow runs and rows of the table: the run's own row, its graph, its jobs and their states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, get_args

from vigil_core.domain.exact_json import JsonValue, dumps, loads
from vigil_core.domain.jobs.job import JobError, NewJob
from vigil_core.domain.timestamps import from_epoch_s, from_text, to_epoch_s, to_text
from vigil_core.domain.workflows.graph import Graph, Node
from vigil_core.domain.workflows.run import DecisionAction, RunLogEntry, WorkflowRun, format_supervisor_id
from vigil_core.domain.workflows.run_state import NodeState, StateBlock, StateRecord
from vigil_core.store import keys
from vigil_core.store.jobs.job_rows import retry_from_row, retry_to_row
from vigil_core.store.table import Row

SCHEMA_VERSION = 1
_NODE_STATES: tuple[NodeState, ...] = get_args(NodeState)
_CODE_BY_NODE_STATE: Mapping[NodeState, int] = {state: code for code, state in enumerate(_NODE_STATES)}
_CODE_SPACE = 16
"""The distance between the stored numbers of two state versions. It leaves room for the code of each node state."""
_PREPARED_SPACE = 1_000
"""The distance between the stored block numbers of two generations."""


@dataclass(frozen=True, kw_only=True)
class SupervisorToken:
    """The task token of a waiting supervisor, with the number of signals that the supervisor has seen."""

    token: str
    seen_signals: int


@dataclass(frozen=True, kw_only=True)
class OperatorDecision:
    """An operator's choice for a failed job. It is valid for one state version of the job."""

    decision_id: str
    index: int
    state_version: int
    action: DecisionAction
    actor: str
    at: datetime
    comment: str | None


def run_from_row(row: Row) -> WorkflowRun:
    """Convert a row to a workflow run."""
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
            RunLogEntry(
                version=version,
                occurred_at=from_text(occurred_at),
                kind=kind,
                actor=actor,
                status=status,
                reason=reason,
            )
            for version, occurred_at, kind, actor, status, reason in log
        ),
        registration_complete=row.get("registration_complete", False),
        signal_count=row.get("signal_count", 0),
        failed_job=row.get("failed_job"),
        cancel_requested_by=row.get("cancel_requested_by"),
        deadline_passed=row.get("deadline_passed", False),
        aborted=row.get("aborted", False),
        drained=row.get("drained", False),
        has_pending_decisions=row.get("has_pending_decisions", False),
        cancelling=row.get("cancelling", False),
        paused_by_operator=row.get("paused_by_operator", False),
        rerun=frozenset(_indexes_from_bitmap(row["rerun"])) if "rerun" in row else None,
        error=JobError(**row["error"]) if "error" in row else None,
        result_ref=row.get("result_ref"),
        statistics=row.get("statistics"),
        next_check_at=_parse_time(row.get("next_check_at")),
        stalled_at=_parse_time(row.get("stalled_at")),
        expires_at=from_epoch_s(row["ttl"]) if "ttl" in row else None,
    )


def run_to_row(run: WorkflowRun) -> Row:
    """Convert a run to its row, without the attributes that the supervisor writes."""
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
        "log": dumps([_log_entry_to_json(entry) for entry in run.log]),
        "registration_complete": run.registration_complete or None,
        "signal_count": run.signal_count,
        "failed_job": run.failed_job,
        "cancel_requested_by": run.cancel_requested_by,
        "deadline_passed": run.deadline_passed or None,
        "aborted": run.aborted or None,
        "drained": run.drained or None,
        "has_pending_decisions": run.has_pending_decisions or None,
        "cancelling": run.cancelling or None,
        "paused_by_operator": run.paused_by_operator or None,
        "rerun": None if run.rerun is None else _indexes_to_bitmap(run.rerun, run.total),
        "error": None if run.error is None else {"code": run.error.code, "message": run.error.message},
        "result_ref": run.result_ref,
        "statistics": None if run.statistics is None else dict(run.statistics),
        "next_check_at": run.next_check_at and to_text(run.next_check_at),
        "stalled_at": run.stalled_at and to_text(run.stalled_at),
        "ttl": run.expires_at and to_epoch_s(run.expires_at),
    }
    row["g2pk"], row["g2sk"] = keys.listing(run.namespace, "workflows", run.created_at, run.workflow_id)
    if run.next_check_at is not None:
        row["g1pk"], row["g1sk"] = keys.due(run.next_check_at, "run", run.namespace, run.workflow_id)
    return row


def _log_entry_to_json(entry: RunLogEntry) -> list[JsonValue]:
    return [entry.version, to_text(entry.occurred_at), entry.kind, entry.actor, entry.status, entry.reason]


def supervisor_token_from_row(row: Row) -> SupervisorToken | None:
    """Return the task token of the current supervisor, or None if it does not wait for a signal."""
    if row.get("supervisor_id") != format_supervisor_id(row["generation"], row["supervisor"]):
        return None
    return SupervisorToken(token=row["supervisor_token"], seen_signals=int(row.get("seen_signals", 0)))


def graph_to_json(graph: Graph) -> JsonValue:
    """Convert a graph to a compact JSON document: attributes with their default value are left out."""
    nodes = graph.nodes
    return {
        "names": [node.name for node in nodes],
        "types": [None if node.job_type == node.name else node.job_type for node in nodes],
        "after": [list(node.depends_on) for node in nodes],
        "rules": {
            str(index): node.trigger_rule for index, node in enumerate(nodes) if node.trigger_rule != "all_success"
        },
        "conditions": {str(index): node.condition for index, node in enumerate(nodes) if node.condition is not None},
        "races": [index for index, node in enumerate(nodes) if node.cancel_losers],
        "delayed": [index for index, node in enumerate(nodes) if node.has_start_delay],
    }


def graph_from_json(document: Any) -> Graph:
    """Convert a document of `graph_to_json` back to the graph."""
    races, delayed = set(document["races"]), set(document["delayed"])
    return Graph(
        nodes=[
            Node(
                name=name,
                job_type=job_type or name,
                depends_on=tuple(after),
                trigger_rule=document["rules"].get(str(index), "all_success"),
                condition=document["conditions"].get(str(index)),
                cancel_losers=index in races,
                has_start_delay=index in delayed,
            )
            for index, (name, job_type, after) in enumerate(
                zip(document["names"], document["types"], document["after"], strict=True)
            )
        ]
    )


_JSON_MEMBERS = ("payload", "fallback")
"""The members that may be any JSON value. An empty object or list is a value, and only null is none."""
_DEFINITION_FIELDS = {new_job_field.name: new_job_field for new_job_field in fields(NewJob)}


def definition_to_json(definition: NewJob) -> JsonValue:
    """Convert the definition of a job to JSON without its default values."""
    values: dict[str, Any] = {name: getattr(definition, name) for name in _DEFINITION_FIELDS}
    values |= {
        "retry": None if definition.retry is None else retry_to_row(definition.retry),
        "scheduled_at": definition.scheduled_at and to_text(definition.scheduled_at),
    }
    return {
        name: value
        for name, value in values.items()
        if value != _DEFINITION_FIELDS[name].default and (name in _JSON_MEMBERS or value not in ((), {}))
    }


def definition_from_json(document: Mapping[str, Any]) -> NewJob:
    """Convert a document of `definition_to_json` back to the definition of a job."""
    values: dict[str, Any] = dict(document)
    values |= {
        name: tuple(values[name]) for name in ("stages", "tags", "depends_on", "upstream_names") if name in values
    }
    if "retry" in values:
        values["retry"] = retry_from_row(values["retry"])
    if "scheduled_at" in values:
        values["scheduled_at"] = from_text(values["scheduled_at"])
    return NewJob(**values)


def version_floor(number: int) -> int:
    """Return the lowest stored number of the same state version. Every record with a lower version is below it."""
    return number - number % _CODE_SPACE


def record_to_number(record: StateRecord) -> int:
    """Convert a state record to a number. A higher state version gives a higher number."""
    return record.state_version * _CODE_SPACE + _CODE_BY_NODE_STATE[record.state]


def state_block_from_row(row: Row) -> StateBlock:
    """Convert a row to a state block. Attribute `j<index>` holds the state record of one job."""
    records = {
        int(name[1:]): StateRecord(state=_NODE_STATES[number % _CODE_SPACE], state_version=number // _CODE_SPACE)
        for name, number in row.items()
        if name[0] == "j" and name[1:].isdecimal()
    }
    return StateBlock(records=records, race_losers=frozenset(int(index) for index in row.get("race_losers", ())))


def prepared_number(generation: int, block: int) -> int:
    """Return the number that marks a block as prepared in one generation of its run."""
    return generation * _PREPARED_SPACE + block


def prepared_count(numbers: Iterable[int], generation: int) -> int:
    """Return how many blocks are marked as prepared in this generation."""
    return sum(number // _PREPARED_SPACE == generation for number in numbers)


def decision_to_attributes(decision: OperatorDecision) -> Row:
    """Convert a decision to the attributes of its row. The key holds the job's index."""
    return {
        "decision_id": decision.decision_id,
        "state_version": decision.state_version,
        "action": decision.action,
        "actor": decision.actor,
        "at": to_text(decision.at),
        "comment": decision.comment,
    }


def decision_from_row(row: Row) -> OperatorDecision:
    """Convert a row to an operator's decision."""
    return OperatorDecision(
        decision_id=row.get("decision_id", ""),
        index=int(row["sk"].removeprefix(keys.DECISIONS)),
        state_version=row["state_version"],
        action=row["action"],
        actor=row["actor"],
        at=from_text(row["at"]),
        comment=row.get("comment"),
    )


def _indexes_to_bitmap(indexes: Iterable[int], total: int) -> bytes:
    """Store a set of job indexes with one bit for each job of the run."""
    bits = bytearray((total + 7) // 8)
    for index in indexes:
        bits[index // 8] |= 1 << index % 8
    return bytes(bits)


def _indexes_from_bitmap(bits: bytes) -> Iterable[int]:
    return (8 * position + bit for position, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1)


def _parse_time(text: str | None) -> datetime | None:
    return from_text(text) if text else None
