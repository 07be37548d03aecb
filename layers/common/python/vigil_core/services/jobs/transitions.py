"""Every change of an existing job goes through here: read, decide, write on the condition that nothing moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

from vigil_core.domain.errors import InvalidTransition, JobNotFound, LeaseLost, PayloadTooLarge, StoreConflict
from vigil_core.domain.exact_json import JsonValue, dumps
from vigil_core.domain.ids import is_uuid7
from vigil_core.domain.jobs import job as jobs
from vigil_core.domain.jobs.job import Job, JobError, Report
from vigil_core.services.context import Context
from vigil_core.services.jobs.uploads import arrived
from vigil_core.services.locks import admit, claims_for_retry
from vigil_core.store.jobs.jobs import MAX_BODY_BYTES
from vigil_core.store.locks import HoldClaim

ATTEMPTS = 12
NO_LONGER_OURS = (JobNotFound, InvalidTransition, LeaseLost)
"""What a report is refused with by whoever no longer runs the job: it has ended, is somebody else's, or is gone."""


def find_job(ctx: Context, namespace: str, job_id: str) -> Job:
    """The job as of now. Raises JobNotFound, also for what cannot be an id and for what was deleted."""
    job = ctx.jobs.find(namespace, job_id) if is_uuid7(job_id) else None
    if job is None or job.deleted:
        raise JobNotFound(job_id)
    return job


def start(ctx: Context, namespace: str, job_id: str, *, by: str, lease_token: str | None = None) -> Job:
    """Somebody outside began to run the job."""
    return change(ctx, namespace, job_id, lambda job: jobs.start(job, now=ctx.now(), by=by, lease_token=lease_token))


def report(ctx: Context, namespace: str, job_id: str, said: Report, *, by: str, lease_token: str | None = None) -> Job:
    """Somebody outside tells how the job goes: applied whole or refused."""
    return change(
        ctx, namespace, job_id, lambda job: jobs.report(job, said, now=ctx.now(), by=by, lease_token=lease_token)
    )


def heartbeat(
    ctx: Context,
    namespace: str,
    job_id: str,
    *,
    lease_token: str | None,
    length_s: int | None,
    progress: Decimal | None = None,
    message: str | None = None,
    first: bool = False,
) -> Job:
    """Whoever runs the job is alive."""
    return change(
        ctx,
        namespace,
        job_id,
        lambda job: jobs.heartbeat(
            job,
            now=ctx.now(),
            lease_token=lease_token,
            length_s=length_s,
            progress=progress,
            message=message,
            first=first,
        ),
    )


def release(ctx: Context, namespace: str, job_id: str, *, by: str, lease_token: str | None) -> Job:
    """A worker gives a job back."""
    return change(ctx, namespace, job_id, lambda job: jobs.release(job, now=ctx.now(), by=by, lease_token=lease_token))


def put_off(ctx: Context, namespace: str, job_id: str, until: datetime, *, by: str, lease_token: str) -> Job:
    """A job could not be handed over: it comes again at that time."""
    return change(
        ctx,
        namespace,
        job_id,
        lambda job: jobs.put_off(job, until, now=ctx.now(), by=by, lease_token=lease_token),
    )


def on_time(ctx: Context, namespace: str, job_id: str, *, by: str = "sweeper") -> None:
    """Do what time has brought about; nothing when nothing is due, or the job is gone. Where heartbeats have moved what
    is due, the sweeper is shown the new time."""
    with suppress(JobNotFound):
        job = change(ctx, namespace, job_id, lambda job: jobs.on_time(job, now=ctx.now(), by=by, chance=ctx.chance()))
        if job.status == "running" and job.due_at and job.shown_due_at and job.shown_due_at < job.due_at:
            with suppress(StoreConflict):
                ctx.jobs.show_in_place(replace(job, shown_due_at=None))


def complete(
    ctx: Context,
    namespace: str,
    job_id: str,
    *,
    by: str,
    result: JsonValue = None,
    result_upload: str | None = None,
    health: str = "success",
    fields: Mapping[str, JsonValue] | None = None,
    lease_token: str | None = None,
) -> Job:
    """The job did what it was for. The result is stored first; only the change of state makes it the job's."""

    def decide(job: Job) -> Job:
        done = jobs.complete(job, now=ctx.now(), by=by, health=health, fields=fields, lease_token=lease_token)
        if done is job or (result is None and result_upload is None):
            return done
        nonce = ctx.new_id()[-12:]
        if result_upload is not None:
            upload = arrived(ctx, namespace, result_upload, "result_ref")
            return jobs.with_result(done, ctx.jobs.adopt_result(done, nonce, upload))
        return jobs.with_result(done, ctx.jobs.put_result(done, nonce, body_text(result, "result")))

    return change(ctx, namespace, job_id, decide)


def fail(
    ctx: Context,
    namespace: str,
    job_id: str,
    error: JobError,
    *,
    by: str,
    retryable: bool = True,
    lease_token: str | None = None,
    at_least: timedelta = timedelta(0),
) -> Job:
    """The attempt failed; the next one is not sooner than `at_least` from now."""
    return change(
        ctx,
        namespace,
        job_id,
        lambda job: jobs.fail(
            job,
            error,
            now=ctx.now(),
            by=by,
            chance=ctx.chance(),
            retryable=retryable,
            lease_token=lease_token,
            at_least=at_least,
        ),
    )


def cancel(ctx: Context, namespace: str, job_id: str, *, by: str) -> Job:
    """Cancel at once what does not run, ask what runs; the sweeper enforces what was asked for."""
    return change(ctx, namespace, job_id, lambda job: jobs.cancel(job, now=ctx.now(), by=by))


def retry(ctx: Context, namespace: str, job_id: str, *, by: str) -> Job:
    """A new attempt of an ended job. Its unique key and mutex are taken anew: 409 while another live job has them, or,
    where it waits for its mutex, a place at the end of the line."""
    return change(
        ctx,
        namespace,
        job_id,
        lambda job: jobs.retry(job, now=ctx.now(), by=by),
        claims=lambda job: claims_for_retry(ctx, job),
    )


def delete(ctx: Context, namespace: str, job_id: str, *, by: str) -> None:
    """Leave a tombstone in the place of an ended job; its other rows are removed by whoever hears of the tombstone."""
    change(ctx, namespace, job_id, lambda job: jobs.delete(job, now=ctx.now(), by=by))


def body_text(body: JsonValue, name: str) -> str:
    """A payload or result as the text that is stored. Raises PayloadTooLarge, naming it."""
    text = dumps(body)
    if len(text.encode()) > MAX_BODY_BYTES:
        raise PayloadTooLarge(f"/{name} takes at most {MAX_BODY_BYTES} bytes as JSON: upload what is larger")
    return text


def change(
    ctx: Context,
    namespace: str,
    job_id: str,
    decide: Callable[[Job], Job],
    *,
    claims: Callable[[Job], list[HoldClaim]] | None = None,
    known: Job | None = None,
) -> Job:
    """Store what is decided of the job as it is now; decided anew, whenever somebody else was first. `known` is the job
    as it was read a moment ago, which spares reading it again."""
    for attempt in range(ATTEMPTS):
        before = known if known is not None and attempt == 0 else find_job(ctx, namespace, job_id)
        after = decide(before)
        try:
            after, mutex = admit(ctx, before, after)
            ctx.jobs.save(before, after, (*(claims(before) if claims else ()), *mutex))
        except StoreConflict:
            ctx.sleep(0.01 * attempt)
            continue
        return after
    raise StoreConflict(f"Job {job_id} is being changed by too many at once: try again")
