"""Apply transition plans: skip and release the waiting jobs of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from vigil_core.domain.errors import JobCreationFailed, JobNotFound
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.jobs.trigger_rules import Verdict
from vigil_core.domain.workflows.graph import block_of, indexes_in_block
from vigil_core.domain.workflows.planning import TransitionPlan, plan_blocks, plan_transitions
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.domain.workflows.run_state import RunState, record_of
from vigil_core.runtime.failures import contain
from vigil_core.services.context import ChangesRuns, UsesDependencies, UsesExpressions, UsesMessageQueues, UsesThreads
from vigil_core.services.expressions import ExpressionsDeferred
from vigil_core.services.jobs.dependencies import apply_condition
from vigil_core.services.jobs.transitions import change
from vigil_core.services.jobs.unprocessable import fail_unprocessable
from vigil_core.services.locks import locks_for_release
from vigil_core.services.messages import RunApply
from vigil_core.services.verdict_log import log_verdicts
from vigil_core.services.workflows.blocks import enqueue_blocks
from vigil_core.services.workflows.commands import job_id_at, load_run_state
from vigil_core.services.workflows.node_states import finish_if_drained, record_failures, record_states
from vigil_core.services.workflows.parking import try_acquire_slot
from vigil_core.store.jobs.job_rows import PRIORITY_RANKS


class ApplyPlanContext(ChangesRuns, UsesDependencies, UsesMessageQueues, UsesExpressions, UsesThreads, Protocol):
    """The run and job stores, the dependencies' results, the queue of `fan_out`, and threads."""


MAX_INLINE_JOBS = 200
"""The number of transitions that the matcher applies at once. `fan_out` applies more, to keep the stream fast."""
BLOCKS_PER_MESSAGE = 16
"""Blocks in one `RunApply` message. Each message plans the whole graph, so one block per message would be wasteful."""
ACTOR = "matcher"


def apply_transitions(ctx: ApplyPlanContext, run: WorkflowRun, run_state: RunState, indexes: Iterable[int]) -> None:
    """Plan and apply the transitions of these jobs, and those that follow from their skips."""
    apply_plan(ctx, run, run_state, plan_transitions(run_state, indexes))


def apply_plan(ctx: ApplyPlanContext, run: WorkflowRun, run_state: RunState, plan: TransitionPlan) -> None:
    """Apply a plan, then plan the successors of the skipped jobs from the recorded states, until nothing follows.

    1. Every transition is a conditional write: a job that no longer waits does not change. A repeated or concurrent
       application of the same plan has no further effect.
    2. If the process crashes, the change that led here is delivered again. The new plan contains the transitions that
       are missing, because the recorded skips are planned from once more (`TransitionPlan.already_skipped`).
    3. A plan of more than `MAX_INLINE_JOBS` transitions goes to `fan_out`, and so does a plan whose conditions need
       more CPU time than the batch has for the namespace. The messages plan once more, from the states recorded then.
    """
    decided: set[int] = set()
    while not plan.is_empty:
        decided |= plan.decided_indexes
        if len(plan.decided_indexes) > MAX_INLINE_JOBS:
            blocks = {block_of(index) for index in decided}
            enqueue_blocks(ctx, run, RunApply, blocks, per_message=BLOCKS_PER_MESSAGE)
            return
        try:
            run, run_state = _apply_once(ctx, run, run_state, plan)
        except ExpressionsDeferred:
            enqueue_blocks(ctx, run, RunApply, {block_of(index) for index in decided}, per_message=BLOCKS_PER_MESSAGE)
            return
        plan = plan_transitions(run_state, _undecided_successors(run_state, plan, decided))


def apply_transitions_bulk(ctx: ApplyPlanContext, message: RunApply) -> None:
    """Apply the transitions of the jobs in some blocks, and finish the run if it is drained.

    The whole run is planned, because a skip can reach any block.

    1. Messages of the same run are processed in parallel. Each applies the transitions of its own blocks only.
    2. If the process crashes, the message is delivered again and plans from the states recorded by then.
    """
    run = ctx.runs.find(message.namespace, message.workflow_id)
    if run is None or not run.accepts_transitions:
        return
    run_state = load_run_state(ctx, run, complete=True)
    indexes = {index for block in message.blocks for index in indexes_in_block(block, run.total)}
    plan, decided = plan_blocks(run_state, indexes)
    run, run_state = _apply_once(ctx, run, run_state, plan)
    apply_transitions(ctx, run, run_state, _undecided_successors(run_state, plan, decided))
    finish_if_drained(ctx, run, load_run_state(ctx, run), message.blocks[:1])


def _undecided_successors(run_state: RunState, plan: TransitionPlan, decided: Iterable[int]) -> list[int]:
    """Return the successors of the skipped jobs without a transition in an earlier plan."""
    decided_indexes = frozenset(decided)
    return [index for index in run_state.graph.successors(plan.skips) if index not in decided_indexes]


def _apply_once(
    ctx: ApplyPlanContext, run: WorkflowRun, run_state: RunState, plan: TransitionPlan
) -> tuple[WorkflowRun, RunState]:
    """Apply one plan: skip, record the skips, release, and propagate the skips.

    1. Skips are recorded before any job is released, because a released job may read the state of a skipped one.
    2. The stream does not lead back here for a skip by the run, so its effects are applied at once.
    3. A release whose condition is false, and a release that fails, is delivered by the stream like any other end.

    Returns:
        The run, and its state with the recorded skips loaded.
    """
    jobs_by_index = _find_jobs(ctx, run, [*plan.skips, *plan.releases])
    skipped = _apply_skips(ctx, run, plan, jobs_by_index)
    record_states(ctx, run, run_state, {job.workflow.graph_index: record_of(job) for job in skipped})
    released = _apply_releases(ctx, run, plan, jobs_by_index)
    log_verdicts(
        [
            job
            for job in (*skipped, *released)
            if jobs_by_index[job.workflow.graph_index].can_be_skipped and not job.can_be_skipped
        ]
    )
    return _propagate_skips(ctx, run, plan)


def _find_jobs(ctx: ApplyPlanContext, run: WorkflowRun, indexes: Iterable[int]) -> dict[int, Job]:
    ids_by_index = {index: job_id_at(ctx, run, index) for index in indexes}
    jobs_by_id = ctx.jobs.find_many(run.namespace, ids_by_index.values())
    return {index: jobs_by_id[job_id] for index, job_id in ids_by_index.items() if job_id in jobs_by_id}


def _apply_skips(
    ctx: ApplyPlanContext, run: WorkflowRun, plan: TransitionPlan, jobs_by_index: Mapping[int, Job]
) -> list[Job]:
    indexes = [index for index in plan.skips if index in jobs_by_index]
    skipped = ctx.in_parallel(
        lambda index: _apply_verdict(ctx, run, jobs_by_index[index], plan.skips[index], is_satisfied=False), indexes
    )
    return [job for job in skipped if job is not None]


def _apply_releases(
    ctx: ApplyPlanContext, run: WorkflowRun, plan: TransitionPlan, jobs_by_index: Mapping[int, Job]
) -> list[Job]:
    """Release jobs in order of priority, because there may not be a slot for all of them.

    Jobs with the same mutex are released one after another, so that they enter its queue in the order of the graph.
    """
    jobs_by_rank: dict[int, dict[str, list[int]]] = {}
    for index in sorted(jobs_by_index.keys() & plan.releases.keys()):
        job = jobs_by_index[index]
        group = f"#{index}" if job.mutex.key is None else f"mutex {job.mutex.key}"
        jobs_by_rank.setdefault(PRIORITY_RANKS[job.priority], {}).setdefault(group, []).append(index)

    def release(indexes: Sequence[int]) -> list[Job | None]:
        return [
            _apply_verdict(ctx, run, jobs_by_index[index], plan.releases[index], is_satisfied=True) for index in indexes
        ]

    released: list[Job | None] = []
    for rank in sorted(jobs_by_rank):
        for group_jobs in ctx.in_parallel(release, jobs_by_rank[rank].values()):
            released += group_jobs
    return [job for job in released if job is not None]


def _propagate_skips(ctx: ApplyPlanContext, run: WorkflowRun, plan: TransitionPlan) -> tuple[WorkflowRun, RunState]:
    """Record the failures of races that no job can win any more, and finish the run if it is drained.

    Joins that were skipped before are included: if the process that skipped a join crashed before it recorded the
    failure of the race, this call records it.
    """
    run_state = load_run_state(ctx, run)
    changed_blocks = {block_of(index) for index in plan.skips}
    for block in changed_blocks:
        run_state.block(block)  # Loads the skips, which the trigger rules of their successors then see.
    for join_index in (
        index for index in (*plan.skips, *plan.already_skipped) if run_state.graph.nodes[index].cancel_losers
    ):
        run = record_failures(ctx, run, run_state, run_state.graph.nodes[join_index].depends_on)
    finish_if_drained(ctx, run, run_state, changed_blocks)
    return run, run_state


def _apply_verdict(
    ctx: ApplyPlanContext, run: WorkflowRun, job: Job, verdict: Verdict, *, is_satisfied: bool
) -> Job | None:
    """Apply a verdict to a job. If its data makes that impossible, fail the job, so that its run continues."""
    return contain(
        lambda: _decide_job(ctx, run, job, verdict, is_satisfied=is_satisfied),
        lambda error: fail_unprocessable(ctx, job.namespace, job.job_id, error),
    )


def _decide_job(
    ctx: ApplyPlanContext, run: WorkflowRun, job: Job, verdict: Verdict, *, is_satisfied: bool
) -> Job | None:
    """Apply a verdict to a job that waits for its run, or skip a job before its start time.

    1. The condition is evaluated, then the slot is acquired or the parked row is stored, then the job changes.
    2. If the process crashes before the job changes, the job still waits and the next plan releases it. It acquires
       the same slot or stores the same parked row once more.
    3. A job whose attempt has changed since it was read is left alone: the verdict belongs to an earlier generation.

    Returns:
        The job after the change, or None if it was deleted.
    """

    def may_change(current: Job) -> bool:
        return current.awaits_run if is_satisfied else current.can_be_skipped

    if not may_change(job):
        return job
    passed: bool | JobError = is_satisfied
    if is_satisfied and job.dependencies.condition:
        passed, verdict = apply_condition(ctx, job, verdict)
    parked = passed is True and not try_acquire_slot(ctx, run, job)
    if parked:
        ctx.runs.park(run.namespace, run.workflow_id, job.priority, job.workflow.graph_index)
    starts = passed is True and not parked

    def is_unchanged(current: Job) -> bool:
        return may_change(current) and current.attempt == job.attempt

    def decide(current: Job) -> Job:
        if not is_unchanged(current):
            return current
        return transitions.apply_verdict(
            current,
            verdict,
            is_satisfied=is_satisfied,
            condition_result=passed,
            parked=parked,
            now=ctx.now(),
            actor=ACTOR,
        )

    def fail_start(current: Job, error: JobError) -> Job:
        if not is_unchanged(current):
            return current
        return transitions.fail_for_good(current, error, now=ctx.now(), actor=ACTOR, verdict=verdict)

    with suppress(JobNotFound):
        try:
            return change(
                ctx,
                job.namespace,
                job.job_id,
                decide,
                lock_acquisitions=lambda current: (
                    locks_for_release(ctx, current) if starts and current.awaits_run else []
                ),
                cached=job,
            )
        except JobCreationFailed as error:
            job_error = JobError(code=error.code, message=error.message)
            return change(ctx, job.namespace, job.job_id, lambda current: fail_start(current, job_error))
    return None
