"""The rows of a job: how its attributes map to DynamoDB attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from vigil_core.domain.exact_json import JsonValue, dumps, loads
from vigil_core.domain.jobs.dependencies import Dependency
from vigil_core.domain.jobs.job import Job, JobError, JobLogEntry, JobLogKind, Priority
from vigil_core.domain.jobs.lease import Lease
from vigil_core.domain.jobs.retry import RetryPolicy
from vigil_core.domain.jobs.stages import COMPLETE, DEFAULT_STAGES, SUBMIT
from vigil_core.domain.jobs.status import JobStatus
from vigil_core.domain.jobs.trigger_rules import Verdict
from vigil_core.domain.jobs.value_objects import (
    BatchMembership,
    DependencyState,
    MutexState,
    Timeouts,
    WorkflowMembership,
)
from vigil_core.domain.timestamps import from_epoch_s, from_text, to_epoch_s, to_text
from vigil_core.store import keys
from vigil_core.store.table import Row

SCHEMA_VERSION = 1
TOMBSTONE_TTL = timedelta(days=60)
"""The life of a tombstone. It exceeds the life of any wait, so an id cannot return while a wait names its first job."""
LIVE_ROW_TTL = timedelta(days=30)
"""The life of the live row after the last report, in addition to the retention."""
PRIORITY_RANKS: Mapping[Priority, int] = {"critical": 0, "high": 1, "normal": 2, "low": 3, "background": 4}
"""The order of the priorities in index `due`: workers receive the lowest rank first."""


def job_from_row(state: Row, live: Row | None = None) -> Job:
    """Read a job from its state row and its live row.

    Args:
        state: The row of the last version.
        live: The row of the last report of only progress and message, or of the last heartbeat, if there is one.
    """
    namespace, job_id = keys.parse_job(state["pk"])
    created_at = from_text(state["created_at"])
    log = tuple(log_from_text(state["log"], created_at))
    job = Job(
        namespace=namespace,
        job_id=job_id,
        job_type=state["job_type"],
        name=state.get("name"),
        queue=state.get("queue", "default"),
        priority=state.get("priority", "normal"),
        executor=state.get("executor", "worker"),
        stages=(SUBMIT, *state["stages"], COMPLETE) if "stages" in state else DEFAULT_STAGES,
        status=state["status"],
        stage=state["stage"],
        health=state.get("health"),
        progress=Decimal(state.get("progress", 0)),
        message=state.get("message"),
        milestones=tuple(state.get("milestones", ())),
        fields=_parse_object(state.get("fields")),
        tags=tuple(state.get("tags", ())),
        error=JobError(**state["error"]) if "error" in state else None,
        attempt=state.get("attempt", 1),
        max_attempts=state.get("max_attempts", 1),
        trace_id=state.get("trace_id"),
        correlation_id=state.get("correlation_id"),
        unique_key=state.get("unique_key"),
        cancel_requested_at=_parse_time(state.get("cancel_requested_at")),
        payload_ref=state.get("payload_ref"),
        result_ref=state.get("result_ref"),
        created_at=created_at,
        updated_at=log[-1].occurred_at,
        started_at=_parse_time(state.get("started_at")),
        finished_at=_parse_time(state.get("finished_at")),
        version=state["version"],
        live_version=state.get("live_version", 0),
        deleted=state.get("deleted", False),
        log=log,
        scheduled_at=_parse_time(state.get("scheduled_at")),
        retry=retry_from_row(state["retry"]) if "retry" in state else None,
        timeouts=_timeouts_from_row(state),
        fallback_ref=state.get("fallback_ref"),
        target_ref=state.get("target_ref"),
        lease=_lease_from_row(state["lease"]) if "lease" in state else None,
        reported_token=state.get("reported_token"),
        expires_at=from_epoch_s(state["ttl"]) if "ttl" in state else None,
        indexed_due_at=keys.timed_at(state["g1sk"]) if state["status"] == "running" and "g1sk" in state else None,
        has_waits=state.get("has_waits", False),
        has_subscribers=state.get("has_subscribers", False),
        mutex=_mutex_from_row(state),
        dependencies=_dependencies_from_row(state),
        batch=_batch_from_row(state),
        workflow=_workflow_from_row(state),
    )
    return job if live is None else _apply_live_row(job, live)


def job_to_row(job: Job, *, queue_partitions: int = 1) -> Row:
    """Build the state row of a job; the inverse of `job_from_row`.

    Args:
        job: The version to store.
        queue_partitions: The number of partitions of index `due` over which the jobs of a queue are spread.
    """
    row: Row = {
        **row_head(keys.job(job.namespace, job.job_id), "job"),
        **_request_to_row(job),
        **_progress_to_row(job),
        **_timeouts_to_row(job.timeouts),
        **_mutex_to_row(job.mutex),
        **_dependencies_to_row(job.dependencies),
        **_batch_to_row(job.batch),
        **_workflow_to_row(job.workflow),
        "has_waits": job.has_waits or None,
        "has_subscribers": job.has_subscribers or None,
        "needs_matching": job.needs_matching or None,
        "ttl": job.expires_at and to_epoch_s(job.expires_at),
    }
    if job.deleted:
        return {**row, "deleted": True, "ttl": to_epoch_s(job.updated_at + TOMBSTONE_TTL)}
    row["g2pk"], row["g2sk"] = keys.listing(job.namespace, "jobs", job.created_at, job.job_id)
    if job.correlation_id is not None:
        row["g3pk"] = keys.correlation(job.namespace, job.correlation_id, job.job_id)
    return row | index_attributes(job, queue_partitions)


def _request_to_row(job: Job) -> Row:
    """Map what the creation of the job sets."""
    return {
        "job_type": job.job_type,
        "name": job.name,
        "queue": _unless_default("default", job.queue),
        "priority": _unless_default("normal", job.priority),
        "executor": _unless_default("worker", job.executor),
        "stages": None if job.stages == DEFAULT_STAGES else list(job.stages[1:-1]),
        "tags": list(job.tags) or None,
        "trace_id": job.trace_id,
        "correlation_id": job.correlation_id,
        "unique_key": job.unique_key,
        "payload_ref": job.payload_ref,
        "fallback_ref": job.fallback_ref,
        "target_ref": job.target_ref,
        "retry": job.retry and retry_to_row(job.retry),
        "created_at": to_text(job.created_at),
    }


def _progress_to_row(job: Job) -> Row:
    """Map what the transitions of the job change."""
    return {
        "status": job.status,
        "stage": job.stage,
        "health": job.health,
        "progress": _unless_default(0, job.progress),
        "message": job.message,
        "milestones": list(job.milestones) or None,
        "fields": dumps(job.fields) if job.fields else None,
        "error": None if job.error is None else _error_attributes(job.error),
        "attempt": _unless_default(1, job.attempt),
        "max_attempts": _unless_default(1, job.max_attempts),
        "lease": job.lease and _lease_to_row(job.lease),
        "reported_token": job.reported_token,
        "result_ref": job.result_ref,
        "scheduled_at": job.scheduled_at and to_text(job.scheduled_at),
        "started_at": job.started_at and to_text(job.started_at),
        "finished_at": job.finished_at and to_text(job.finished_at),
        "cancel_requested_at": job.cancel_requested_at and to_text(job.cancel_requested_at),
        "version": job.version,
        "live_version": _unless_default(0, job.live_version),
        "log": log_to_text(job.log, job.created_at),
    }


def _error_attributes(error: JobError) -> Row:
    attributes = {"code": error.code, "message": error.message, "type": error.type, "traceback": error.traceback}
    return {name: text for name, text in attributes.items() if text is not None}


def _timeouts_to_row(timeouts: Timeouts) -> Row:
    return {"timeout_s": timeouts.attempt_s, "heartbeat_timeout_s": timeouts.heartbeat_s}


def _timeouts_from_row(row: Row) -> Timeouts:
    return Timeouts(attempt_s=row.get("timeout_s"), heartbeat_s=row.get("heartbeat_timeout_s"))


def _mutex_to_row(mutex: MutexState) -> Row:
    return {
        "mutex_key": mutex.key,
        "queue_on_conflict": mutex.queue_on_conflict or None,
        "mutex_position": mutex.position,
    }


def _mutex_from_row(row: Row) -> MutexState:
    return MutexState(
        key=row.get("mutex_key"),
        queue_on_conflict=row.get("queue_on_conflict", False),
        position=row.get("mutex_position"),
    )


def _dependencies_to_row(state: DependencyState) -> Row:
    return {
        "depends_on": [f"{dependency.job_id}#{dependency.known_version}" for dependency in state.depends_on] or None,
        "trigger_rule": _unless_default("all_success", state.trigger_rule),
        "condition": state.condition,
        "dependency_status": _unless_default("none", state.status),
        "verdict": state.verdict and _verdict_to_row(state.verdict),
    }


def _dependencies_from_row(row: Row) -> DependencyState:
    return DependencyState(
        depends_on=tuple(map(_dependency_from_text, row.get("depends_on", ()))),
        trigger_rule=row.get("trigger_rule", "all_success"),
        condition=row.get("condition"),
        status=row.get("dependency_status", "none"),
        verdict=_verdict_from_row(row["verdict"]) if "verdict" in row else None,
    )


def _batch_to_row(batch: BatchMembership) -> Row:
    return {
        "batch_size": batch.size,
        "on_item_failure": _unless_default("continue", batch.on_item_failure),
        "batch_id": batch.batch_id,
        "batch_index": batch.index,
        "batch_kept_since": _unless_default(1, batch.kept_since),
    }


def _batch_from_row(row: Row) -> BatchMembership:
    return BatchMembership(
        size=row.get("batch_size"),
        on_item_failure=row.get("on_item_failure", "continue"),
        batch_id=row.get("batch_id"),
        index=row.get("batch_index"),
        kept_since=row.get("batch_kept_since", 1),
    )


def _workflow_to_row(workflow: WorkflowMembership) -> Row:
    return {
        "workflow_id": workflow.workflow_id,
        "workflow_index": workflow.index,
        "upstream_names": list(workflow.upstream_names) or None,
        "upstream_truncated": workflow.upstream_truncated or None,
        "parked": workflow.parked or None,
    }


def _workflow_from_row(row: Row) -> WorkflowMembership:
    return WorkflowMembership(
        workflow_id=row.get("workflow_id"),
        index=row.get("workflow_index"),
        upstream_names=tuple(row.get("upstream_names", ())),
        upstream_truncated=row.get("upstream_truncated", False),
        parked=row.get("parked", False),
    )


def _apply_live_row(job: Job, live: Row) -> Job:
    """Add a newer live row of the current attempt: progress, message and, for the same lease, its expiry."""
    if live["attempt"] != job.attempt or live["live_version"] <= job.live_version:
        return job
    lease = job.lease
    if lease is not None and lease.token == live.get("lease_token"):
        lease = replace(lease, expires_at=from_text(live["lease_expires_at"]), used=True)
    return replace(
        job,
        lease=lease,
        progress=max(job.progress, Decimal(live["progress"])),
        message=live.get("message"),
        live_version=live["live_version"],
        updated_at=max(job.updated_at, from_text(live["updated_at"])),
    )


def live_to_row(job: Job, retention: timedelta) -> Row:
    """Build the live row of a job: what a heartbeat or a report of only progress and message changes."""
    return {
        **row_head(keys.live(job.namespace, job.job_id), "live"),
        "namespace": job.namespace,
        "job_id": job.job_id,
        "job_type": job.job_type,
        "queue": job.queue,
        "workflow_id": job.workflow.workflow_id,
        "attempt": job.attempt,
        "progress": job.progress,
        "message": job.message,
        "live_version": job.live_version,
        "version": job.version,
        "updated_at": to_text(job.updated_at),
        "lease_token": job.lease and job.lease.token,
        "lease_expires_at": job.lease and to_text(job.lease.expires_at),
        "ttl": to_epoch_s(job.updated_at + LIVE_ROW_TTL + retention),
    }


def index_attributes(job: Job, partitions: int) -> Row:
    """Build the key of an open job in index `due`; empty if the index does not show the job.

    A pending job is in the section that workers or the dispatcher read. Any other job is in the section of the sweeper.
    """
    partition = keys.partition_of(job.job_id, partitions)
    if job.status == "pending" and job.executor != "none" and not job.batch.is_batch:
        partition_of = keys.jobs_to_dispatch if job.dispatchable else keys.ready_jobs
        sort_key = keys.ready_job(PRIORITY_RANKS[job.priority], job.scheduled_at or job.created_at, job.job_id)
        return {"g1pk": partition_of(job.namespace, job.queue, partition), "g1sk": sort_key}
    if job.status == "waiting" and not job.workflow.in_run:
        sort_key = keys.timed_job(job.status, job.updated_at, job.job_id)
        return {"g1pk": keys.timed_jobs(job.namespace, job.queue, partition), "g1sk": sort_key}
    if job.due_at is None:
        return {}
    indexed_at = min(job.due_at, job.indexed_due_at or job.due_at)
    return {
        "g1pk": keys.timed_jobs(job.namespace, job.queue, partition),
        "g1sk": keys.timed_job(job.status, indexed_at, job.job_id),
    }


def log_to_row(job: Job, lines: Sequence[JobLogEntry]) -> Row:
    """Build a row of older history lines."""
    key = keys.log(job.namespace, job.job_id, lines[0].version)
    return {**row_head(key, "log"), "log": log_to_text(lines, job.created_at)}


_CODE_BY_KIND: dict[JobLogKind, str] = {
    "created": "c", "waiting": "w", "ready": "y", "claimed": "k", "started": "s", "updated": "u", "released": "g",
    "lease_expired": "l", "retrying": "t", "completed": "d", "failed": "f", "cancel_requested": "q", "cancelled": "x",
    "retried": "r", "skipped": "n", "deleted": "z",
}  # fmt: skip
_CODE_BY_STATUS: dict[JobStatus, str] = {
    "scheduled": "s", "waiting": "w", "pending": "p", "running": "r", "completed": "c", "failed": "f",
    "cancelled": "x", "skipped": "k",
}  # fmt: skip
_KIND_BY_CODE = {letter: kind for kind, letter in _CODE_BY_KIND.items()}
_STATUS_BY_CODE = {letter: status for status, letter in _CODE_BY_STATUS.items()}


def log_to_text(lines: Sequence[JobLogEntry], created_at: datetime) -> str:
    """Pack history lines into a JSON array: the first version, then one array per line.

    A line has the milliseconds since the creation, the codes of event and status, stage, actor, and reason if any. A
    stage or actor equal to that of the line before is 0. A line takes about 30 bytes, because each change writes it.
    """
    packed: list[JsonValue] = [lines[0].version]
    stage = actor = ""
    for line in lines:
        packed.append(
            [
                (line.occurred_at - created_at) // timedelta(milliseconds=1),
                _CODE_BY_KIND[line.kind] + _CODE_BY_STATUS[line.status],
                0 if line.stage == stage else line.stage,
                0 if line.actor == actor else line.actor,
                *([line.reason] if line.reason else []),
            ]
        )
        stage, actor = line.stage, line.actor
    return dumps(packed)


def log_from_text(text: str, created_at: datetime) -> list[JobLogEntry]:
    """Unpack history lines; the inverse of `log_to_text`."""
    packed: Any = loads(text)
    first, *lines = packed
    entries: list[JobLogEntry] = []
    stage = actor = ""
    for version, (ms, codes, line_stage, line_actor, *reason) in enumerate(lines, first):
        stage, actor = line_stage or stage, line_actor or actor
        entries.append(
            JobLogEntry(
                version=version,
                occurred_at=created_at + timedelta(milliseconds=ms),
                kind=_KIND_BY_CODE[codes[0]],
                actor=actor,
                status=_STATUS_BY_CODE[codes[1]],
                stage=stage,
                reason=reason[0] if reason else None,
            )
        )
    return entries


def _dependency_from_text(text: str) -> Dependency:
    job_id, version = text.split("#")
    return Dependency(job_id=job_id, known_version=int(version))


def _verdict_to_row(verdict: Verdict) -> Row:
    return {
        "rule": verdict.rule,
        "inputs": dict(verdict.inputs),
        "reason": verdict.reason,
        "through_failure": verdict.through_failure,
        **({"failures": list(verdict.failures)} if verdict.failures else {}),
    }


def _verdict_from_row(row: Row) -> Verdict:
    inputs = {name: int(count) for name, count in row["inputs"].items()}
    return Verdict(
        rule=row["rule"],
        inputs=inputs,
        reason=row["reason"],
        through_failure=row["through_failure"],
        failures=tuple(row.get("failures", ())),
    )


def retry_to_row(retry: RetryPolicy) -> Row:
    """Map a retry policy."""
    return {
        "max": retry.max_attempts,
        "first": retry.initial_delay,
        "cap": retry.max_delay,
        "factor": retry.multiplier,
        "jitter": retry.jitter,
    }


def retry_from_row(row: Row) -> RetryPolicy:
    """Read a retry policy; the inverse of `retry_to_row`."""
    return RetryPolicy(
        max_attempts=row["max"],
        initial_delay=Decimal(row["first"]),
        max_delay=Decimal(row["cap"]),
        multiplier=Decimal(row["factor"]),
        jitter=row["jitter"],
    )


def _lease_to_row(lease: Lease) -> Row:
    row: Row = {
        "token": lease.token,
        "worker": lease.worker,
        "s": lease.duration_s,
        "expires_at": to_text(lease.expires_at),
    }
    if lease.used:
        row["used"] = True
    return row if lease.claim_id is None else {**row, "claim": lease.claim_id}


def _lease_from_row(row: Row) -> Lease:
    return Lease(
        token=row["token"],
        worker=row["worker"],
        duration_s=row["s"],
        expires_at=from_text(row["expires_at"]),
        claim_id=row.get("claim"),
        used=row.get("used", False),
    )


def _unless_default(default: object, value: object) -> object:
    """Return None, which is not stored, for a default value."""
    return None if value == default else value


def row_head(key: keys.Key, entity: str) -> Row:
    """Build the attributes that every row has."""
    return {"pk": key.pk, "sk": key.sk, "entity": entity, "schema_version": SCHEMA_VERSION}


def _parse_object(text: str | None) -> Mapping[str, Any]:
    value: Any = loads(text) if text else {}
    return dict(value)


def _parse_time(text: str | None) -> Any:
    return from_text(text) if text else None
