"""A job, and everything that may happen to it. Each function returns the next version or raises; none does I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal, TypeAlias

from vigil_core.domain import stages
from vigil_core.domain.errors import InvalidTransition, ValidationFailed
from vigil_core.domain.jsontext import JsonValue, dumps
from vigil_core.domain.lifecycle import ALLOWED, TERMINAL, JobStatus

Priority: TypeAlias = Literal["background", "low", "normal", "high", "critical"]
Executor: TypeAlias = Literal["worker", "none"]
LogKind: TypeAlias = Literal[
    "created", "started", "updated", "completed", "failed", "cancel_requested", "cancelled", "retried", "deleted"
]

MAX_FIELDS_BYTES = 32 * 1024
MAX_MILESTONES = 256
CANCEL_GRACE = timedelta(seconds=60)
"""How long a running job has to end by itself after it was asked to."""

BUILT_IN_NAMES = frozenset(
    {
        "status", "job_stage", "job_health", "dependency_status", "queue", "job_type", "name", "priority", "attempt",
        "milestones", "workflow_id",
    }
)  # fmt: skip
"""What a wait's condition may name besides fields."""

RESERVED_FIELD_NAMES = BUILT_IN_NAMES | {"milestone", "progress", "message", "result"}
"""Names that a condition or `get_fields` gives a meaning of its own, and that no field may therefore have."""


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """One line of a job's history: the version it made, when, what, by which key, and what it changed."""

    version: int
    at: datetime
    kind: LogKind
    by: str
    status: JobStatus
    stage: str
    why: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobError:
    """Why a job failed."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """What a client asks for, already validated."""

    job_id: str
    job_type: str
    name: str | None = None
    queue: str = "default"
    priority: Priority = "normal"
    executor: Executor = "worker"
    stages: tuple[str, ...] = stages.DEFAULT_STAGES
    fields: Mapping[str, JsonValue] = field(default_factory=dict)
    tags: Sequence[str] = ()
    payload: JsonValue = None
    trace_id: str | None = None
    correlation_id: str | None = None
    unique_key: str | None = None
    mutex_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One version of a job. Payload and result are elsewhere: `payload_ref` and `result_ref` point to them.

    `log` holds the newest lines of its history, at least the one that made this version.
    """

    namespace: str
    job_id: str
    job_type: str
    name: str | None
    queue: str
    priority: Priority
    executor: Executor
    stages: tuple[str, ...]
    """The order that its type had when the job was created."""
    status: JobStatus
    stage: str
    health: str | None
    progress: Decimal
    message: str | None
    milestones: tuple[str, ...]
    fields: Mapping[str, JsonValue]
    tags: tuple[str, ...]
    error: JobError | None
    attempt: int
    max_attempts: int
    trace_id: str | None
    correlation_id: str | None
    unique_key: str | None
    mutex_key: str | None
    cancel_requested_at: datetime | None
    payload_ref: str | None
    result_ref: str | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    version: int
    live_version: int
    """How many reports of progress and message alone there were: together with `version` it names what a reader saw."""
    deleted: bool
    log: tuple[LogEntry, ...]

    @property
    def ended(self) -> bool:
        """Whether the job is in one of the terminal four."""
        return self.status in TERMINAL

    @property
    def cancel_due_at(self) -> datetime | None:
        """When a cancel that was only asked for is enforced; None when none is outstanding."""
        if self.cancel_requested_at is None or self.status != "running":
            return None
        return self.cancel_requested_at + CANCEL_GRACE


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a PATCH says. None means "not said"; a field's null removes it."""

    stage: str | None = None
    milestones: Sequence[str] = ()
    progress: Decimal | None = None
    message: str | None = None
    fields: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def only_live(self) -> bool:
        """Whether it carries nothing that a wait could see."""
        return self.stage is None and not self.milestones and not self.fields


def create(namespace: str, new: NewJob, *, now: datetime, by: str, payload_ref: str | None) -> Job:
    """The first version of a job: `pending`, at stage `submit`."""
    first = LogEntry(version=1, at=now, kind="created", by=by, status="pending", stage=stages.SUBMIT)
    return Job(
        namespace=namespace,
        job_id=new.job_id,
        job_type=new.job_type,
        name=new.name,
        queue=new.queue,
        priority=new.priority,
        executor=new.executor,
        stages=new.stages,
        status="pending",
        stage=stages.SUBMIT,
        health=None,
        progress=Decimal(0),
        message=None,
        milestones=(),
        fields=_merged_fields({}, new.fields),
        tags=tuple(new.tags),
        error=None,
        attempt=1,
        max_attempts=1,
        trace_id=new.trace_id,
        correlation_id=new.correlation_id,
        unique_key=new.unique_key,
        mutex_key=new.mutex_key,
        cancel_requested_at=None,
        payload_ref=payload_ref,
        result_ref=None,
        created_at=now,
        updated_at=now,
        started_at=None,
        finished_at=None,
        version=1,
        live_version=0,
        deleted=False,
        log=(first,),
    )


def start(job: Job, *, now: datetime, by: str) -> Job:
    """`pending` → `running`."""
    _require(job, "running", "start")
    return _next(job, now, by, "started", status="running", started_at=now)


def report(job: Job, said: Report, *, now: datetime, by: str) -> Job:
    """Apply a report whole or not at all. Returns the job itself when the report changes nothing.

    A report with `only_live` changes progress and message and keeps the version: nothing that waits can see it.

    Raises:
        InvalidTransition: the job has ended, or is not running while stage or progress is reported, or a stage goes
            backwards.
        ValidationFailed: the stage is not one that can be reported, or fields or milestones are over their limits.
    """
    _check_report(job, said)
    progress = job.progress if said.progress is None else max(job.progress, said.progress)
    message = job.message if said.message is None else said.message
    if said.only_live:
        if (progress, message) == (job.progress, job.message):
            return job
        return replace(job, progress=progress, message=message, live_version=job.live_version + 1, updated_at=now)
    milestones = tuple(dict.fromkeys((*job.milestones, *said.milestones)))
    if len(milestones) > MAX_MILESTONES:
        raise ValidationFailed.at("/milestones", f"a job has at most {MAX_MILESTONES} milestones")
    changes = {
        "stage": said.stage or job.stage,
        "milestones": milestones,
        "fields": _merged_fields(job.fields, said.fields),
        "progress": progress,
        "message": message,
    }
    changed = [name for name, value in changes.items() if getattr(job, name) != value]
    return _next(job, now, by, "updated", why=", ".join(changed), **changes) if changed else job


def complete(
    job: Job,
    *,
    now: datetime,
    by: str,
    health: str = "success",
    fields: Mapping[str, JsonValue] | None = None,
) -> Job:
    """The job did what it was for."""
    _require(job, "completed", "complete")
    return _end(
        job, now, by, "completed", why=None if health == "success" else health,
        stage=stages.COMPLETE, health=health, progress=Decimal(1),
        fields=_merged_fields(job.fields, fields or {}),
    )  # fmt: skip


def fail(job: Job, error: JobError, *, now: datetime, by: str) -> Job:
    """The attempt failed. A job that was asked to cancel ends `cancelled`: it stopped because it was told to."""
    _require(job, "failed", "fail")
    if job.cancel_requested_at is not None:
        return _cancelled(job, now, by, error=error)
    return _end(job, now, by, "failed", why=error.code, stage=stages.INCOMPLETE, health="failed", error=error)


def cancel(job: Job, *, now: datetime, by: str) -> Job:
    """Cancel at once what does not run; ask what runs. Asking twice changes nothing."""
    _require(job, "cancelled", "cancel")
    if job.status != "running":
        return _cancelled(job, now, by)
    if job.cancel_requested_at is not None:
        return job
    return _next(job, now, by, "cancel_requested", cancel_requested_at=now)


def enforce_cancel(job: Job, *, now: datetime, by: str) -> Job:
    """End a running job that was asked to cancel and did not. Returns the job itself when that is not due."""
    due = job.cancel_due_at
    if due is None or due > now:
        return job
    return _cancelled(job, now, by, why="not ended by itself in time")


def retry(job: Job, *, now: datetime, by: str) -> Job:
    """A new attempt of an ended job, by an operator's wish: same id, fields and milestones kept."""
    if not job.ended:
        raise InvalidTransition(f"Job {job.job_id} is {job.status}: only an ended job can be retried")
    _require(job, "pending", "retry")
    return _next(
        job, now, by, "retried",
        status="pending", stage=stages.SUBMIT, health=None, progress=Decimal(0), message=None, error=None,
        attempt=job.attempt + 1, max_attempts=max(job.max_attempts, job.attempt + 1), result_ref=None,
        cancel_requested_at=None, started_at=None, finished_at=None,
    )  # fmt: skip


def delete(job: Job, *, now: datetime, by: str) -> Job:
    """The tombstone of an ended job: a version like any other, so that whoever waits for it hears of it."""
    if not job.ended:
        raise InvalidTransition(f"Job {job.job_id} is {job.status}: only an ended job can be deleted")
    return _next(job, now, by, "deleted", deleted=True)


def _cancelled(job: Job, now: datetime, by: str, *, why: str | None = None, error: JobError | None = None) -> Job:
    return _end(job, now, by, "cancelled", why=why, stage=stages.INCOMPLETE, health="cancelled", error=error)


def _end(job: Job, now: datetime, by: str, status: JobStatus, *, why: str | None = None, **changes: object) -> Job:
    kind: LogKind = "completed" if status == "completed" else "failed" if status == "failed" else "cancelled"
    return _next(job, now, by, kind, why=why, status=status, finished_at=now, **changes)


def _next(job: Job, now: datetime, by: str, kind: LogKind, *, why: str | None = None, **changes: object) -> Job:
    changed = replace(job, version=job.version + 1, updated_at=now, **changes)  # type: ignore[arg-type]
    entry = LogEntry(
        version=changed.version, at=now, kind=kind, by=by, status=changed.status, stage=changed.stage, why=why
    )
    return replace(changed, log=(*job.log, entry))


def _require(job: Job, status: JobStatus, verb: str) -> None:
    ends_unstarted = job.executor == "none" and job.status == "pending" and status in {"completed", "failed"}
    if verb == "fail" and job.status != "running" and not ends_unstarted:
        raise InvalidTransition(f"Cannot fail job {job.job_id}: it is {job.status}")
    if status not in ALLOWED[job.status] and not ends_unstarted:
        raise InvalidTransition(f"Cannot {verb} job {job.job_id}: it is {job.status}")


def _check_report(job: Job, said: Report) -> None:
    if job.ended:
        raise InvalidTransition(f"Job {job.job_id} is {job.status}: it takes no more reports")
    if said.stage is not None:
        if said.stage in (stages.COMPLETE, stages.INCOMPLETE):
            raise ValidationFailed.at("/job_stage", f"{said.stage!r} is set by ending the job, not by a report")
        if said.stage not in job.stages:
            raise ValidationFailed.at("/job_stage", f"unknown stage; this job's stages are {', '.join(job.stages)}")
    if job.status != "running" and (said.stage is not None or said.progress is not None):
        raise InvalidTransition(f"Job {job.job_id} is {job.status}: stage and progress are reported once it runs")
    if said.stage is not None and not stages.has_reached(job.stages, said.stage, job.stage):
        raise InvalidTransition(f"Job {job.job_id} is at stage {job.stage}, which comes after {said.stage}")


def _merged_fields(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    merged: dict[str, JsonValue] = {name: value for name, value in {**old, **new}.items() if value is not None}
    if len(dumps(merged).encode()) > MAX_FIELDS_BYTES:
        raise ValidationFailed.at("/fields", f"the fields of a job take at most {MAX_FIELDS_BYTES} bytes")
    return merged


def with_result(job: Job, result_ref: str) -> Job:
    """A job that is about to be stored as completed, pointing to its result."""
    return replace(job, result_ref=result_ref)
