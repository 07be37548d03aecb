"""A job, and everything that may happen to it. Each function returns the next version or raises; none does I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal, TypeAlias

from vigil_core.domain.errors import InvalidTransition, LeaseLost, ValidationFailed
from vigil_core.domain.exact_json import JsonValue, dumps
from vigil_core.domain.jobs import stages
from vigil_core.domain.jobs.batch import ITEMS_FAILED, OnItemFailure, item_id
from vigil_core.domain.jobs.dependencies import Dependency, DependencyStatus, TriggerRule, Verdict
from vigil_core.domain.jobs.retry import Lease, RetryPolicy
from vigil_core.domain.jobs.status import TERMINAL, TRANSITIONS, JobStatus
from vigil_core.domain.timestamps import truncate_to_ms

Priority: TypeAlias = Literal["background", "low", "normal", "high", "critical"]
Executor: TypeAlias = Literal["worker", "lambda", "http", "none", "join"]
JobLogKind: TypeAlias = Literal[
    "created", "waiting", "ready", "claimed", "started", "updated", "released", "lease_expired", "retrying",
    "completed", "failed", "cancel_requested", "cancelled", "skipped", "retried", "deleted",
]  # fmt: skip

MAX_FIELDS_BYTES = 32 * 1024
MAX_MILESTONES = 256
CANCEL_GRACE = timedelta(seconds=60)
"""How long a running job has to end by itself after it was asked to."""
BATCH_CANCEL_GRACE = timedelta(seconds=180)
"""The same for a batch, whose items are asked one by one and are then given their own time."""
DISPATCHED_EXECUTORS = frozenset({"lambda", "http", "join"})
"""The executors whose jobs Vigil itself sets going, as soon as they are pending. A `join` runs nothing: it completes
with what the jobs before it came to."""
TARGETED_EXECUTORS = frozenset({"lambda", "http"})
"""The executors that have to be told what to run."""
TIMED_OUT = "TIMED_OUT"
LEASE_EXPIRED = "LEASE_EXPIRED"
CONDITION_FAILED = "CONDITION_FAILED"

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
class JobLogEntry:
    """One line of a job's history: the version it made, when, what, by which key, and what it changed."""

    version: int
    occurred_at: datetime
    kind: JobLogKind
    actor: str
    status: JobStatus
    stage: str
    reason: str | None = None


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
    payload_upload: str | None = None
    """The reference of an upload that is the payload."""
    trace_id: str | None = None
    correlation_id: str | None = None
    unique_key: str | None = None
    mutex_key: str | None = None
    queue_on_conflict: bool = False
    depends_on: Sequence[str] = ()
    trigger_rule: TriggerRule = "all_success"
    condition: str | None = None
    scheduled_at: datetime | None = None
    retry: RetryPolicy | None = None
    timeout_s: int | None = None
    heartbeat_timeout_s: int | None = None
    fallback: JsonValue = None
    target_ref: str | None = None
    has_waits: bool = False
    """Whether somebody may wait for it before it exists: the client chose its id."""
    batch_size: int | None = None
    """How many items it is to have; their payloads are a list, which is its own. None for what is no batch."""
    on_item_failure: OnItemFailure = "continue"
    batch_id: str | None = None
    """The batch of which it is an item, and below its place in it."""
    batch_index: int | None = None
    workflow_id: str | None = None
    """The run whose job it is, its place in that, and the names of the jobs after which it comes there."""
    workflow_index: int | None = None
    upstream_names: Sequence[str] = ()


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
    log: tuple[JobLogEntry, ...]
    scheduled_at: datetime | None = None
    retry: RetryPolicy | None = None
    timeout_s: int | None = None
    """How long one attempt may take."""
    heartbeat_timeout_s: int | None = None
    """How long a job that runs without a lease may be silent."""
    fallback_ref: str | None = None
    target_ref: str | None = None
    """What its executor has run: the target that its type had when the job was created."""
    lease: Lease | None = None
    reported_token: str | None = None
    """Of the lease under which the end of an attempt was reported last."""
    expires_at: datetime | None = field(default=None, compare=False)
    """After this, the job is as good as gone: readers do not find it, and the table forgets it."""
    indexed_due_at: datetime | None = None
    """When index `due` shows a running job to the sweeper: at `due_at` or before, for a heartbeat does not move it."""
    has_waits: bool = False
    """Whether anybody ever waited for the job, or may have before it was there. Never false again."""
    has_subscribers: bool = False
    """Whether a socket ever subscribed to the job. Never false again."""
    queue_on_conflict: bool = False
    """Whether the job waits for its mutex in line, where it would otherwise have been refused."""
    mutex_position: int | None = None
    """While it waits for its mutex: the lower, the sooner."""
    depends_on: tuple[Dependency, ...] = ()
    trigger_rule: TriggerRule = "all_success"
    condition: str | None = None
    dependency_status: DependencyStatus = "none"
    verdict: Verdict | None = None
    batch_size: int | None = None
    """How many items it has. What is said of attempts (retry, timeouts, fallback, executor) is then theirs."""
    on_item_failure: OnItemFailure = "continue"
    batch_id: str | None = None
    batch_index: int | None = None
    workflow_id: str | None = None
    """The run whose job it is."""
    workflow_index: int | None = None
    upstream_names: tuple[str, ...] = ()
    """In a run: the names of the jobs on which it depends, the first of them where there are very many."""
    parked: bool = False
    """Whether its run holds it back, though it is ready: the run is paused, or as many others run as may."""

    @property
    def graph_index(self) -> int:
        """Its place in the graph of the run whose job it is."""
        assert self.workflow_index is not None
        return self.workflow_index

    @property
    def needs_matching(self) -> bool:
        """Whether anything follows from a version of the job but that it is told of."""
        has_waiting_parties = self.has_waits or self.awaits_dependencies
        concerns_others = (
            has_waiting_parties or self.deleted or self.affects_mutex or self.affects_batch or self.affects_run
        )
        return concerns_others or self.dispatchable or self.timer_at is not None

    @property
    def affects_mutex(self) -> bool:
        """Whether somebody may be let in to its mutex: it has ended, or stands in line itself."""
        return self.mutex_key is not None and (self.ended or self.mutex_position is not None)

    @property
    def is_batch(self) -> bool:
        """Whether it runs nothing itself, but has items that do."""
        return self.batch_size is not None

    @property
    def affects_batch(self) -> bool:
        """Whether it is a batch that is to have items now, or an item that has ended."""
        return self.status in ("pending", "running") if self.is_batch else self.batch_id is not None and self.ended

    @property
    def in_run(self) -> bool:
        """Whether it is a job of a workflow's run."""
        return self.workflow_id is not None

    @property
    def affects_run(self) -> bool:
        """Whether its run has yet to note how it stands. Whoever skips it because of others does that himself."""
        return self.in_run and self.version > 1 and (self.status != "skipped" or self.condition is not None)

    @property
    def awaits_run(self) -> bool:
        """Whether it is for its run to say when it may start."""
        return self.in_run and self.status == "waiting" and self.verdict is None

    @property
    def awaits_dependencies(self) -> bool:
        """Whether it is the jobs on which it depends, without being in a run with them, that hold it back."""
        return not self.in_run and self.status == "waiting" and self.dependency_status == "waiting"

    @property
    def acquires_mutex_when_ready(self) -> bool:
        """Whether it takes its mutex, or a place in line, only once it is ready."""
        return self.mutex_key is not None and self.queue_on_conflict

    @property
    def ended(self) -> bool:
        """Whether the job is in one of the terminal four."""
        return self.status in TERMINAL

    @property
    def dispatchable(self) -> bool:
        """Whether Vigil itself is to set the job going now."""
        return self.status == "pending" and self.executor in DISPATCHED_EXECUTORS and not self.is_batch

    @property
    def cancel_due_at(self) -> datetime | None:
        """When a cancel that was only asked for is enforced; None when none is outstanding."""
        if self.cancel_requested_at is None or self.status != "running":
            return None
        return self.cancel_requested_at + (BATCH_CANCEL_GRACE if self.is_batch else CANCEL_GRACE)

    @property
    def times_out_at(self) -> datetime | None:
        """When the attempt under way has taken too long."""
        if self.status != "running" or self.timeout_s is None or self.started_at is None or self.is_batch:
            return None
        return self.started_at + timedelta(seconds=self.timeout_s)

    @property
    def heartbeat_deadline(self) -> datetime | None:
        """When a job that runs without a lease was silent for too long: any change is a sign of life."""
        if self.status != "running" or self.heartbeat_timeout_s is None or self.lease is not None or self.is_batch:
            return None
        return self.updated_at + timedelta(seconds=self.heartbeat_timeout_s)

    @property
    def timer_at(self) -> datetime | None:
        """What has to happen to the second: a start, or the end of an attempt that takes too long."""
        return self.scheduled_at if self.status == "scheduled" else self.times_out_at

    @property
    def due_at(self) -> datetime | None:
        """When time alone changes the job next; None when it does not."""
        lease_ends_at = self.lease.expires_at if self.lease else None
        due_times = (self.timer_at, self.cancel_due_at, self.heartbeat_deadline, lease_ends_at)
        return min((moment for moment in due_times if moment is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a PATCH says. None means "not said"; a field's null removes it."""

    stage: str | None = None
    milestones: Sequence[str] = ()
    progress: Decimal | None = None
    message: str | None = None
    fields: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def only_progress(self) -> bool:
        """Whether it carries nothing that a wait could see."""
        return self.stage is None and not self.milestones and not self.fields


def create(
    namespace: str,
    new: NewJob,
    *,
    now: datetime,
    actor: str,
    payload_ref: str | None,
    fallback_ref: str | None = None,
    depends_on: Sequence[Dependency] = (),
) -> Job:
    """The first version of a job: `pending`, or `scheduled` when its time is to come; at stage `submit`."""
    status: JobStatus = "waiting" if depends_on or new.workflow_id is not None else "pending"
    # In a run it waits for the sweeper even if it was created after its time: the graph says that it does.
    if new.scheduled_at is not None and (new.scheduled_at > now or new.workflow_id is not None):
        status = "scheduled"
    first_entry = JobLogEntry(
        version=1, occurred_at=now, kind="created", actor=actor, status=status, stage=stages.SUBMIT
    )
    return Job(
        namespace=namespace,
        job_id=new.job_id,
        job_type=new.job_type,
        name=new.name,
        queue=new.queue,
        priority=new.priority,
        executor=new.executor,
        stages=new.stages,
        status=status,
        stage=stages.SUBMIT,
        health=None,
        progress=Decimal(0),
        message=None,
        milestones=(),
        fields=_merge_fields({}, new.fields),
        tags=tuple(new.tags),
        error=None,
        attempt=1,
        max_attempts=new.retry.max_attempts if new.retry and new.batch_size is None else 1,
        trace_id=new.trace_id,
        correlation_id=new.correlation_id,
        unique_key=new.unique_key,
        mutex_key=new.mutex_key,
        queue_on_conflict=new.queue_on_conflict,
        depends_on=tuple(depends_on),
        trigger_rule=new.trigger_rule,
        condition=new.condition,
        dependency_status="waiting" if depends_on or new.upstream_names else "none",
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
        log=(first_entry,),
        scheduled_at=new.scheduled_at,
        retry=new.retry,
        timeout_s=new.timeout_s,
        heartbeat_timeout_s=new.heartbeat_timeout_s,
        fallback_ref=fallback_ref,
        target_ref=new.target_ref,
        has_waits=new.has_waits,
        batch_size=new.batch_size,
        on_item_failure=new.on_item_failure,
        batch_id=new.batch_id,
        batch_index=new.batch_index,
        workflow_id=new.workflow_id,
        workflow_index=new.workflow_index,
        upstream_names=tuple(new.upstream_names),
    )


def new_batch_item(batch: Job, index: int) -> NewJob:
    """The item to create at this place of a batch, in its attempt under way. Payload and fallback are elsewhere."""
    return NewJob(
        job_id=item_id(batch.job_id, batch.attempt, index),
        job_type=batch.job_type,
        queue=batch.queue,
        priority=batch.priority,
        executor=batch.executor,
        stages=batch.stages,
        fields=batch.fields,
        tags=batch.tags,
        trace_id=batch.trace_id,
        correlation_id=batch.correlation_id,
        retry=batch.retry,
        timeout_s=batch.timeout_s,
        heartbeat_timeout_s=batch.heartbeat_timeout_s,
        target_ref=batch.target_ref,
        batch_id=batch.job_id,
        batch_index=index,
    )


def start_batch(job: Job, *, now: datetime, actor: str) -> Job:
    """`pending` → `running`, before it gets its items; the job itself when it has moved on."""
    if job.status != "pending":
        return job
    return _next(job, now, actor, "started", status="running", started_at=now)


def end_batch(job: Job, failed_items: int, *, now: datetime, actor: str) -> Job:
    """What becomes of a running batch whose items have all ended, so many of them badly."""
    if failed_items and job.cancel_requested_at is not None:
        return _cancel(job, now, actor)
    if failed_items and job.on_item_failure != "collect":
        error = JobError(code=ITEMS_FAILED, message=f"{failed_items} of {job.batch_size} items did not complete")
        return _end(job, now, actor, "failed", reason=error.code, stage=stages.INCOMPLETE, health="failed", error=error)
    return _end(job, now, actor, "completed", stage=stages.COMPLETE, health="success", progress=Decimal(1), error=None)


def becomes_ready(before: Job | None, after: Job) -> bool:
    """Whether a job becomes `pending` that was not yet, or no more, under way."""
    return after.status == "pending" and (before is None or before.status not in ("pending", "running"))


def enqueue_for_mutex(job: Job, position: int) -> Job:
    """A version about to be stored that would be `pending`, if another job had not its mutex: `waiting` in line."""
    *older, newest = job.log
    kind: JobLogKind = "waiting" if newest.kind == "ready" else newest.kind
    log = (*older, replace(newest, kind=kind, status="waiting"))
    return replace(job, status="waiting", mutex_position=position, log=log)


def acquire_mutex(job: Job, *, now: datetime, actor: str) -> Job:
    """`waiting` → `pending`: the mutex is free, and the job is the first in line."""
    _require_transition(job, "pending", "let in")
    return _next(job, now, actor, "ready", reason="mutex", status="pending", mutex_position=None)


def create_ready(job: Job, verdict: Verdict) -> Job:
    """A job about to be created that waits for nothing, because the rule holds already."""
    (first,) = job.log
    return replace(
        job, status="pending", dependency_status="satisfied", verdict=verdict, log=(replace(first, status="pending"),)
    )


def apply_verdict(
    job: Job,
    verdict: Verdict,
    *,
    is_satisfied: bool,
    condition_result: bool | None,
    now: datetime,
    actor: str,
    parked: bool = False,
) -> Job:
    """What a verdict makes of a job that waits for others: released where rule and condition hold, else skipped; failed
    where the condition cannot be evaluated (`passed` is None). With `held` its run does not let it start yet."""
    status: DependencyStatus = "satisfied" if is_satisfied else "failed"
    if job.in_run and not job.upstream_names:
        status = "none"
    changes = {"dependency_status": status, "verdict": verdict}
    if condition_result and parked:
        return _next(job, now, actor, "waiting", reason="workflow", parked=True, **changes)
    if condition_result:
        return _next(job, now, actor, "ready", reason="dependencies", status="pending", **changes)
    if condition_result is None:
        error = JobError(code=CONDITION_FAILED, message=verdict.reason)
        return _end(
            job,
            now,
            actor,
            "failed",
            reason=error.code,
            stage=stages.INCOMPLETE,
            health="failed",
            error=error,
            **changes,
        )
    return _end(job, now, actor, "skipped", reason=verdict.reason, stage=stages.INCOMPLETE, health="skipped", **changes)


def fail_before_start(job: Job, verdict: Verdict, error: JobError, *, now: datetime, actor: str) -> Job:
    """A job that is ready, and cannot start for this reason: it fails."""
    return _end(
        job, now, actor, "failed", reason=error.code, stage=stages.INCOMPLETE, health="failed", error=error,
        dependency_status="satisfied", verdict=verdict,
    )  # fmt: skip


def unpark(job: Job, *, now: datetime, actor: str) -> Job:
    """Its run holds the job back no longer."""
    _require_transition(job, "pending", "let go")
    return _next(job, now, actor, "ready", reason="workflow", status="pending", parked=False)


def park(job: Job, *, now: datetime, actor: str) -> Job:
    """Its run is paused: a job that nobody has begun is held back."""
    _require_transition(job, "waiting", "hold back")
    return _next(job, now, actor, "waiting", reason="workflow", status="waiting", parked=True)


def rerun(job: Job, *, now: datetime, actor: str) -> Job:
    """A new attempt of an ended job in its run, which says when it starts."""
    return _reset(job, now, actor, status="waiting", dependency_status="waiting" if job.upstream_names else "none")


def start(job: Job, *, now: datetime, actor: str, lease_token: str | None = None) -> Job:
    """`pending` → `running`, without a lease: somebody outside runs it."""
    _require_lease(job, lease_token)
    _require_not_batch(job, "start")
    if job.executor in DISPATCHED_EXECUTORS:
        raise InvalidTransition(f"Cannot start job {job.job_id}: its executor, {job.executor}, does")
    _require_transition(job, "running", "start")
    return _next(job, now, actor, "started", status="running", started_at=now)


def claim(job: Job, lease: Lease, *, now: datetime, actor: str) -> Job:
    """`pending` → `running`, under a lease."""
    _require_not_batch(job, "claim")
    _require_transition(job, "running", "claim")
    return _next(job, now, actor, "claimed", reason=lease.worker, status="running", started_at=now, lease=lease)


def heartbeat(
    job: Job,
    *,
    now: datetime,
    lease_token: str | None = None,
    length_s: int | None = None,
    progress: Decimal | None = None,
    message: str | None = None,
    first: bool = False,
) -> Job:
    """A sign of life, which no wait can see: extends the lease by its length, or by `length_s`, from now; never beyond
    the time at which a cancel is enforced.

    Raises:
        InvalidTransition: the job does not run.
        LeaseLost: somebody else holds its lease, or it has run out; or this is to be the `first` sign of life under the
            lease and is not: what is handed the same job twice begins once.
    """
    _require_lease(job, lease_token)
    if job.status != "running":
        raise InvalidTransition(f"Job {job.job_id} is {job.status}: only a running job has a heartbeat")
    if first and job.lease is not None and job.lease.used:
        raise LeaseLost(f"The lease on job {job.job_id} was used before: whoever did so runs the job")
    return replace(
        job,
        progress=job.progress if progress is None else max(job.progress, progress),
        message=job.message if message is None else message,
        lease=None if job.lease is None else _extend_lease(job, job.lease, length_s, now),
        live_version=job.live_version + 1,
        updated_at=now,
    )


def release(job: Job, *, now: datetime, actor: str, lease_token: str | None) -> Job:
    """Give a leased job back unfinished: it is `pending` again, and the attempt does not count."""
    _require_lease(job, lease_token)
    if job.lease is None:
        raise InvalidTransition(f"Cannot release job {job.job_id}: nobody holds a lease on it")
    if job.cancel_requested_at is not None:
        return _cancel(job, now, actor, reason="released")
    return _requeue(job, now, actor, "released", status="pending")


def snooze(job: Job, until: datetime, *, now: datetime, actor: str, lease_token: str) -> Job:
    """A job that could not be handed over to whoever is to run it: it comes again, and the attempt does not count."""
    _require_lease(job, lease_token)
    if job.cancel_requested_at is not None:
        return _cancel(job, now, actor, reason="put off")
    return _requeue(
        job, now, actor, "released", reason="put off", status="scheduled", scheduled_at=truncate_to_ms(until)
    )


def report(job: Job, report: Report, *, now: datetime, actor: str, lease_token: str | None = None) -> Job:
    """Apply a report whole or not at all. Returns the job itself when the report changes nothing.

    A report with `only_live` changes progress and message and keeps the version: nothing that waits can see it.

    Raises:
        InvalidTransition: the job has ended, or is not running while stage or progress is reported, or a stage goes
            backwards.
        LeaseLost: somebody else holds the job's lease.
        ValidationFailed: the stage is not one that can be reported, or fields or milestones are over their limits.
    """
    _require_lease(job, lease_token)
    _check_report(job, report)
    progress = job.progress if report.progress is None else max(job.progress, report.progress)
    message = job.message if report.message is None else report.message
    if report.only_progress:
        if (progress, message) == (job.progress, job.message):
            return job
        return replace(job, progress=progress, message=message, live_version=job.live_version + 1, updated_at=now)
    milestones = tuple(dict.fromkeys((*job.milestones, *report.milestones)))
    if len(milestones) > MAX_MILESTONES:
        raise ValidationFailed.at("/milestones", f"a job has at most {MAX_MILESTONES} milestones")
    changes = {
        "stage": report.stage or job.stage,
        "milestones": milestones,
        "fields": _merge_fields(job.fields, report.fields),
        "progress": progress,
        "message": message,
    }
    changed_names = [name for name, value in changes.items() if getattr(job, name) != value]
    return _next(job, now, actor, "updated", reason=", ".join(changed_names), **changes) if changed_names else job


def complete(
    job: Job,
    *,
    now: datetime,
    actor: str,
    health: str = "success",
    fields: Mapping[str, JsonValue] | None = None,
    lease_token: str | None = None,
) -> Job:
    """The job did what it was for. Returns the job itself when that was reported before, under the same lease."""
    if _is_repeated_report(job, lease_token, succeeded=True):
        return job
    _require_lease(job, lease_token)
    _require_not_batch(job, "complete")
    _require_transition(job, "completed", "complete")
    return _end(
        job, now, actor, "completed", reason=None if health == "success" else health,
        stage=stages.COMPLETE, health=health, progress=Decimal(1), error=None, reported_token=lease_token,
        fields=_merge_fields(job.fields, fields or {}),
    )  # fmt: skip


def fail(
    job: Job,
    error: JobError,
    *,
    now: datetime,
    actor: str,
    jitter: float,
    retryable: bool = True,
    lease_token: str | None = None,
    min_delay: timedelta = timedelta(0),
) -> Job:
    """The attempt failed; `chance` in [0, 1) is the jitter of the delay before the next, if one follows; `at_least` is
    the shortest that delay may be. A job that was asked to cancel ends `cancelled`: it stopped because it was told to.
    Returns the job itself when that was reported before, under the same lease."""
    if _is_repeated_report(job, lease_token, succeeded=False):
        return job
    _require_lease(job, lease_token)
    _require_not_batch(job, "fail")
    _require_transition(job, "failed", "fail")
    reported = replace(job, reported_token=lease_token)
    return _fail_attempt(reported, error, now, actor, jitter=jitter, retryable=retryable, min_delay=min_delay)


def cancel(job: Job, *, now: datetime, actor: str) -> Job:
    """Cancel at once what does not run; ask what runs. Asking twice changes nothing."""
    _require_transition(job, "cancelled", "cancel")
    if job.status != "running":
        return _cancel(job, now, actor)
    if job.cancel_requested_at is not None:
        return job
    return _next(job, now, actor, "cancel_requested", cancel_requested_at=now)


def apply_timers(job: Job, *, now: datetime, actor: str, jitter: float) -> Job:
    """What the passing of time has done to a job; the job itself when nothing is due. `chance` as in `fail`."""

    def has_passed(due_at: datetime | None) -> bool:
        return due_at is not None and due_at <= now

    awaits_verdict = job.dependency_status == "waiting" or (job.in_run and job.verdict is None)
    if job.status == "scheduled" and has_passed(job.scheduled_at) and awaits_verdict:
        return _next(job, now, actor, "waiting", status="waiting")
    if job.status == "scheduled" and has_passed(job.scheduled_at):
        return _next(job, now, actor, "ready", status="pending")
    if has_passed(job.cancel_due_at):
        return _cancel(job, now, actor, reason="not ended by itself in time")
    if has_passed(job.times_out_at):
        error = JobError(code=TIMED_OUT, message=f"The attempt took longer than {job.timeout_s} s")
        return _fail_attempt(job, error, now, actor, jitter=jitter)
    if has_passed(job.heartbeat_deadline):
        error = JobError(code=TIMED_OUT, message=f"There was no sign of life for {job.heartbeat_timeout_s} s")
        return _fail_attempt(job, error, now, actor, jitter=jitter)
    if job.lease is not None and has_passed(job.lease.expires_at):
        error = JobError(code=LEASE_EXPIRED, message=f"{job.lease.worker} let its lease run out")
        return _fail_attempt(job, error, now, actor, jitter=jitter, lease_expired=True)
    return job


def retry(job: Job, *, now: datetime, actor: str) -> Job:
    """A new attempt of an ended job, by an operator's wish: same id, fields and milestones kept."""
    if not job.ended:
        raise InvalidTransition(f"Job {job.job_id} is {job.status}: only an ended job can be retried")
    _require_transition(job, "pending", "retry")
    if job.in_run:
        raise InvalidTransition(f"Cannot retry job {job.job_id} by itself: retry its workflow {job.workflow_id}")
    if job.batch_id is not None:
        raise InvalidTransition(f"Cannot retry job {job.job_id}: it is an item, retry its batch {job.batch_id}")
    has_started = job.dependency_status == "satisfied" and job.status != "skipped"
    needs_verdict = bool(job.depends_on) and (
        not has_started or (job.error is not None and job.error.code == CONDITION_FAILED)
    )
    if needs_verdict:
        return _reset(job, now, actor, status="waiting", dependency_status="waiting")
    return _reset(job, now, actor, status="pending", dependency_status=job.dependency_status, verdict=job.verdict)


def delete(job: Job, *, now: datetime, actor: str) -> Job:
    """The tombstone of an ended job: a version like any other, so that whoever waits for it hears of it."""
    if not job.ended:
        raise InvalidTransition(f"Job {job.job_id} is {job.status}: only an ended job can be deleted")
    if job.in_run:
        raise InvalidTransition(f"Job {job.job_id} belongs to workflow {job.workflow_id}, and goes with it")
    return _next(job, now, actor, "deleted", deleted=True)


def _reset(
    job: Job,
    now: datetime,
    actor: str,
    *,
    status: JobStatus,
    dependency_status: DependencyStatus,
    verdict: Verdict | None = None,
) -> Job:
    """An ended job that lives again: its next attempt, with fields and milestones kept."""
    return _next(
        job, now, actor, "retried", status=status, dependency_status=dependency_status, verdict=verdict,
        stage=stages.SUBMIT, health=None, progress=Decimal(0), message=None, error=None,
        attempt=job.attempt + 1, max_attempts=max(job.max_attempts, job.attempt + 1), result_ref=None,
        cancel_requested_at=None, started_at=None, finished_at=None, lease=None, mutex_position=None, parked=False,
    )  # fmt: skip


def _fail_attempt(
    job: Job,
    error: JobError,
    now: datetime,
    actor: str,
    *,
    jitter: float,
    retryable: bool = True,
    lease_expired: bool = False,
    min_delay: timedelta = timedelta(0),
) -> Job:
    """After a failed attempt: the next one, at once when a lease has lapsed, else after the policy's delay; or the end,
    with the fallback where there is one."""
    if job.cancel_requested_at is not None:
        return _cancel(job, now, actor, error=error)
    if retryable and job.attempt < job.max_attempts:
        delay = job.retry.delay(job.attempt, jitter) if job.retry and not lease_expired else timedelta(0)
        delay = max(delay, min_delay)
        schedule: dict[str, object] = {"status": "pending"}
        if delay:
            schedule = {"status": "scheduled", "scheduled_at": truncate_to_ms(now + delay)}
        kind: JobLogKind = "lease_expired" if lease_expired else "retrying"
        return _requeue(job, now, actor, kind, reason=error.code, error=error, attempt=job.attempt + 1, **schedule)
    if job.fallback_ref is not None:
        return _end(
            job, now, actor, "completed", reason="fallback", stage=stages.COMPLETE, health="fallback",
            progress=Decimal(1), error=error, result_ref=job.fallback_ref,
        )  # fmt: skip
    health = "timed_out" if error.code == TIMED_OUT else "failed"
    return _end(job, now, actor, "failed", reason=error.code, stage=stages.INCOMPLETE, health=health, error=error)


def _requeue(
    job: Job, now: datetime, actor: str, kind: JobLogKind, *, reason: str | None = None, **changes: object
) -> Job:
    """Back before the attempt; what it reported besides fields and milestones is forgotten."""
    return _next(
        job, now, actor, kind, reason=reason,
        stage=stages.SUBMIT, progress=Decimal(0), message=None, started_at=None, lease=None, **changes,
    )  # fmt: skip


def _extend_lease(job: Job, lease: Lease, length_s: int | None, now: datetime) -> Lease:
    if lease.expires_at <= now:
        raise LeaseLost(f"The lease on job {job.job_id} has run out")
    until = max(lease.expires_at, now + timedelta(seconds=length_s or lease.duration_s))
    return replace(lease, expires_at=min(until, job.cancel_due_at or until), used=True)


def _cancel(job: Job, now: datetime, actor: str, *, reason: str | None = None, error: JobError | None = None) -> Job:
    return _end(job, now, actor, "cancelled", reason=reason, stage=stages.INCOMPLETE, health="cancelled", error=error)


def _end(
    job: Job, now: datetime, actor: str, status: JobStatus, *, reason: str | None = None, **changes: object
) -> Job:
    kinds: dict[JobStatus, JobLogKind] = {"completed": "completed", "failed": "failed", "skipped": "skipped"}
    kind = kinds.get(status, "cancelled")
    return _next(
        job,
        now,
        actor,
        kind,
        reason=reason,
        status=status,
        finished_at=now,
        lease=None,
        mutex_position=None,
        parked=False,
        **changes,
    )


def _next(
    job: Job, now: datetime, actor: str, kind: JobLogKind, *, reason: str | None = None, **changes: object
) -> Job:
    changed = replace(job, version=job.version + 1, updated_at=now, **changes)  # type: ignore[arg-type]
    if changed.status != job.status:
        changed = replace(changed, indexed_due_at=None)
    entry = JobLogEntry(
        version=changed.version,
        occurred_at=now,
        kind=kind,
        actor=actor,
        status=changed.status,
        stage=changed.stage,
        reason=reason,
    )
    return replace(changed, log=(*job.log, entry))


def _require_lease(job: Job, lease_token: str | None) -> None:
    if job.lease is None and lease_token is not None:
        raise LeaseLost(f"Nobody holds a lease on job {job.job_id}")
    if job.lease is not None and lease_token != job.lease.token:
        raise LeaseLost(
            f"Job {job.job_id} runs under a lease of {job.lease.worker}: its reports carry that lease's token"
        )


def _require_not_batch(job: Job, verb: str) -> None:
    if job.is_batch:
        raise InvalidTransition(f"Cannot {verb} job {job.job_id}: it is a batch, which begins and ends with its items")


def _is_repeated_report(job: Job, lease_token: str | None, *, succeeded: bool) -> bool:
    """Whether this very report of an attempt's end came before: its answer was lost, and the worker asks again."""
    if lease_token is None or lease_token != job.reported_token:
        return False
    return succeeded == (job.status == "completed" and job.health != "fallback")


def _require_transition(job: Job, status: JobStatus, verb: str) -> None:
    ends_unstarted = job.executor in ("none", "join") and job.status == "pending" and status in {"completed", "failed"}
    if verb == "fail" and job.status != "running" and not ends_unstarted:
        raise InvalidTransition(f"Cannot fail job {job.job_id}: it is {job.status}")
    if status not in TRANSITIONS[job.status] and not ends_unstarted:
        raise InvalidTransition(f"Cannot {verb} job {job.job_id}: it is {job.status}")


def _check_report(job: Job, report: Report) -> None:
    if job.ended:
        raise InvalidTransition(f"Job {job.job_id} is {job.status}: it takes no more reports")
    if report.stage is not None:
        if report.stage in (stages.COMPLETE, stages.INCOMPLETE):
            raise ValidationFailed.at("/job_stage", f"{report.stage!r} is set by ending the job, not by a report")
        if report.stage not in job.stages:
            raise ValidationFailed.at("/job_stage", f"unknown stage; this job's stages are {', '.join(job.stages)}")
    if job.status != "running" and (report.stage is not None or report.progress is not None):
        raise InvalidTransition(f"Job {job.job_id} is {job.status}: stage and progress are reported once it runs")
    if report.stage is not None and not stages.has_reached(job.stages, report.stage, job.stage):
        raise InvalidTransition(f"Job {job.job_id} is at stage {job.stage}, which comes after {report.stage}")


def _merge_fields(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    merged: dict[str, JsonValue] = {name: value for name, value in {**old, **new}.items() if value is not None}
    if len(dumps(merged).encode()) > MAX_FIELDS_BYTES:
        raise ValidationFailed.at("/fields", f"the fields of a job take at most {MAX_FIELDS_BYTES} bytes")
    return merged


def with_result(job: Job, result_ref: str) -> Job:
    """A job that is about to be stored as ended, pointing to its result."""
    return replace(job, result_ref=result_ref)
