"""Parked jobs and concurrency slots: ready jobs that wait because their run is paused or has no free slot."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Literal, Protocol, TypeAlias

from vigil_core.domain.errors import JobCreationFailed, JobNotFound
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.runtime.failures import contain
from vigil_core.runtime.tracing import ids_of
from vigil_core.services.context import ChangesRuns, UsesMessageQueues
from vigil_core.services.fair_shares import fan_out_group
from vigil_core.services.jobs.transitions import change
from vigil_core.services.jobs.unprocessable import fail_unprocessable
from vigil_core.services.locks import locks_for_release
from vigil_core.services.messages import RunUnpark
from vigil_core.services.ports import FanOutMessage
from vigil_core.services.verdict_log import log_transition
from vigil_core.services.workflows.commands import job_id_at, load_run_state
from vigil_core.store import keys
from vigil_core.store.jobs.job_rows import PRIORITY_RANKS


class TryAcquireSlotContext(ChangesRuns, Protocol):
    """The run store with its slots."""


class ReleaseParkedContext(ChangesRuns, UsesMessageQueues, Protocol):
    """The run store, the job store and the queue of `fan_out`."""


MAX_INLINE_RELEASES = 200
"""The number of parked jobs that the matcher releases in one go. `fan_out` releases more, to keep the stream fast."""
PARKED_BATCH = 25
ACTOR = "matcher"

ReleaseOutcome: TypeAlias = Literal["released", "unchanged", "no_slot"]


def try_acquire_slot(ctx: TryAcquireSlotContext, run: WorkflowRun, job: Job) -> bool:
    """Acquire a slot for a ready job, and return whether the job may start.

    A ready job never overtakes a parked job of higher priority.
    """
    if run.max_concurrency is None or not run.accepts_starts:
        return run.accepts_starts
    first_parked = ctx.runs.parked(run, 1)
    is_outranked = bool(first_parked) and keys.parked_rank(first_parked[0].sk) < PRIORITY_RANKS[job.priority]
    return not is_outranked and ctx.runs.acquire_slot(run, job.workflow.graph_index)


def release_parked(ctx: ReleaseParkedContext, run: WorkflowRun) -> None:
    """Release parked jobs while slots are free. `fan_out` continues if they are too many for the matcher."""
    if _release_while(ctx, run, lambda count: count < MAX_INLINE_RELEASES):
        return
    message = RunUnpark(**ids_of(run), sent_at=ctx.now().isoformat())
    ctx.message_queues.send_fan_out(
        [FanOutMessage(group=fan_out_group(run.namespace, run.workflow_id), body=message.to_json())]
    )


def release_parked_bulk(ctx: ReleaseParkedContext, message: RunUnpark, *, has_time_left: Callable[[], bool]) -> bool:
    """Release parked jobs until none can start, and return False if the time is over before."""
    run = ctx.runs.find(message.namespace, message.workflow_id)
    return run is None or _release_while(ctx, run, lambda _: has_time_left())


def _release_while(ctx: ReleaseParkedContext, run: WorkflowRun, should_continue: Callable[[int], bool]) -> bool:
    """Release parked jobs in their order, and return whether no further job can start now.

    The verdict log gets one line for all released jobs, also if an error ends the release.

    Args:
        ctx: The run store and the job store.
        run: The run whose jobs are parked.
        should_continue: Whether to release another batch after this number of jobs.
    """
    released: list[Job] = []
    try:
        return _release_batches(ctx, run, should_continue, released)
    finally:
        log_transition("unparked", released)


def _release_batches(
    ctx: ReleaseParkedContext, run: WorkflowRun, should_continue: Callable[[int], bool], released: list[Job]
) -> bool:
    handled_count = 0
    while should_continue(handled_count):
        if not (ctx.runs.find(run.namespace, run.workflow_id) or run).accepts_starts:
            return True
        batch_count = 0
        for key in ctx.runs.parked(run, PARKED_BATCH):
            outcome = _release_one(ctx, run, key, released)
            if outcome == "no_slot":
                batch_count += _release_slot_owners(ctx, run, released)
                break
            batch_count += outcome == "released"
        handled_count += batch_count
        if not batch_count:
            return True
    return False


def _release_one(ctx: ReleaseParkedContext, run: WorkflowRun, key: keys.Key, released: list[Job]) -> ReleaseOutcome:
    """Release one parked job, and append it to `released`.

    1. The slot is acquired first, then the job becomes ready, then the parked row is deleted.
    2. If the process crashes before the row is deleted, the next release finds the row. The job has its slot, and an
       acquired slot can be acquired once more, so the release completes.
    3. A job that still waits has a parked row because another process is about to park it. The change of that job is
       delivered by the stream and starts another release, so the row stays.
    """
    index = keys.parked_index(key.sk)
    job = ctx.jobs.find(run.namespace, job_id_at(ctx, run, index))
    if job is not None and job.awaits_run:
        return "unchanged"
    if job is not None and job.workflow.parked:
        if run.max_concurrency is not None and not _acquire_or_reclaim(ctx, run, index):
            return "no_slot"
        contain(
            partial(_unpark, ctx, job, released),
            partial(fail_unprocessable, ctx, job.namespace, job.job_id),
        )
    ctx.runs.unpark(key)
    return "released"


def _unpark(ctx: ReleaseParkedContext, job: Job, released: list[Job]) -> None:
    def decide(current: Job) -> Job:
        return transitions.unpark(current, now=ctx.now(), actor=ACTOR) if current.workflow.parked else current

    with suppress(JobNotFound):
        try:
            released.append(
                change(
                    ctx,
                    job.namespace,
                    job.job_id,
                    decide,
                    lock_acquisitions=lambda current: locks_for_release(ctx, current),
                )
            )
        except JobCreationFailed as error:
            _fail_parked(ctx, job, JobError(code=error.code, message=error.message))


def _fail_parked(ctx: ReleaseParkedContext, job: Job, job_error: JobError) -> None:
    """Fail a parked job that cannot acquire its mutex."""

    def decide(current: Job) -> Job:
        if not current.workflow.parked or current.dependencies.verdict is None:
            return current
        return transitions.fail_for_good(
            current, job_error, now=ctx.now(), actor=ACTOR, verdict=current.dependencies.verdict
        )

    log_transition("failed", [change(ctx, job.namespace, job.job_id, decide)])


def _release_slot_owners(ctx: ReleaseParkedContext, run: WorkflowRun, released: list[Job]) -> int:
    """Release parked jobs that already have a slot, and return their number.

    A job can be parked after it acquired a slot. Without this step, the parked jobs before it would wait forever for
    that slot.
    """
    run_state = load_run_state(ctx, run)
    waiting_ids = [
        job_id_at(ctx, run, owner) for owner in ctx.runs.slot_owners(run) if run_state.state_of(owner) == "waiting"
    ]
    parked_jobs = [job for job in ctx.jobs.find_many(run.namespace, waiting_ids).values() if job.workflow.parked]
    for job in parked_jobs:
        key = keys.parked_job(run.namespace, run.workflow_id, PRIORITY_RANKS[job.priority], job.workflow.graph_index)
        _release_one(ctx, run, key, released)
    return len(parked_jobs)


def _acquire_or_reclaim(ctx: ReleaseParkedContext, run: WorkflowRun, index: int) -> bool:
    return ctx.runs.acquire_slot(run, index) or _reclaim_leaked_slots(ctx, run, index)


def _reclaim_leaked_slots(ctx: ReleaseParkedContext, run: WorkflowRun, index: int) -> bool:
    """Release the slots of ended jobs, and try once more to acquire one.

    A slot leaks if a process acquires it for a job whose end was processed before.
    """
    run_state = load_run_state(ctx, run)
    leaked_slots = [owner for owner in ctx.runs.slot_owners(run) if not run_state.may_still_run(owner)]
    if not leaked_slots:
        return False
    ctx.runs.release_slots(run, leaked_slots)
    return ctx.runs.acquire_slot(run, index)
