"""The transitions of a job. Each function returns the next version or raises an error; none does I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

from vigil_core.domain.errors import InvalidTransition, LeaseLost, ValidationFailed
from vigil_core.domain.exact_json import JsonValue, dumps
from vigil_core.domain.jobs import stages
from vigil_core.domain.jobs.batch import ITEMS_FAILED, item_id
from vigil_core.domain.jobs.dependencies import Dependency, DependencyStatus
from vigil_core.domain.jobs.job import (
    CONDITION_ERRORS,
    DISPATCHED_EXECUTORS,
    LEASE_EXPIRED,
    MAX_FIELDS_BYTES,
    MAX_MILESTONES,
    TIMED_OUT,
    Job,
    JobError,
    JobLogEntry,
    JobLogKind,
    NewJob,
    Report,
)
from vigil_core.domain.jobs.lease import Lease
from vigil_core.domain.jobs.status import TRANSITIONS, JobStatus
from vigil_core.domain.jobs.trigger_rules import Verdict
from vigil_core.domain.jobs.value_objects import (
    BatchMembership,
    DependencyState,
    MutexState,
    Timeouts,
)
from vigil_core.domain.timestamps import truncate_to_ms


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
    """Build the first version of a job.

    The job is `scheduled` if its start time is in the future, `waiting` if it has dependencies, otherwise `pending`.
    """
    status = _first_status(new, depends_on, now)
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
        max_attempts=new.attempts_per_life,
        trace_id=new.trace_id,
        correlation_id=new.correlation_id,
        unique_key=new.unique_key,
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
        timeouts=Timeouts(attempt_s=new.timeout_s, heartbeat_s=new.heartbeat_timeout_s),
        fallback_ref=fallback_ref,
        target_ref=new.target_ref,
        has_waits=new.has_waits,
        mutex=MutexState(key=new.mutex_key, queue_on_conflict=new.queue_on_conflict),
        dependencies=_dependencies_of(new, depends_on),
        batch=_batch_of(new),
        workflow=new.workflow_membership,
    )


def _first_status(new: NewJob, depends_on: Sequence[Dependency], now: datetime) -> JobStatus:
    # In a run, the job is `scheduled` even after its start time: the run state says so. The sweeper promotes it.
    if new.scheduled_at is not None and (new.scheduled_at > now or new.workflow_id is not None):
        return "scheduled"
    return "waiting" if depends_on or new.workflow_id is not None else "pending"


def _dependencies_of(new: NewJob, depends_on: Sequence[Dependency]) -> DependencyState:
    return DependencyState(
        depends_on=tuple(depends_on),
        trigger_rule=new.trigger_rule,
        condition=new.condition,
        status="waiting" if depends_on or new.upstream_names else "none",
    )


def _batch_of(new: NewJob) -> BatchMembership:
    return BatchMembership(
        size=new.batch_size, on_item_failure=new.on_item_failure, batch_id=new.batch_id, index=new.batch_index
    )


def new_batch_item(batch: Job, index: int) -> NewJob:
    """Build the request for one item of a batch in the batch's current attempt, without payload and fallback."""
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
        timeout_s=batch.timeouts.attempt_s,
        heartbeat_timeout_s=batch.timeouts.heartbeat_s,
        target_ref=batch.target_ref,
        batch_id=batch.job_id,
        batch_index=index,
    )


def start_batch(job: Job, *, now: datetime, actor: str) -> Job:
    """Start a pending batch before its items are created.

    Returns:
        The next version, or `job` itself if it is no longer pending.
    """
    if job.status != "pending":
        return job
    return _next(job, now, actor, "started", status="running", started_at=now)


def end_batch(job: Job, failed_items: int, *, now: datetime, actor: str) -> Job:
    """End a running batch whose items have all ended.

    Args:
        job: The batch.
        failed_items: The number of items that did not complete.
        now: The time of the end.
        actor: The cause of the change.
    """
    if failed_items and job.cancel_requested_at is not None:
        return _cancel(job, now, actor)
    if failed_items and job.batch.on_item_failure != "collect":
        error = JobError(code=ITEMS_FAILED, message=f"{failed_items} of {job.batch.size} items did not complete")
        return _fail_for_good(job, now, actor, error)
    return _end(job, now, actor, "completed", stage=stages.COMPLETE, health="success", progress=Decimal(1), error=None)


def becomes_ready(before: Job | None, after: Job) -> bool:
    """Return whether a job enters `pending` from a status other than `pending` and `running`."""
    return after.status == "pending" and (before is None or before.status not in ("pending", "running"))


def enqueue_for_mutex(job: Job, position: int) -> Job:
    """Turn an unsaved `pending` version into a `waiting` one in the mutex queue, because another job has the mutex."""
    *older, newest = job.log
    kind: JobLogKind = "waiting" if newest.kind == "ready" else newest.kind
    log = (*older, replace(newest, kind=kind, status="waiting"))
    return replace(job, status="waiting", mutex=job.mutex.at(position), log=log)


def acquire_mutex(job: Job, *, now: datetime, actor: str) -> Job:
    """Promote the first job of the mutex queue to `pending`, because the mutex is free."""
    _require_transition(job, "pending", "promote")
    return _next(job, now, actor, "ready", reason="mutex", status="pending", mutex=job.mutex.at(None))


def create_ready(job: Job, verdict: Verdict) -> Job:
    """Turn an unsaved `waiting` first version into a `pending` one, because the trigger rule is already satisfied."""
    (first,) = job.log
    dependencies = job.dependencies.decided("satisfied", verdict)
    return replace(job, status="pending", dependencies=dependencies, log=(replace(first, status="pending"),))


def apply_verdict(
    job: Job,
    verdict: Verdict,
    *,
    is_satisfied: bool,
    condition_result: bool | JobError,
    now: datetime,
    actor: str,
    parked: bool = False,
) -> Job:
    """Apply a verdict to a waiting job.

    Args:
        job: The waiting job.
        verdict: The verdict of the trigger rule, or of the condition after it.
        is_satisfied: Whether the trigger rule is satisfied.
        condition_result: True releases the job, False skips it. An error fails it: the condition cannot be evaluated.
        now: The time of the verdict.
        actor: The cause of the change.
        parked: Whether the run keeps the released job from starting for now.
    """
    status: DependencyStatus = "satisfied" if is_satisfied else "failed"
    if job.workflow.in_run and not job.workflow.upstream_names:
        status = "none"
    dependencies = job.dependencies.decided(status, verdict)
    if isinstance(condition_result, JobError):
        return _fail_for_good(job, now, actor, condition_result, dependencies=dependencies)
    if condition_result and parked:
        workflow = job.workflow.with_parked(True)
        return _next(job, now, actor, "waiting", reason="workflow", workflow=workflow, dependencies=dependencies)
    if condition_result:
        return _next(job, now, actor, "ready", reason="dependencies", status="pending", dependencies=dependencies)
    return _end(
        job, now, actor, "skipped", reason=verdict.reason, stage=stages.INCOMPLETE, health="skipped",
        dependencies=dependencies,
    )  # fmt: skip


def fail_for_good(job: Job, error: JobError, *, now: datetime, actor: str, verdict: Verdict | None = None) -> Job:
    """Fail an open job without another attempt. With a verdict, the job was released and cannot start."""
    dependencies = job.dependencies if verdict is None else job.dependencies.decided("satisfied", verdict)
    return job if job.ended else _fail_for_good(job, now, actor, error, dependencies=dependencies)


def unpark(job: Job, *, now: datetime, actor: str) -> Job:
    """Let a parked job start."""
    _require_transition(job, "pending", "unpark")
    workflow = job.workflow.with_parked(False)
    return _next(job, now, actor, "ready", reason="workflow", status="pending", workflow=workflow)


def park(job: Job, *, now: datetime, actor: str) -> Job:
    """Park a pending job, because its run is paused."""
    _require_transition(job, "waiting", "park")
    workflow = job.workflow.with_parked(True)
    return _next(job, now, actor, "waiting", reason="workflow", status="waiting", workflow=workflow)


def rerun(job: Job, *, now: datetime, actor: str) -> Job:
    """Return an ended job of a run to `waiting` for a new attempt, which the run releases."""
    return _reset(
        job, now, actor, status="waiting", dependency_status="waiting" if job.workflow.upstream_names else "none"
    )


def start(job: Job, *, now: datetime, actor: str, lease_token: str | None = None) -> Job:
    """Start a pending job without a lease: an outside process runs it."""
    _require_lease(job, lease_token)
    _require_not_batch(job, "start")
    if job.executor in DISPATCHED_EXECUTORS:
        raise InvalidTransition(
            f"Cannot start job {job.job_id}: Vigil starts the jobs of executor {job.executor} itself"
        )
    _require_transition(job, "running", "start")
    return _next(job, now, actor, "started", status="running", started_at=now)


def claim(job: Job, lease: Lease, *, now: datetime, actor: str) -> Job:
    """Start a pending job under a lease."""
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
    """Record a heartbeat, with progress and message if given. It makes no version, so waits do not see it.

    A heartbeat extends the lease by its duration, or by `length_s`, from now, but not beyond the cancel deadline. A
    heartbeat without content changes nothing in the first half of the lease.

    Args:
        job: The running job.
        now: The time of the heartbeat.
        lease_token: The token of the worker's lease; None for a job without a lease.
        length_s: The duration of the extension in seconds.
        progress: The new progress. A lower value than the current one has no effect.
        message: The new message.
        first: Whether this must be the first heartbeat of the lease. Of two deliveries of one job only the first then
            starts.

    Raises:
        InvalidTransition: The job is not running.
        LeaseLost: The lease has another token or has expired, or `first` is set and the lease was already used.
    """
    _require_lease(job, lease_token)
    if job.status != "running":
        raise InvalidTransition(f"Job {job.job_id} is {job.status}: only a running job accepts heartbeats")
    if first and job.lease is not None and job.lease.used:
        raise LeaseLost(f"The lease on job {job.job_id} was used before: another process runs the job")
    has_content = first or (length_s, progress, message) != (None, None, None)
    if job.lease is not None and job.lease.is_in_first_half(now) and not has_content:
        return job
    return replace(
        job,
        progress=job.progress if progress is None else max(job.progress, progress),
        message=job.message if message is None else message,
        lease=None if job.lease is None else _extend_lease(job, job.lease, length_s, now),
        live_version=job.live_version + 1,
        updated_at=now,
    )


def release(job: Job, *, now: datetime, actor: str, lease_token: str | None) -> Job:
    """Return a leased job to its queue without counting the attempt."""
    _require_lease(job, lease_token)
    if job.lease is None:
        raise InvalidTransition(f"Cannot release job {job.job_id}: no worker holds a lease on it")
    if job.cancel_requested_at is not None:
        return _cancel(job, now, actor, reason="released")
    return _requeue(job, now, actor, "released", status="pending")


def snooze(job: Job, until: datetime, *, now: datetime, actor: str, lease_token: str) -> Job:
    """Schedule a job for a later try without counting the attempt, because its target could not be invoked."""
    _require_lease(job, lease_token)
    if job.cancel_requested_at is not None:
        return _cancel(job, now, actor, reason="snoozed")
    return _requeue(
        job, now, actor, "released", reason="snoozed", status="scheduled", scheduled_at=truncate_to_ms(until)
    )


def report(job: Job, report: Report, *, now: datetime, actor: str, lease_token: str | None = None) -> Job:
    """Apply a report completely or not at all.

    A report of only progress and message keeps the version: no wait can test them.

    Returns:
        The changed job, or `job` itself if the report changes nothing.

    Raises:
        InvalidTransition: The job has ended; it is not running and the report has a stage or progress; or the stage is
            before the current one.
        LeaseLost: The lease has another token.
        ValidationFailed: The stage cannot be reported, or the fields or milestones exceed their limits.
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
    """Complete a job.

    Returns:
        The completed job, or `job` itself if the same lease reported the completion before.
    """
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
    """End the current attempt with an error, and schedule the next attempt if one remains.

    A job with an outstanding cancel request becomes `cancelled`: it stopped because it was asked to.

    Args:
        job: The running job.
        error: The reason of the failure.
        now: The time of the failure.
        actor: The cause of the change.
        jitter: A random number in [0, 1) for the backoff delay.
        retryable: Whether the error permits another attempt.
        lease_token: The token of the worker's lease; None for a job without a lease.
        min_delay: The shortest delay before the next attempt.

    Returns:
        The changed job, or `job` itself if the same lease reported the failure before.
    """
    if _is_repeated_report(job, lease_token, succeeded=False):
        return job
    _require_lease(job, lease_token)
    _require_not_batch(job, "fail")
    _require_transition(job, "failed", "fail")
    reported = replace(job, reported_token=lease_token)
    return _fail_attempt(reported, error, now, actor, jitter=jitter, retryable=retryable, min_delay=min_delay)


def cancel(job: Job, *, now: datetime, actor: str) -> Job:
    """Cancel a job that does not run, or ask a running job to stop. A second request changes nothing."""
    _require_transition(job, "cancelled", "cancel")
    if job.status != "running":
        return _cancel(job, now, actor)
    if job.cancel_requested_at is not None:
        return job
    return _next(job, now, actor, "cancel_requested", cancel_requested_at=now)


def apply_timers(job: Job, *, now: datetime, actor: str, jitter: float) -> Job:
    """Apply the changes that are due at `now`: start time, cancel deadline, timeouts, lease expiry.

    Args:
        job: The job.
        now: The current time.
        actor: The cause of the change.
        jitter: A random number in [0, 1) for the backoff delay.

    Returns:
        The changed job, or `job` itself if nothing is due.
    """

    def has_passed(due_at: datetime | None) -> bool:
        return due_at is not None and due_at <= now

    if job.status == "scheduled" and has_passed(job.scheduled_at) and job.awaits_verdict:
        return _next(job, now, actor, "waiting", status="waiting")
    if job.status == "scheduled" and has_passed(job.scheduled_at):
        return _next(job, now, actor, "ready", status="pending")
    if has_passed(job.cancel_due_at):
        return _cancel(job, now, actor, reason="the job did not stop in time")
    if has_passed(job.times_out_at):
        error = JobError(code=TIMED_OUT, message=f"The attempt took longer than {job.timeouts.attempt_s} s")
        return _fail_attempt(job, error, now, actor, jitter=jitter)
    if has_passed(job.heartbeat_deadline):
        error = JobError(code=TIMED_OUT, message=f"The job sent no heartbeat for {job.timeouts.heartbeat_s} s")
        return _fail_attempt(job, error, now, actor, jitter=jitter)
    if job.lease is not None and has_passed(job.lease.expires_at):
        error = JobError(code=LEASE_EXPIRED, message=f"The lease of {job.lease.worker} expired")
        return _fail_attempt(job, error, now, actor, jitter=jitter, lease_expired=True)
    return job


def retry(job: Job, *, now: datetime, actor: str) -> Job:
    """Start a new attempt of an ended job on an operator's request. It keeps id, fields and milestones."""
    if not job.ended:
        raise InvalidTransition(f"Job {job.job_id} is {job.status}: only an ended job can be retried")
    _require_transition(job, "pending", "retry")
    if job.workflow.in_run:
        raise InvalidTransition(f"Cannot retry job {job.job_id} alone: retry its workflow {job.workflow.workflow_id}")
    if job.batch.is_item:
        raise InvalidTransition(f"Cannot retry job {job.job_id}: it is an item, retry its batch {job.batch.batch_id}")
    has_started = job.dependencies.status == "satisfied" and job.status != "skipped"
    needs_verdict = bool(job.dependencies.depends_on) and (
        not has_started or (job.error is not None and job.error.code in CONDITION_ERRORS)
    )
    if needs_verdict:
        return _reset(job, now, actor, status="waiting", dependency_status="waiting")
    return _reset(
        job, now, actor, status="pending", dependency_status=job.dependencies.status, verdict=job.dependencies.verdict
    )


def delete(job: Job, *, now: datetime, actor: str) -> Job:
    """Build the tombstone of an ended job. Like any version, it lets the matcher decide the job's waits."""
    if not job.ended:
        raise InvalidTransition(f"Job {job.job_id} is {job.status}: only an ended job can be deleted")
    if job.workflow.in_run:
        raise InvalidTransition(f"Job {job.job_id} belongs to workflow {job.workflow.workflow_id}: delete the workflow")
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
    """Return an ended job to its start for the next attempt, with all attempts of its retry policy left."""
    return _next(
        job, now, actor, "retried", status=status, dependencies=job.dependencies.decided(dependency_status, verdict),
        stage=stages.SUBMIT, health=None, progress=Decimal(0), message=None, error=None,
        attempt=job.attempt + 1, max_attempts=job.attempt + job.attempts_per_life, result_ref=None,
        cancel_requested_at=None, started_at=None, finished_at=None, lease=None,
        batch=job.batch.retried(job.attempt + 1, has_completed=job.status == "completed"),
        mutex=job.mutex.at(None), workflow=job.workflow.with_parked(False),
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
    """Handle a failed attempt: requeue the job for the next one, or end it.

    After a lease expiry the next attempt starts at once, otherwise after the backoff delay. A job without a further
    attempt completes with its fallback, if it has one, and fails otherwise.
    """
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
    return _fail_for_good(job, now, actor, error, health="timed_out" if error.code == TIMED_OUT else "failed")


def _requeue(
    job: Job, now: datetime, actor: str, kind: JobLogKind, *, reason: str | None = None, **changes: object
) -> Job:
    """Return a job to its state before the attempt. It keeps only fields and milestones of the attempt's reports."""
    return _next(
        job, now, actor, kind, reason=reason,
        stage=stages.SUBMIT, progress=Decimal(0), message=None, started_at=None, lease=None, **changes,
    )  # fmt: skip


def _extend_lease(job: Job, lease: Lease, length_s: int | None, now: datetime) -> Lease:
    """Extend a lease from now, up to the cancel deadline."""
    if lease.expires_at <= now:
        raise LeaseLost(f"The lease on job {job.job_id} has expired")
    until = max(lease.expires_at, now + timedelta(seconds=length_s or lease.duration_s))
    return replace(lease, expires_at=min(until, job.cancel_due_at or until), used=True)


def _fail_for_good(
    job: Job, now: datetime, actor: str, error: JobError, *, health: str = "failed", **changes: object
) -> Job:
    return _end(
        job, now, actor, "failed", reason=error.code, stage=stages.INCOMPLETE, health=health, error=error, **changes
    )


def _cancel(job: Job, now: datetime, actor: str, *, reason: str | None = None, error: JobError | None = None) -> Job:
    return _end(job, now, actor, "cancelled", reason=reason, stage=stages.INCOMPLETE, health="cancelled", error=error)


def _end(
    job: Job, now: datetime, actor: str, status: JobStatus, *, reason: str | None = None, **changes: object
) -> Job:
    kinds: dict[JobStatus, JobLogKind] = {"completed": "completed", "failed": "failed", "skipped": "skipped"}
    kind = kinds.get(status, "cancelled")
    return _next(
        job, now, actor, kind, reason=reason, status=status, finished_at=now, lease=None,
        mutex=job.mutex.at(None), workflow=job.workflow.with_parked(False), **changes,
    )  # fmt: skip


def _next(
    job: Job, now: datetime, actor: str, kind: JobLogKind, *, reason: str | None = None, **changes: object
) -> Job:
    """Build the next version with its history line. A new status ends the job's entry in index `due`."""
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
        raise LeaseLost(f"No worker holds a lease on job {job.job_id}")
    if job.lease is not None and lease_token != job.lease.token:
        raise LeaseLost(
            f"Job {job.job_id} runs under a lease of {job.lease.worker}: its reports carry that lease's token"
        )


def _require_not_batch(job: Job, verb: str) -> None:
    if job.batch.is_batch:
        raise InvalidTransition(f"Cannot {verb} job {job.job_id}: it is a batch, which starts and ends with its items")


def _is_repeated_report(job: Job, lease_token: str | None, *, succeeded: bool) -> bool:
    """Return whether the worker repeats its report of an attempt's end, because it lost the first answer."""
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
        raise InvalidTransition(f"Job {job.job_id} is {job.status}: an ended job accepts no reports")
    if report.stage is not None:
        if report.stage in (stages.COMPLETE, stages.INCOMPLETE):
            raise ValidationFailed.at("/job_stage", f"{report.stage!r} is set when the job ends, not by a report")
        if report.stage not in job.stages:
            raise ValidationFailed.at("/job_stage", f"unknown stage; this job's stages are {', '.join(job.stages)}")
    if job.status != "running" and (report.stage is not None or report.progress is not None):
        raise InvalidTransition(f"Job {job.job_id} is {job.status}: only a running job accepts stage and progress")
    if report.stage is not None and not stages.has_reached(job.stages, report.stage, job.stage):
        raise InvalidTransition(f"Job {job.job_id} is at stage {job.stage}, which comes after {report.stage}")


def _merge_fields(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    merged: dict[str, JsonValue] = {name: value for name, value in {**old, **new}.items() if value is not None}
    if len(dumps(merged).encode()) > MAX_FIELDS_BYTES:
        raise ValidationFailed.at("/fields", f"the fields of a job may have at most {MAX_FIELDS_BYTES} bytes")
    return merged


def with_result(job: Job, result_ref: str) -> Job:
    """Point an unsaved ended version to its result."""
    return replace(job, result_ref=result_ref)
