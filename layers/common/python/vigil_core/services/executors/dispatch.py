"""Dispatch jobs whose executor Vigil invokes: claim the job as a worker does, then invoke its target.

If the process crashes between the claim and the invocation, the lease expires without a heartbeat and the sweeper
returns the job to its queue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Literal, Protocol, TypeAlias

from vigil_core.domain.errors import StoreConflict
from vigil_core.domain.exact_json import JsonValue, ascii_size, dumps, loads_stored
from vigil_core.domain.executors.targets import ExecutorBusy, ExecutorRefused, LambdaTarget, is_own_function
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.dependency_results import ResultUnreadable, dependencies_url
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.jobs.lease import Lease
from vigil_core.domain.timestamps import to_text
from vigil_core.runtime.logging import logger
from vigil_core.runtime.tracing import ids_of, traced
from vigil_core.services.context import DispatchesJobs, UsesMessageQueues
from vigil_core.services.executors.calls import acquire_call, call_owner, send_dispatch_waiting
from vigil_core.services.jobs.dependency_results import (
    JOBS_PER_READ,
    dependency_ids,
    dependency_results_json,
    load_all_results,
    load_inline_results,
    results_by_name_text,
)
from vigil_core.services.jobs.transitions import LOST_JOB_ERRORS, complete, fail, snooze
from vigil_core.services.optimistic import retry_on_conflict
from vigil_core.services.workflows.commands import may_start


class DispatchContext(DispatchesJobs, UsesMessageQueues, Protocol):
    """The executors, the message queues, and the collaborators of a change of a job and its run."""


HANDOVER_LEASE_S = 90
"""Time in which the HTTP executor must start: longer than the maximum age of an asynchronous event."""
MAX_EVENT_BYTES = 240 * 1024
"""Maximum size of the event, below the limit of asynchronous invocations. The function fetches a larger payload.
https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html"""
MAX_INLINE_JOIN = 25
"""The number of dependencies up to which the matcher completes a join: one read of their results."""
BUSY_DELAY = timedelta(seconds=60)
WAITING_POLL_S = 0.5
WAITING_TIME = timedelta(seconds=10)
"""The time in which `fan_out` waits for a free slot. A longer wait would occupy its lane: the sweep continues."""


DispatchOutcome: TypeAlias = Literal["dispatched", "deferred", "skipped"]
"""`deferred` if the namespace has no slot for the call."""
WAITING_JOBS_PER_STEP = 16


def is_large_join(job: Job) -> bool:
    """Return whether a join has so many dependencies that the reaction to the stream must not read their results."""
    names = job.workflow.upstream_names
    return job.executor == "join" and (job.workflow.upstream_truncated or len(names) > MAX_INLINE_JOIN)


def dispatch(ctx: DispatchContext, namespace: str, job_id: str, *, actor: str) -> bool:
    """Dispatch a job if it is still undispatched, and return True if this call dispatched it.

    The sweep dispatches the jobs of a paused queue after the queue is resumed, and those of a suspended namespace.
    """
    return _dispatch(ctx, namespace, job_id, actor) == "dispatched"


def dispatch_waiting(
    ctx: DispatchContext, namespace: str, queue: str, *, has_time_left: Callable[[], bool], actor: str
) -> None:
    """Dispatch the jobs of a queue while slots of executor calls become free.

    If no slot becomes free for some seconds, the sweep of the queue continues the work.
    """
    until = ctx.now() + WAITING_TIME
    while True:
        outcomes: set[DispatchOutcome] = {"deferred"}
        if not ctx.work_slots.is_known_as_full(namespace, queue, ctx.now()):
            job_ids = ctx.job_queues.to_dispatch(namespace, queue, WAITING_JOBS_PER_STEP)
            outcomes = set(ctx.in_parallel(lambda job_id: _dispatch(ctx, namespace, job_id, actor), job_ids))
        if "dispatched" in outcomes:
            until = ctx.now() + WAITING_TIME
        elif "deferred" not in outcomes or ctx.now() >= until:
            return
        if not has_time_left():
            send_dispatch_waiting(ctx, namespace, queue)
            return
        if "deferred" in outcomes:
            ctx.sleep(WAITING_POLL_S)


def _dispatch(ctx: DispatchContext, namespace: str, job_id: str, actor: str) -> DispatchOutcome:
    if not ctx.limits.namespaces.is_active(namespace):
        return "skipped"
    with suppress(StoreConflict):
        return retry_on_conflict(
            lambda: _dispatch_once(ctx, namespace, job_id, actor), sleep=ctx.sleep, subject=f"job {job_id}"
        )
    return "skipped"


def _dispatch_once(ctx: DispatchContext, namespace: str, job_id: str, actor: str) -> DispatchOutcome:
    """Try to dispatch a job once.

    Raises:
        StoreConflict: A concurrent change won.
    """
    job = ctx.jobs.find(namespace, job_id)
    if job is None or job.deleted or not job.dispatchable:
        return "skipped"
    if ctx.job_queues.is_paused(namespace, job.queue) or not may_start(ctx, job):
        return "skipped"
    lease_token = ctx.new_id()
    calls_target = job.executor in ("http", "lambda") and job.target_ref is not None
    if calls_target and not acquire_call(ctx, job, lease_token):
        return "deferred"
    with traced({"action": "dispatch", **ids_of(job), "job": job.name, "executor": job.executor}) as log_fields:
        try:
            outcome = _start_job(ctx, job, lease_token, actor)
        except Exception:
            ctx.work_slots.release_call(namespace, owner=call_owner(lease_token))
            raise
        logger.info(outcome, extra=log_fields)
    return "dispatched"


def _start_job(ctx: DispatchContext, job: Job, lease_token: str, actor: str) -> str:
    """Claim the job and invoke its target. Return the outcome as a word for the log."""
    if job.executor == "join" or job.target_ref is None:
        _join(ctx, job, actor)
        return "joined"
    namespace, job_id = job.namespace, job.job_id
    target = (
        LambdaTarget.from_document(ctx.job_types.target(namespace, job.target_ref))
        if job.executor == "lambda"
        else None
    )
    now, lease_s = ctx.now(), target.lease_s if target else HANDOVER_LEASE_S
    lease = Lease(
        token=lease_token,
        worker=f"executor {job.executor}",
        duration_s=lease_s,
        expires_at=now + timedelta(seconds=lease_s),
    )
    running = transitions.claim(job, lease, now=now, actor=actor)
    ctx.jobs.save(job, running)
    try:
        if target is None:
            ctx.executors.call_http(dumps({**ids_of(job), "lease_token": lease.token}))
        else:
            _refuse_own_function(ctx, target)
            ctx.executors.invoke_lambda(target.function, _lambda_event(ctx, running, lease))
    except ExecutorRefused as refusal:
        error = JobError(code=refusal.code, message=refusal.message)
        with suppress(*LOST_JOB_ERRORS):
            fail(ctx, namespace, job_id, error, actor=actor, retryable=False, lease_token=lease.token)
        return "refused"
    except ExecutorBusy:
        # The invocation may have succeeded all the same. The executor then finds that the lease has been released.
        with suppress(*LOST_JOB_ERRORS):
            snooze(ctx, namespace, job_id, ctx.now() + BUSY_DELAY, actor=actor, lease_token=lease.token)
        return "snoozed"
    return "dispatched"


def _refuse_own_function(ctx: DispatchContext, target: LambdaTarget) -> None:
    """Refuse a target whose job type was defined before the check, or by a stack of another name.

    Raises:
        ExecutorRefused: The target is a function of Vigil.
    """
    if is_own_function(target.function, ctx.stack_name):
        raise ExecutorRefused(f"The function {target.function} belongs to Vigil: no job invokes it")


def _join(ctx: DispatchContext, job: Job, actor: str) -> None:
    """Complete a join with the results of its dependencies; a race with the result of its winner.

    The winner's result is copied without being read. If the results of any other join cannot all be read, it fails.
    """
    ids_by_name = dependency_ids(ctx, job)
    with suppress(*LOST_JOB_ERRORS):
        try:
            if job.dependencies.trigger_rule == "one_success":
                winner = _winner(ctx, job, list(ids_by_name.values()))
                complete(ctx, job.namespace, job.job_id, actor=actor, result_source=winner)
            else:
                text = results_by_name_text(load_all_results(ctx, job.namespace, ids_by_name))
                complete(ctx, job.namespace, job.job_id, actor=actor, result_text=text)
        except ResultUnreadable as error:
            job_error = JobError(code=error.code, message=error.message)
            fail(ctx, job.namespace, job.job_id, job_error, actor=actor, retryable=False)


def _winner(ctx: DispatchContext, job: Job, job_ids: Sequence[str]) -> Job | None:
    """Return the first completed dependency in the job's order: a cancelled loser may have completed all the same."""
    for start in range(0, len(job_ids), JOBS_PER_READ):
        part = job_ids[start : start + JOBS_PER_READ]
        jobs_by_id = ctx.jobs.find_many(job.namespace, part)
        for job_id in part:
            if job_id in jobs_by_id and jobs_by_id[job_id].status == "completed":
                return jobs_by_id[job_id]
    return None


def _lambda_event(ctx: DispatchContext, job: Job, lease: Lease) -> str:
    """Create the event for the function of a job.

    If the payload does not fit, it is null and `payload_omitted` is true. If the results of the dependencies do not fit
    either, they are null and `truncated` is true.
    """

    def fits(event: object) -> bool:
        return ascii_size(event) <= MAX_EVENT_BYTES

    bodies = ctx.jobs.payloads(job, max_bytes=MAX_EVENT_BYTES)
    inline = load_inline_results(ctx, job)
    dependencies = dependency_results_json(inline.results)
    event: dict[str, JsonValue] = {
        "job_id": job.job_id,
        "namespace": job.namespace,
        "job_type": job.job_type,
        "name": job.name,
        "queue": job.queue,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "lease_token": lease.token,
        "lease": lease.duration_s,
        "lease_expires_at": to_text(lease.expires_at),
        "fields": job.fields,
        "tags": list(job.tags),
        "trace_id": job.trace_id,
        "correlation_id": job.correlation_id,
        "dependencies": dependencies,
        "dependencies_truncated": inline.truncated,
        "dependencies_url": dependencies_url(job.job_id) if inline.truncated else None,
        "payload_omitted": bodies.payload_url is not None,
        "payload": None if bodies.payload is None else loads_stored(bodies.payload),
    }
    if fits(event):
        return dumps(event)
    event |= {"payload_omitted": True, "payload": None}
    if not fits(event):
        event["dependencies"] = {
            name: {**result, "result": None, "truncated": True} for name, result in dependencies.items()
        }
        event |= {"dependencies_truncated": True, "dependencies_url": dependencies_url(job.job_id)}
    return dumps(event)
