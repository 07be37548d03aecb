"""Creation of jobs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

from vigil_core.domain.exact_json import JsonValue, loads_stored
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job, NewJob
from vigil_core.services.context import (
    ChangesJobs,
    UsesDependencies,
    UsesJobQueues,
    UsesLimits,
    UsesListing,
    UsesRuns,
    UsesThreads,
)
from vigil_core.services.jobs.dependencies import ResolvedDependencies, resolve_dependencies
from vigil_core.services.jobs.transitions import encode_payload
from vigil_core.services.jobs.uploads import claim_upload, require_uploaded
from vigil_core.services.limits.admission import require_queues, reserve_jobs
from vigil_core.services.locks import NewJobLocks, acquire_or_enqueue, locks_for_new_job
from vigil_core.services.optimistic import retry_on_conflict
from vigil_core.store.table import ConditionFailed


class SubmitJobContext(
    ChangesJobs, UsesDependencies, UsesListing, UsesJobQueues, UsesRuns, UsesThreads, UsesLimits, Protocol
):
    """What a change of a job uses, and the dependencies, runs, lists and queues that a new job joins."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The job that answers a request, and whether it existed before the request because of its unique key."""

    job: Job
    existing: bool
    payload: JsonValue = None
    """The payload of a created job, from the request or the job type."""
    payload_url: str | None = None
    """The address of a payload that is too large for the response."""


@dataclass(frozen=True, kw_only=True)
class _EncodedPayloads:
    payload: str | None
    fallback: str | None
    upload: str | None
    """The reference of the upload that becomes the payload."""


def submit(
    ctx: SubmitJobContext, namespace: str, new: NewJob, *, actor: str, resumed: bool = False, reserved: bool = False
) -> Submission:
    """Create a job.

    1. Read the dependencies and the locks that the job needs. An open job with the same unique key is the answer.
    2. Store the payload and the fallback.
    3. Write the first version in one transaction with its lock acquisitions.

    If the process crashes after step 2, no job exists and the stored payload expires unused. If another process
    acquires one of the locks after step 1, step 3 fails as a whole and all steps run again.

    Args:
        ctx: The collaborators.
        namespace: The namespace of the job.
        new: The request.
        actor: The API key or the function that creates the job.
        resumed: Whether an earlier try of the same request reserved the id. A job with the id is then its answer.
        reserved: Whether the caller has counted the job.

    Raises:
        LimitExceeded: The namespace has too many open jobs.
        RequestLimitExceeded: The namespace has too many queues.
        MissingDependency: A dependency does not exist.
        JobCreationFailed: The id is taken, or another open job has the mutex.
        PayloadTooLarge: The payload or fallback is over the limit of a request body.
        ValidationFailed: The fields are over their limit, or the upload does not exist.
    """
    name = "payload" if new.batch_size is None else "batch"
    payloads = _EncodedPayloads(
        payload=None if new.payload is None else encode_payload(new.payload, name),
        upload=None
        if new.payload_upload is None
        else require_uploaded(ctx, namespace, new.payload_upload, "payload_ref"),
        fallback=None if new.fallback is None else encode_payload(new.fallback, "fallback"),
    )

    def try_create() -> Submission:
        if resumed and (earlier := find_earlier_submission(ctx, namespace, new.job_id)) is not None:
            return earlier
        return _try_create(ctx, namespace, new, payloads, actor, reserved=reserved)

    return retry_on_conflict(
        try_create, sleep=ctx.sleep, subject=f"the locks of job {new.job_id}", retry_on=ConditionFailed
    )


def _try_create(
    ctx: SubmitJobContext, namespace: str, new: NewJob, payloads: _EncodedPayloads, actor: str, *, reserved: bool
) -> Submission:
    """Run the steps of `submit` once.

    Raises:
        StoreConflict: Another process acquired one of the locks first.
    """
    dependencies = resolve_dependencies(ctx, namespace, new.depends_on)
    locks = locks_for_new_job(ctx, namespace, new)
    if locks.existing_job is not None:
        return Submission(job=locks.existing_job, existing=True)
    with nullcontext() if reserved else reserve_jobs(ctx, namespace, 1 + (new.batch_size or 0)):
        return _create(ctx, namespace, new, payloads, actor, dependencies, locks)


def _create(
    ctx: SubmitJobContext,
    namespace: str,
    new: NewJob,
    payloads: _EncodedPayloads,
    actor: str,
    dependencies: ResolvedDependencies,
    locks: NewJobLocks,
) -> Submission:
    now = ctx.now()
    require_queues(ctx, namespace, [new.queue])
    ctx.listing.mark_day(namespace, "jobs", now.date())
    ctx.job_queues.register(namespace, new.queue)
    nonce = ctx.new_id()[-12:]
    job = transitions.create(
        namespace, new, now=now, actor=actor, payload_ref=None, depends_on=dependencies.dependencies
    )
    job = ctx.jobs.put_payloads(job, nonce, payload=payloads.payload, fallback=payloads.fallback)
    if payloads.upload is not None:
        claim_upload(ctx, namespace, payloads.upload, job.job_id, "payload_ref")
        job = replace(job, payload_ref=ctx.jobs.adopt_payload(job, nonce, payloads.upload))
    job, mutex_acquisitions = acquire_or_enqueue(ctx, None, dependencies.ready_now(job))
    ctx.jobs.create(job, (*locks.acquisitions, *mutex_acquisitions))
    payload_url = None if payloads.upload is None else ctx.jobs.payloads(job).payload_url
    return Submission(job=job, existing=False, payload=new.payload, payload_url=payload_url)


def find_earlier_submission(ctx: SubmitJobContext, namespace: str, job_id: str) -> Submission | None:
    """Return the job that an earlier try of the same request created, even if its job type has changed since."""
    job = ctx.jobs.find(namespace, job_id)
    if job is None:
        return None
    payloads = ctx.jobs.payloads(job)
    payload = None if payloads.payload is None else loads_stored(payloads.payload)
    return Submission(job=job, existing=False, payload=payload, payload_url=payloads.payload_url)
