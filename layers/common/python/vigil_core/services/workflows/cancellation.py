"""Cancel jobs of a run: the losers of a race, and the remaining jobs of a run that ends early."""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.workflows.graph import group_by_block, indexes_in_block
from vigil_core.domain.workflows.planning import losers
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.domain.workflows.run_state import RunState, record_of, with_decision
from vigil_core.services.context import ChangesRuns, UsesThreads
from vigil_core.services.jobs.transitions import LOST_JOB_ERRORS, cancel, change
from vigil_core.services.messages import RunCancel
from vigil_core.services.workflows.commands import job_id_at, load_run_state
from vigil_core.services.workflows.node_states import finish_if_drained, record_states


class CancellationContext(ChangesRuns, UsesThreads, Protocol):
    """The run store, the job store and the threads that cancel jobs in parallel."""


def cancel_losers(ctx: CancellationContext, run: WorkflowRun, run_state: RunState, join_index: int) -> None:
    """Cancel the jobs that are still open in a race that is over.

    1. Each loser is recorded as one before it is cancelled. Its end can therefore never count as a failure of the run.
    2. If the process crashes between the two writes, the repeated change of the join cancels the remaining losers.
    """
    loser_indexes = losers(run_state, join_index)
    for block, indexes in group_by_block(loser_indexes).items():
        run_state.put_block(block, ctx.runs.record_race_losers(run.namespace, run.workflow_id, block, indexes))

    def cancel_loser(index: int) -> None:
        with suppress(*LOST_JOB_ERRORS):
            cancel(ctx, run.namespace, job_id_at(ctx, run, index), actor="matcher")

    ctx.in_parallel(cancel_loser, loser_indexes)


def cancel_block(ctx: CancellationContext, message: RunCancel) -> None:
    """Cancel the open jobs of one block of a run that ends early.

    1. Jobs are cancelled first, then their states are recorded. If the process crashes in between, the stream delivers
       the changes of the jobs, and the matcher records the states.
    2. A failure that awaits a decision is recorded as a plain failure, because no decision follows any more.
    3. Each step can be repeated: an ended job is not cancelled, and a record never replaces a later one.
    """
    run = ctx.runs.find(message.namespace, message.workflow_id)
    if run is None or not run.cancelling or run.generation != message.generation:
        return
    indexes_by_id = {job_id_at(ctx, run, index): index for index in indexes_in_block(message.block, run.total)}
    cancelled_jobs = ctx.in_parallel(
        lambda job: _cancel_open(ctx, job), ctx.jobs.find_many(run.namespace, indexes_by_id).values()
    )
    run_state = load_run_state(ctx, run)
    records = {indexes_by_id[job.job_id]: record_of(job) for job in cancelled_jobs}
    for index, record in records.items():
        if run_state.state_of(index) == "awaiting_decision":
            records[index] = with_decision(record, record.state)
    record_states(ctx, run, run_state, records)
    finish_if_drained(ctx, run, run_state, [message.block])


def _cancel_open(ctx: CancellationContext, job: Job) -> Job:
    """Cancel a job unless it has ended, and return its current version."""

    def decide(current: Job) -> Job:
        return transitions.cancel(current, now=ctx.now(), actor="supervisor")

    if not job.ended:
        with suppress(*LOST_JOB_ERRORS):
            return change(ctx, job.namespace, job.job_id, decide, cached=job)
    return ctx.jobs.find(job.namespace, job.job_id) or job
