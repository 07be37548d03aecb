"""Create a job."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from vigil_core.domain.errors import StoreConflict
from vigil_core.domain.exact_json import JsonValue, loads
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job, NewJob
from vigil_core.services.context import ChangesJobs, UsesDependencies, UsesJobQueues, UsesListing, UsesRuns, UsesThreads
from vigil_core.services.jobs.dependencies import resolve_dependencies
from vigil_core.services.jobs.transitions import MAX_ATTEMPTS, encode_body
from vigil_core.services.jobs.uploads import require_uploaded
from vigil_core.services.locks import acquire_or_enqueue, locks_for_new_job
from vigil_core.store.table import ConditionFailed


class SubmitJobContext(ChangesJobs, UsesDependencies, UsesListing, UsesJobQueues, UsesRuns, UsesThreads, Protocol):
    """What this module uses of the outside world."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The job that now stands for the request; `existing` when its unique key already had a live one."""

    job: Job
    existing: bool
    payload: JsonValue = None
    """Of a job that was created for the request: what it got, from the request or its type."""
    payload_url: str | None = None
    """Where the payload is when it is not told."""


def submit(ctx: SubmitJobContext, namespace: str, new: NewJob, *, actor: str, resumed: bool = False) -> Submission:
    """Store a new job, payload first.

    With `resumed` the id was reserved by an earlier try of the same request: a job that already has it is the one that
    try created.

    Raises:
        MissingDependency: a job on which it is to depend does not exist.
        JobCreationFailed: the id is taken, or a live job has the mutex.
        PayloadTooLarge: the payload is too large to travel in a request.
        ValidationFailed: the fields are over their limit, or there is no such upload.
    """
    name = "payload" if new.batch_size is None else "batch"
    payload = None if new.payload is None else encode_body(new.payload, name)
    upload = None if new.payload_upload is None else require_uploaded(ctx, namespace, new.payload_upload, "payload_ref")
    fallback = None if new.fallback is None else encode_body(new.fallback, "fallback")
    for attempt in range(MAX_ATTEMPTS):
        if resumed and (earlier := find_earlier_submission(ctx, namespace, new.job_id)) is not None:
            return earlier
        dependencies = resolve_dependencies(ctx, namespace, new.depends_on)
        locks = locks_for_new_job(ctx, namespace, new)
        if locks.existing_job is not None:
            return Submission(job=locks.existing_job, existing=True)
        now = ctx.now()
        ctx.listing.mark_day(namespace, "jobs", now.date())
        ctx.job_queues.register(namespace, new.queue)
        nonce = ctx.new_id()[-12:]
        job = transitions.create(
            namespace, new, now=now, actor=actor, payload_ref=None, depends_on=dependencies.dependencies
        )
        job = ctx.jobs.put_payloads(job, nonce, payload=payload, fallback=fallback)
        if upload is not None:
            job = replace(job, payload_ref=ctx.jobs.adopt_payload(job, nonce, upload))
        try:
            job, mutex_acquisitions = acquire_or_enqueue(ctx, None, dependencies.ready_now(job))
            ctx.jobs.create(job, (*locks.acquisitions, *mutex_acquisitions))
        except ConditionFailed:
            ctx.sleep(0.01 * attempt)
            continue
        url = None if upload is None else ctx.jobs.payloads(job).payload_url
        return Submission(job=job, existing=False, payload=new.payload, payload_url=url)
    raise StoreConflict("Too many jobs want the same key at once: try again")


def find_earlier_submission(ctx: SubmitJobContext, namespace: str, job_id: str) -> Submission | None:
    """What an earlier try of the same request created: it stands, whatever became of its type since."""
    job = ctx.jobs.find(namespace, job_id)
    if job is None:
        return None
    bodies = ctx.jobs.payloads(job)
    payload = None if bodies.payload is None else loads(bodies.payload)
    return Submission(job=job, existing=False, payload=payload, payload_url=bodies.payload_url)
