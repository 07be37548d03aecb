"""Events: one envelope (CloudEvents 1.0, JSON) for job and run versions, ended waits and refused fires.

An event derives from immutable data: a line of the history of the job, the values from its creation, or the answer of
an ended wait. Repeated creation therefore results in the same event, and its id contains the version that it announces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Literal, TypeAlias

from vigil_core.domain.errors import VigilError
from vigil_core.domain.exact_json import JsonValue, ascii_size
from vigil_core.domain.jobs.job import TIMED_OUT, Job, JobLogEntry
from vigil_core.domain.schedules import Schedule, ScheduleFire
from vigil_core.domain.timestamps import to_text
from vigil_core.domain.waits.wait import Wait
from vigil_core.domain.workflows.run import RunLogEntry, WorkflowRun

EventAudience: TypeAlias = Literal["sockets", "change", "ending"]
"""The recipients of an event: `sockets` is WebSockets only, `ending` always SNS, `change` SNS if configured."""

NAMESPACE_TOPIC = "namespace"
MAX_WAIT_BYTES = 16 * 1024
"""Maximum size of a wait's answer in its event. The event of a longer answer contains counts and its URL."""
MIN_BYTES_PER_JOB = len('"0190a5e4-0000-7000-8000-000000000000":{"job_stage":""},')

_EVENT_ID = re.compile(r"(?P<entity_id>[0-9a-f-]{36})\.(?P<version>[0-9]{1,10})(\.[0-9]{1,10})?")


class PublishRejected(VigilError):
    """SNS accepted a request but rejected this event in it. The error is permanent if the event is the reason."""

    code = "PUBLISH_REJECTED"

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


@dataclass(frozen=True, kw_only=True)
class Event:
    """One event, as it is published.

    Attributes:
        topics: The topics whose subscribers on WebSockets receive the event, the own topic first.
        attributes: The attributes for filters of SNS subscriptions, in addition to `type` and `namespace`.
    """

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
    """A URL that receives this event in addition to its subscribers."""

    def envelope(self) -> dict[str, JsonValue]:
        """Return the envelope that is sent.

        https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
        """
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
    """Progress and message of a job after a report.

    `live_version` counts the reports that did not change the version. A report that changed it has the new `version`.
    """

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
    """Return the own topic of a job."""
    return f"job:{job_id}"


def wait_topic(wait_id: str) -> str:
    """Return the own topic of a wait."""
    return f"wait:{wait_id}"


def workflow_topic(workflow_id: str) -> str:
    """Return the own topic of a workflow run."""
    return f"workflow:{workflow_id}"


def queue_topic(queue: str) -> str:
    """Return the shared topic of a queue."""
    return f"queue:{queue}"


def parse_event_id(text: str) -> tuple[str, int] | None:
    """Return the entity id and the version in an event id. None for any other text."""
    match = _EVENT_ID.fullmatch(text)
    return (match["entity_id"], int(match["version"])) if match else None


def job_event(job: Job, entry: JobLogEntry, previous: JobLogEntry | None) -> Event:
    """Create the event of one line of a job's history.

    Args:
        job: Any version of the job. Only values from its creation are used.
        entry: The line of the history.
        previous: The line before it; None for the first line.
    """
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
    """Create the event of a progress report. It is sent to current subscribers only and never replayed."""
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
    """Return the progress that was reported together with this version of the job; None without one."""
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
    """Create the event of an ended wait, with its answer if one is given and it is not too long.

    Raises:
        ValueError: The wait has not ended.
    """
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
    """Create the event of one line of a run's history.

    Args:
        run: Any version of the run. Only values from its creation are used.
        entry: The line of the history.
        previous: The line before it; None for the first line.
    """
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


def schedule_refused_event(schedule: Schedule, fire: ScheduleFire) -> Event:
    """Create the event of a fire whose job or run could not be created.

    Args:
        schedule: The version of the schedule after the fire.
        fire: The refused fire.
    """
    return Event(
        event_id=f"{schedule.schedule_id}.{schedule.version}",
        type="vigil.schedule.refused",
        namespace=schedule.namespace,
        subject=schedule.name,
        time=fire.fired_at,
        data={
            "schedule": schedule.name,
            "action": schedule.action,
            "planned_at": to_text(fire.planned_at),
            "error": None if fire.error is None else {"code": fire.error.code, "message": fire.error.message},
            "next_planned_at": None if schedule.next_fire_at is None else to_text(schedule.next_fire_at),
        },
        topics=(NAMESPACE_TOPIC,),
        audience="ending",
        attributes={"schedule": schedule.name},
    )


def may_fit_in_event(wait: Wait) -> bool:
    """Return False if the answer of an ended wait has so many jobs that it cannot fit in its event."""
    counts = _wait_counts(wait)
    decided = counts["total"] if wait.status == "expired" else counts["met"] + counts["unmet"] + wait.failed_count
    return decided * MIN_BYTES_PER_JOB <= MAX_WAIT_BYTES


def wait_event_data(wait: Wait, wait_document: Mapping[str, JsonValue] | None) -> Mapping[str, JsonValue]:
    """Return the answer of a wait; if it is too long, return counts and the URL of the wait."""
    if wait_document is not None and ascii_size(wait_document) <= MAX_WAIT_BYTES:
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
    """Return the counts of a wait. A large wait that has ended has the counts of its closing write."""
    if wait.is_inline or not wait.ended:
        return {"total": wait.total, "met": wait.counts.met, "unmet": wait.counts.unmet}
    return {"total": wait.total, "met": len(wait.final_met) - wait.failed_count, "unmet": len(wait.final_unmet)}


def _job_topics(job_id: str, queue: str, workflow_id: str | None) -> tuple[str, ...]:
    run_topics = () if workflow_id is None else (workflow_topic(workflow_id),)
    return job_topic(job_id), *run_topics, queue_topic(queue), NAMESPACE_TOPIC


def _final_health(entry: JobLogEntry) -> str | None:
    """Return the health of a job from the last line of its history; None for any other line.

    The reason of a completion is its health if that is not `success`.
    """
    match entry.kind:
        case "completed":
            return entry.reason or "success"
        case "failed":
            return "timed_out" if entry.reason == TIMED_OUT else "failed"
        case "cancelled":
            return "cancelled"
        case _:
            return None
