"""Transitions of existing jobs, with optimistic concurrency.

Every function follows the same steps: read the job, let the domain decide on the next version, write it on condition
that the job has not changed.
"""

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
from vigil_core.services.executors.calls import release_call
from vigil_core.services.jobs.uploads import claim_upload, require_uploaded
from vigil_core.services.locks import acquire_or_enqueue, locks_for_retry
from vigil_core.services.optimistic import update_with_retry
from vigil_core.store.jobs.payloads import MAX_PAYLOAD_BYTES
from vigil_core.store.locks import LockAcquisition


class TransitionsContext(ChangesJobs, Protocol):
    """The job store with its locks, and the time, ids and jitter of a change."""


LOST_JOB_ERRORS = (JobNotFound, InvalidTransition, LeaseLost)
"""The errors of a report by a process that no longer runs the job: it has ended, has another lease, or is gone."""


def find_job(ctx: TransitionsContext, namespace: str, job_id: str) -> Job:
    """Read a job.

    Raises:
        JobNotFound: No job has this id, the job was deleted, or the id is malformed.
    """
    job = ctx.jobs.find(namespace, job_id) if is_uuid7(job_id) else None
    if job is None or job.deleted:
        raise JobNotFound(job_id)
    return job


def start(ctx: TransitionsContext, namespace: str, job_id: str, *, actor: str, lease_token: str | None = None) -> Job:
    """Start a pending job that an outside process runs."""
    return change(
        ctx, namespace, job_id, lambda job: transitions.start(job, now=ctx.now(), actor=actor, lease_token=lease_token)
    )


def report(
    ctx: TransitionsContext, namespace: str, job_id: str, update: Report, *, actor: str, lease_token: str | None = None
) -> Job:
    """Apply a report completely or refuse it."""
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
    """Record a heartbeat and extend the lease."""
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
    """Return a claimed job to its queue."""
    return change(
        ctx,
        namespace,
        job_id,
        lambda job: transitions.release(job, now=ctx.now(), actor=actor, lease_token=lease_token),
    )


def snooze(
    ctx: TransitionsContext, namespace: str, job_id: str, until: datetime, *, actor: str, lease_token: str
) -> Job:
    """Schedule a claimed job for a later try, because its target could not be invoked."""
    return change(
        ctx,
        namespace,
        job_id,
        lambda job: transitions.snooze(job, until, now=ctx.now(), actor=actor, lease_token=lease_token),
    )


def apply_timers(ctx: TransitionsContext, namespace: str, job_id: str, *, actor: str = "sweeper") -> None:
    """Apply the changes of a job that are due, if any; ignore a deleted job.

    If heartbeats have postponed the due time, the function moves the job's entry in index `due` to the new time.
    """
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
    result_text: str | None = None,
    result_source: Job | None = None,
    health: str = "success",
    fields: Mapping[str, JsonValue] | None = None,
    lease_token: str | None = None,
) -> Job:
    """Complete a job.

    1. Store the result, adopt its upload, or copy the result of another job.
    2. Write the completed version, which points to the result.

    If the process crashes after step 1, the job is unchanged and the stored result expires unused.

    Args:
        ctx: The collaborators.
        namespace: The namespace of the job.
        job_id: The job.
        actor: The cause of the change.
        result: The result, up to the limit of a request body.
        result_upload: The reference of the upload that becomes the result.
        result_text: The result as JSON text, of any size.
        result_source: The job whose result becomes the result, of any size.
        health: The health of the completed job.
        fields: Fields to set.
        lease_token: The token of the worker's lease; None for a job without a lease.
    """

    def put_result(completed: Job) -> str | None:
        nonce = ctx.new_id()[-12:]
        if result_upload is not None:
            upload = require_uploaded(ctx, namespace, result_upload, "result_ref")
            claim_upload(ctx, namespace, upload, job_id, "result_ref")
            return ctx.jobs.adopt_result(completed, nonce, upload)
        if result_source is not None:
            return ctx.jobs.copy_result(completed, nonce, result_source)
        text = encode_payload(result, "result") if result_text is None and result is not None else result_text
        return None if text is None else ctx.jobs.put_result(completed, nonce, text)

    def decide(job: Job) -> Job:
        completed = transitions.complete(
            job, now=ctx.now(), actor=actor, health=health, fields=fields, lease_token=lease_token
        )
        result_ref = None if completed is job else put_result(completed)
        return completed if result_ref is None else transitions.with_result(completed, result_ref)

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
    """End the current attempt with an error. The next attempt starts after `min_delay` at the earliest."""
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
    """Cancel a job that does not run, or ask a running job to stop. The sweeper enforces the cancel deadline."""
    return change(ctx, namespace, job_id, lambda job: transitions.cancel(job, now=ctx.now(), actor=actor))


def retry(ctx: TransitionsContext, namespace: str, job_id: str, *, actor: str) -> Job:
    """Start a new attempt of an ended job, which acquires its unique key and mutex again.

    With `queue_on_conflict`, the job enters the mutex queue at its end if another job has the mutex.

    Raises:
        JobCreationFailed: Another open job has the unique key or the mutex.
    """
    return change(
        ctx,
        namespace,
        job_id,
        lambda job: transitions.retry(job, now=ctx.now(), actor=actor),
        lock_acquisitions=lambda job: locks_for_retry(ctx, job),
    )


def delete(ctx: TransitionsContext, namespace: str, job_id: str, *, actor: str) -> None:
    """Replace an ended job by its tombstone. The matcher receives the tombstone and removes the job's other rows."""
    change(ctx, namespace, job_id, lambda job: transitions.delete(job, now=ctx.now(), actor=actor))


def encode_payload(body: JsonValue, name: str) -> str:
    """Serialise a payload or result to the text that is stored.

    Raises:
        PayloadTooLarge: The text is over the limit of a request body; the message has `name`.
    """
    text = dumps(body)
    if len(text.encode()) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLarge(f"/{name} takes at most {MAX_PAYLOAD_BYTES} bytes as JSON: upload a larger one")
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
    """Change a job by a decision, and retry with a new read after a conflict.

    The concurrency argument, for two processes A and B that change the same job:

    1. Both read version n, and both decide on a version n + 1.
    2. Each write is conditional on version n, and a transaction acquires the locks of the new version with it.
    3. DynamoDB accepts one write, say A's. B's write fails as a whole: it changes neither the job nor a lock.
    4. B reads version n + 1 and decides again. So each decision sees every earlier version.

    If the process crashes before the write, nothing has changed. If it crashes after the write, the stream delivers the
    version to the matcher and the notifier, so no later step depends on this process.

    Args:
        ctx: The collaborators.
        namespace: The namespace of the job.
        job_id: The job.
        decide: Returns the next version, or the job itself for no change. It may run several times.
        lock_acquisitions: Returns the locks that the next version acquires, other than a queued mutex.
        cached: The job, if the process has just read it. It replaces the first read.

    Returns:
        The version that was written, or the current one if `decide` changes nothing.

    Raises:
        JobNotFound: The job does not exist.
        StoreConflict: Other writers were first in each attempt.
    """

    def save(before: Job, decided: Job) -> Job:
        after, mutex_acquisitions = acquire_or_enqueue(ctx, before, decided)
        acquisitions = lock_acquisitions(before) if lock_acquisitions else ()
        ctx.jobs.save(before, after, (*acquisitions, *mutex_acquisitions))
        release_call(ctx, before, after)
        return after

    return update_with_retry(
        lambda: find_job(ctx, namespace, job_id),
        decide,
        save,
        sleep=ctx.sleep,
        subject=f"job {job_id}",
        cached=cached,
    )
