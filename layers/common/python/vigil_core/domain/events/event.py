"""What Vigil announces: one envelope (CloudEvents 1.0, JSON) for every version of a job and for every ended wait.

An event is made of what never changes: a line of the job's history and what the job was created with, or the answer of
an ended wait. So it is the same, whoever makes it and however often, and its id is the version it tells of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Literal, TypeAlias

from vigil_core.domain.exact_json import JsonValue, dumps
from vigil_core.domain.jobs.job import TIMED_OUT, Job, JobLogEntry
from vigil_core.domain.timestamps import to_text
from vigil_core.domain.waits.wait import Wait
from vigil_core.domain.workflows.run import RunLogEntry, WorkflowRun

EventAudience: TypeAlias = Literal["sockets", "change", "ending"]
"""How far an event goes: `sockets` to WebSockets alone, an `ending` always to SNS, a `change` where that is wished."""

NAMESPACE_TOPIC = "namespace"
MAX_WAIT_BYTES = 16 * 1024
"""A longer answer of a wait is left out of its event: there are counts, and where to read it."""
MIN_BYTES_PER_JOB = len('"0190a5e4-0000-7000-8000-000000000000":{"job_stage":""},')

_EVENT_ID = re.compile(r"(?P<entity_id>[0-9a-f-]{36})\.(?P<version>[0-9]{1,10})(\.[0-9]{1,10})?")


@dataclass(frozen=True, kw_only=True)
class Event:
    """One announcement. `topics` is where WebSockets hear of it, `attributes` what SNS filters by, besides `type` and
    `namespace`."""

    event_id: str
    type: str
    namespace: str
    subject: str
    time: datetime
    data: Mapping[str, JsonValue]
    topics: tuple[str, ...]
    audience: EventAudience
    attributes: Mapping[str, str] = field(default_factory=dict)
    webhook: str | None = None
    """An address that is to hear of this event besides whoever subscribes to it."""

    def envelope(self) -> dict[str, JsonValue]:
        """What is sent: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md"""
        return {
            "specversion": "1.0",
            "id": self.event_id,
            "source": f"/vigil/{self.namespace}",
            "type": self.type,
            "subject": self.subject,
            "time": to_text(self.time),
            "datacontenttype": "application/json",
            "data": self.data,
        }


@dataclass(frozen=True, kw_only=True)
class ProgressUpdate:
    """Progress and message of a job after a report: the `live_version`th that did not change the state, or came with
    the change to `version`."""

    namespace: str
    job_id: str
    job_type: str
    queue: str
    attempt: int
    version: int
    live_version: int
    progress: Decimal
    message: str | None
    reported_at: datetime
    workflow_id: str | None = None


def job_topic(job_id: str) -> str:
    return f"job:{job_id}"


def wait_topic(wait_id: str) -> str:
    return f"wait:{wait_id}"


def workflow_topic(workflow_id: str) -> str:
    return f"workflow:{workflow_id}"


def queue_topic(queue: str) -> str:
    return f"queue:{queue}"


def parse_event_id(text: str) -> tuple[str, int] | None:
    """The job or wait that an event told of, and its version then; None for what is no event's id."""
    match = _EVENT_ID.fullmatch(text)
    return (match["entity_id"], int(match["version"])) if match else None


def job_event(job: Job, entry: JobLogEntry, previous: JobLogEntry | None) -> Event:
    """What a line of a job's history tells. `before` is the line before it, None for the first. Of the job, only what
    it was created with is looked at: any version of it will do."""
    health = _final_health(entry)
    return Event(
        event_id=f"{job.job_id}.{entry.version}",
        type=f"vigil.job.{entry.kind}",
        namespace=job.namespace,
        subject=job.job_id,
        time=entry.occurred_at,
        data={
            "job_id": job.job_id,
            "job_type": job.job_type,
            "name": job.name,
            "queue": job.queue,
            "workflow_id": job.workflow.workflow_id,
            "priority": job.priority,
            "trace_id": job.trace_id,
            "correlation_id": job.correlation_id,
            "created_at": to_text(job.created_at),
            "version": entry.version,
            "from": None if previous is None else {"status": previous.status, "job_stage": previous.stage},
            "status": entry.status,
            "job_stage": entry.stage,
            "job_health": health,
            "by": entry.actor,
            "why": entry.reason,
        },
        topics=_job_topics(job.job_id, job.queue, job.workflow.workflow_id),
        audience="change" if health is None else "ending",
        attributes={"job_type": job.job_type, "job_id": job.job_id},
    )


def progress_event(update: ProgressUpdate) -> Event:
    """Where a job stands, for whoever watches it now; never told again."""
    return Event(
        event_id=f"{update.job_id}.{update.version}.{update.live_version}",
        type="vigil.job.progress",
        namespace=update.namespace,
        subject=update.job_id,
        time=update.reported_at,
        data={
            "job_id": update.job_id,
            "job_type": update.job_type,
            "queue": update.queue,
            "attempt": update.attempt,
            "version": update.version,
            "progress": update.progress,
            "message": update.message,
        },
        topics=_job_topics(update.job_id, update.queue, update.workflow_id),
        audience="sockets",
    )


def progress_of_report(job: Job) -> ProgressUpdate | None:
    """The progress that the report behind this version of the job told besides; None when it told none."""
    entry = job.log[-1]
    if entry.kind != "updated" or not {"progress", "message"} & set((entry.reason or "").split(", ")):
        return None
    return ProgressUpdate(
        namespace=job.namespace,
        job_id=job.job_id,
        job_type=job.job_type,
        queue=job.queue,
        attempt=job.attempt,
        version=job.version,
        live_version=job.live_version,
        progress=job.progress,
        message=job.message,
        reported_at=entry.occurred_at,
        workflow_id=job.workflow.workflow_id,
    )


def wait_event(wait: Wait, wait_document: Mapping[str, JsonValue] | None) -> Event:
    """How a wait ended, with its answer if that is given and not too long. Raises ValueError while it waits."""
    if wait.ended_at is None:
        raise ValueError(f"wait {wait.wait_id} has not ended")
    return Event(
        event_id=f"{wait.wait_id}.{wait.version}",
        type=f"vigil.wait.{wait.status}",
        namespace=wait.namespace,
        subject=wait.wait_id,
        time=wait.ended_at,
        data=wait_event_data(wait, wait_document),
        topics=(wait_topic(wait.wait_id), NAMESPACE_TOPIC),
        audience="ending" if wait.options.sns else "sockets",
        attributes={"wait_id": wait.wait_id},
        webhook=wait.options.webhook,
    )


def workflow_run_event(run: WorkflowRun, entry: RunLogEntry, previous: RunLogEntry | None) -> Event:
    """What a line of a run's history tells. Of the run, only what it was created with is looked at, and on the line of
    its end how it ended."""
    ended = entry.kind in ("completed", "failed", "cancelled")
    return Event(
        event_id=f"{run.workflow_id}.{entry.version}",
        type=f"vigil.workflow.{entry.kind}",
        namespace=run.namespace,
        subject=run.workflow_id,
        time=entry.occurred_at,
        data={
            "workflow_id": run.workflow_id,
            "name": run.name,
            "failure_policy": run.failure_policy,
            "total": run.total,
            "trace_id": run.trace_id,
            "correlation_id": run.correlation_id,
            "created_at": to_text(run.created_at),
            "version": entry.version,
            "from": None if previous is None else previous.status,
            "status": entry.status,
            "by": entry.actor,
            "why": entry.reason,
        },
        topics=(workflow_topic(run.workflow_id), NAMESPACE_TOPIC),
        audience="ending" if ended or entry.kind in ("paused", "stalled") else "change",
        attributes={"workflow_id": run.workflow_id},
    )


def may_fit_in_event(wait: Wait) -> bool:
    """Whether the answer of an ended wait is worth making: from so many jobs on it is too long for its event anyway."""
    counts = _wait_counts(wait)
    decided = counts["total"] if wait.status == "expired" else counts["met"] + counts["unmet"]
    return decided * MIN_BYTES_PER_JOB <= MAX_WAIT_BYTES


def wait_event_data(wait: Wait, wait_document: Mapping[str, JsonValue] | None) -> Mapping[str, JsonValue]:
    """The answer of a wait, or counts and where to read it."""
    if wait_document is not None and len(dumps(wait_document).encode()) <= MAX_WAIT_BYTES:
        return wait_document
    return {
        "wait_id": wait.wait_id,
        "status": wait.status,
        "counts": _wait_counts(wait),
        "created_at": to_text(wait.created_at),
        "expires_at": to_text(wait.expires_at),
        "ended_at": to_text(wait.ended_at) if wait.ended_at else None,
        "truncated": True,
        "wait_url": f"/v1/waits/{wait.wait_id}",
    }


def _wait_counts(wait: Wait) -> dict[str, int]:
    """How many jobs count; of a large wait that has ended, those it was closed with."""
    if wait.is_inline or not wait.ended:
        return {"total": wait.total, "met": wait.counts.met, "unmet": wait.counts.unmet}
    return {"total": wait.total, "met": len(wait.final_met), "unmet": len(wait.final_unmet)}


def _job_topics(job_id: str, queue: str, workflow_id: str | None) -> tuple[str, ...]:
    run_topics = () if workflow_id is None else (workflow_topic(workflow_id),)
    return job_topic(job_id), *run_topics, queue_topic(queue), NAMESPACE_TOPIC


def _final_health(entry: JobLogEntry) -> str | None:
    """How the job ended, on the line of its ending: a completion says there why it was no plain success."""
    match entry.kind:
        case "completed":
            return entry.reason or "success"
        case "failed":
            return "timed_out" if entry.reason == TIMED_OUT else "failed"
        case "cancelled":
            return "cancelled"
        case _:
            return None
