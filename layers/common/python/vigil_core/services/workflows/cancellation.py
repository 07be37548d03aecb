"""Cancel jobs of a run: the losers of a race, and the remaining jobs of a run that ends early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.workflows.graph import group_by_block, indexes_in_block
from vigil_core.domain.workflows.planning import losers
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.domain.workflows.run_state import RunState, StateRecord, record_of, with_decision
from vigil_core.services.context import ChangesRuns, UsesThreads
from vigil_core.services.jobs.transitions import LOST_JOB_ERRORS, cancel, change
from vigil_core.services.messages import RunCancel
from vigil_core.services.optimistic import update_with_retry
from vigil_core.services.workflows.commands import job_id_at, load_run_state
from vigil_core.services.workflows.node_states import finish_if_drained, record_states
from vigil_core.store.table import ConditionFailed


class CancellationContext(ChangesRuns, UsesThreads, Protocol):
    """The run store, the job store and the threads that cancel jobs in parallel."""


def cancel_losers(ctx: CancellationContext, run: WorkflowRun, run_state: RunState, join_index: int) -> list[int]:
    """Cancel the jobs that are still open in a race that is over, and return them.

    1. Each loser is recorded as one before it is cancelled. From then on it counts as ended for the run, and its end
       can never count as a failure of the run.
    2. A job whose end is recorded first is no loser: the record of the losers is conditional on the states that were
       read.
    3. If the process crashes between the two writes, the repeated change of the join cancels the remaining losers, also
       in a run that has ended meanwhile.
    """
    for block, indexes in group_by_block(losers(run_state, join_index)).items():
        _record_losers(ctx, run, run_state, block, indexes)
    loser_indexes = losers(run_state, join_index)

    def cancel_loser(index: int) -> None:
        with suppress(*LOST_JOB_ERRORS):
            cancel(ctx, run.namespace, job_id_at(ctx, run, index), actor="matcher")

    ctx.in_parallel(cancel_loser, loser_indexes)
    return loser_indexes


def _record_losers(
    ctx: CancellationContext, run: WorkflowRun, run_state: RunState, block: int, indexes: Sequence[int]
) -> None:
    """Record the open jobs among these as race losers. If one of them ends meanwhile, read and record again."""

    def write(_: None, open_records: Mapping[int, StateRecord | None]) -> None:
        if not open_records:
            return
        try:
            recorded = ctx.runs.record_race_losers(run.namespace, run.workflow_id, block, open_records)
        except ConditionFailed:
            run_state.put_block(block, ctx.runs.state_block(run.namespace, run.workflow_id, block))
            raise
        run_state.put_block(block, recorded)

    update_with_retry(
        lambda: None,
        lambda _: {index: run_state.block(block).records.get(index) for index in indexes if run_state.is_open(index)},
        write,
        sleep=ctx.sleep,
        subject=f"the races of workflow {run.workflow_id}",
    )


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
