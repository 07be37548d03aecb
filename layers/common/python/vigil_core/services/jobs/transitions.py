"""Every change of an existing job goes through here: read, decide, write on the condition that nothing moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Protocol

from vigil_core.domain.errors import InvalidTransition, JobNotFound, LeaseLost, PayloadTooLarge, StoreConflict
from vigil_core.domain.exact_json import JsonValue, dumps
from vigil_core.domain.ids import is_uuid7
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job, JobError, Report
from vigil_core.services.context import ChangesJobs
from vigil_core.services.jobs.uploads import require_uploaded
from vigil_core.services.locks import acquire_or_enqueue, locks_for_retry
from vigil_core.store.jobs.jobs import MAX_PAYLOAD_BYTES
from vigil_core.store.locks import LockAcquisition


class TransitionsContext(ChangesJobs, Protocol):
    """What this module uses of the outside world."""


MAX_ATTEMPTS = 12
LOST_JOB_ERRORS = (JobNotFound, InvalidTransition, LeaseLost)
"""What a report is refused with by whoever no longer runs the job: it has ended, is somebody else's, or is gone."""


def find_job(ctx: TransitionsContext, namespace: str, job_id: str) -> Job:
    """The job as of now. Raises JobNotFound, also for what cannot be an id and for what was deleted."""
    job = ctx.jobs.find(namespace, job_id) if is_uuid7(job_id) else None
    if job is None or job.deleted:
        raise JobNotFound(job_id)
    return job


def start(ctx: TransitionsContext, namespace: str, job_id: str, *, actor: str, lease_token: str | None = None) -> Job:
    """Somebody outside began to run the job."""
    return change(
        ctx, namespace, job_id, lambda job: transitions.start(job, now=ctx.now(), actor=actor, lease_token=lease_token)
    )


def report(
    ctx: TransitionsContext, namespace: str, job_id: str, update: Report, *, actor: str, lease_token: str | None = None
) -> Job:
    """Somebody outside tells how the job goes: applied whole or refused."""
    return change(
        ctx,
        namespace,
        job_id,
        lambda job: transitions.report(job, update, now=ctx.now(), actor=actor, lease_token=lease_token),
    )


def heartbeat(
    ctx: TransitionsContext,
    namespace: str,
    job_id: str,
    *,
    lease_token: str | None,
    lease_s: int | None,
    progress: Decimal | None = None,
    message: str | None = None,
    first: bool = False,
) -> Job:
    """Whoever runs the job is alive."""
    return change(
        ctx,
        namespace,
        job_id,
        lambda job: transitions.heartbeat(
            job,
            now=ctx.now(),
            lease_token=lease_token,
            length_s=lease_s,
            progress=progress,
            message=message,
            first=first,
        ),
    )


def release(ctx: TransitionsContext, namespace: str, job_id: str, *, actor: str, lease_token: str | None) -> Job:
    """A worker gives a job back."""
    return change(
        ctx,
        namespace,
        job_id,
        lambda job: transitions.release(job, now=ctx.now(), actor=actor, lease_token=lease_token),
    )


def snooze(
    ctx: TransitionsContext, namespace: str, job_id: str, until: datetime, *, actor: str, lease_token: str
) -> Job:
    """A job could not be handed over: it comes again at that time."""
    return change(
        ctx,
        namespace,
        job_id,
        lambda job: transitions.snooze(job, until, now=ctx.now(), actor=actor, lease_token=lease_token),
    )


def apply_timers(ctx: TransitionsContext, namespace: str, job_id: str, *, actor: str = "sweeper") -> None:
    """Do what time has brought about; nothing when nothing is due, or the job is gone. Where heartbeats have moved what
    is due, the sweeper is shown the new time."""
    with suppress(JobNotFound):
        job = change(
            ctx,
            namespace,
            job_id,
            lambda job: transitions.apply_timers(job, now=ctx.now(), actor=actor, jitter=ctx.jitter()),
        )
        if job.status == "running" and job.due_at and job.indexed_due_at and job.indexed_due_at < job.due_at:
            with suppress(StoreConflict):
                ctx.jobs.repair_index_entry(replace(job, indexed_due_at=None))


def complete(
    ctx: TransitionsContext,
    namespace: str,
    job_id: str,
    *,
    actor: str,
    result: JsonValue = None,
    result_upload: str | None = None,
    health: str = "success",
    fields: Mapping[str, JsonValue] | None = None,
    lease_token: str | None = None,
) -> Job:
    """The job did what it was for. The result is stored first; only the change of state makes it the job's."""

    def decide(job: Job) -> Job:
        completed = transitions.complete(
            job, now=ctx.now(), actor=actor, health=health, fields=fields, lease_token=lease_token
        )
        if completed is job or (result is None and result_upload is None):
            return completed
        nonce = ctx.new_id()[-12:]
        if result_upload is not None:
            upload = require_uploaded(ctx, namespace, result_upload, "result_ref")
            return transitions.with_result(completed, ctx.jobs.adopt_result(completed, nonce, upload))
        return transitions.with_result(completed, ctx.jobs.put_result(completed, nonce, encode_body(result, "result")))

    return change(ctx, namespace, job_id, decide)


def fail(
    ctx: TransitionsContext,
    namespace: str,
    job_id: str,
    error: JobError,
    *,
    actor: str,
    retryable: bool = True,
    lease_token: str | None = None,
    min_delay: timedelta = timedelta(0),
) -> Job:
    """The attempt failed; the next one is not sooner than `at_least` from now."""
    return change(
        ctx,
        namespace,
        job_id,
        lambda job: transitions.fail(
            job,
            error,
            now=ctx.now(),
            actor=actor,
            jitter=ctx.jitter(),
            retryable=retryable,
            lease_token=lease_token,
            min_delay=min_delay,
        ),
    )


def cancel(ctx: TransitionsContext, namespace: str, job_id: str, *, actor: str) -> Job:
    """Cancel at once what does not run, ask what runs; the sweeper enforces what was asked for."""
    return change(ctx, namespace, job_id, lambda job: transitions.cancel(job, now=ctx.now(), actor=actor))


def retry(ctx: TransitionsContext, namespace: str, job_id: str, *, actor: str) -> Job:
    """A new attempt of an ended job. Its unique key and mutex are taken anew: 409 while another live job has them, or,
    where it waits for its mutex, a place at the end of the line."""
    return change(
        ctx,
        namespace,
        job_id,
        lambda job: transitions.retry(job, now=ctx.now(), actor=actor),
        lock_acquisitions=lambda job: locks_for_retry(ctx, job),
    )


def delete(ctx: TransitionsContext, namespace: str, job_id: str, *, actor: str) -> None:
    """Leave a tombstone in the place of an ended job; its other rows are removed by whoever hears of the tombstone."""
    change(ctx, namespace, job_id, lambda job: transitions.delete(job, now=ctx.now(), actor=actor))


def encode_body(body: JsonValue, name: str) -> str:
    """A payload or result as the text that is stored. Raises PayloadTooLarge, naming it."""
    text = dumps(body)
    if len(text.encode()) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLarge(f"/{name} takes at most {MAX_PAYLOAD_BYTES} bytes as JSON: upload what is larger")
    return text


def change(
    ctx: TransitionsContext,
    namespace: str,
    job_id: str,
    decide: Callable[[Job], Job],
    *,
    lock_acquisitions: Callable[[Job], list[LockAcquisition]] | None = None,
    cached: Job | None = None,
) -> Job:
    """Store what is decided of the job as it is now; decided anew, whenever somebody else was first. `known` is the job
    as it was read a moment ago, which spares reading it again."""
    for attempt in range(MAX_ATTEMPTS):
        before = cached if cached is not None and attempt == 0 else find_job(ctx, namespace, job_id)
        after = decide(before)
        try:
            after, mutex_acquisitions = acquire_or_enqueue(ctx, before, after)
            ctx.jobs.save(
                before, after, (*(lock_acquisitions(before) if lock_acquisitions else ()), *mutex_acquisitions)
            )
        except StoreConflict:
            ctx.sleep(0.01 * attempt)
            continue
        return after
    raise StoreConflict(f"Job {job_id} is being changed by too many at once: try again")
