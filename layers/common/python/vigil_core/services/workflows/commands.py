"""Commands on workflow runs: pause, resume, cancel, retry, decide; and the start gate of a run's jobs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Protocol

from vigil_core.domain.errors import (
    InvalidTransition,
    JobNotFound,
    ValidationFailed,
    WorkflowNotFound,
)
from vigil_core.domain.ids import is_uuid7, workflow_job_id
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.workflows import run as workflows
from vigil_core.domain.workflows.graph import block_of, group_by_block
from vigil_core.domain.workflows.planning import nodes_to_rerun
from vigil_core.domain.workflows.run import DecisionAction, WorkflowRun
from vigil_core.domain.workflows.run_state import RunState, record_of
from vigil_core.runtime.logging import logger
from vigil_core.services.context import ChangesRuns, UsesLimits
from vigil_core.services.jobs.transitions import change
from vigil_core.services.jobs.unprocessable import processing_error
from vigil_core.services.long_poll import SlotRequest, long_poll
from vigil_core.services.messages import SupervisorInput
from vigil_core.services.optimistic import update_with_retry
from vigil_core.services.verdict_log import log_transition
from vigil_core.store import keys
from vigil_core.store.workflows.run_rows import OperatorDecision


class RunCommandsContext(ChangesRuns, Protocol):
    """The run and job stores, and the supervisors."""


class LongPollRunContext(RunCommandsContext, UsesLimits, Protocol):
    """The collaborators of the long poll on a run."""


MAX_NAMED_JOBS = 5
"""The number of jobs that an error names."""


def find_run(ctx: RunCommandsContext, namespace: str, workflow_id: str) -> WorkflowRun:
    """Return the current version of a run.

    Raises:
        WorkflowNotFound: The run does not exist, or the text is not an id.
    """
    run = ctx.runs.find(namespace, workflow_id) if is_uuid7(workflow_id) else None
    if run is None:
        raise WorkflowNotFound(workflow_id)
    return run


def change_run(
    ctx: RunCommandsContext, namespace: str, workflow_id: str, decide: Callable[[WorkflowRun], WorkflowRun]
) -> WorkflowRun:
    """Change a run with optimistic concurrency, and return the version that is stored."""
    return update_with_retry(
        lambda: find_run(ctx, namespace, workflow_id),
        decide,
        ctx.runs.save,
        sleep=ctx.sleep,
        subject=f"workflow {workflow_id}",
    )


def long_poll_run(
    ctx: LongPollRunContext,
    run: WorkflowRun,
    *,
    is_done: Callable[[WorkflowRun], bool],
    until: datetime,
    slot: SlotRequest | None = None,
) -> WorkflowRun:
    """Return the run as soon as `is_done` accepts it, or its current version at `until`."""

    def poll() -> WorkflowRun:
        return find_run(ctx, run.namespace, run.workflow_id)

    return long_poll(ctx, poll, is_done=is_done, until=until, latest=run, slot=slot)


def job_id_at(ctx: RunCommandsContext, run: WorkflowRun, index: int) -> str:
    """Return the id of the job with this index."""
    return workflow_job_id(run.workflow_id, ctx.runs.graph(run.namespace, run.workflow_id).nodes[index].name)


def load_run_state(ctx: RunCommandsContext, run: WorkflowRun, *, complete: bool = False) -> RunState:
    """Return the state of a run. Its blocks are read when needed, or all at once if `complete`."""
    graph = ctx.runs.graph(run.namespace, run.workflow_id)
    run_state = RunState(
        graph=graph, load_block=lambda block: ctx.runs.state_block(run.namespace, run.workflow_id, block)
    )
    if complete:
        records_by_block, _ = ctx.runs.state_blocks(run)
        for block, records in records_by_block.items():
            run_state.put_block(block, records)
    return run_state


def start_supervisor(ctx: RunCommandsContext, run: WorkflowRun) -> None:
    """Start the supervisor of a run whose jobs all exist. If an execution of that name exists, nothing happens."""
    event = SupervisorInput(
        pk=keys.run(run.namespace, run.workflow_id).pk,
        namespace=run.namespace,
        workflow_id=run.workflow_id,
        generation=str(run.generation),
        supervisor=str(run.supervisor),
        supervisor_id=run.supervisor_id,
        progress={"loops": 0},
    )
    ctx.supervisors.start(run.execution_name, event.to_json())


def may_start(ctx: RunCommandsContext, job: Job) -> bool:
    """Return whether the run of a ready job allows it to start, and park the job if not.

    Only a paused run parks its jobs. A run that terminates cancels them.
    """
    if job.workflow.workflow_id is None or job.workflow.index is None:
        return True
    run = ctx.runs.find(job.namespace, job.workflow.workflow_id)
    if run is None or run.accepts_starts:
        return True
    if run.status == "paused" and not run.terminating:
        park(ctx, run, job)
    return False


def park(ctx: RunCommandsContext, run: WorkflowRun, job: Job) -> None:
    """Park a pending job.

    1. The parked row is stored first, then the job changes.
    2. A release that runs after the first write finds the row. A release that ran before it is repeated: the change of
       the job leads the matcher to the run, which releases parked jobs once more.
    3. If the process crashes between the writes, the job is still pending, and the next claim or dispatch parks it.
    """
    ctx.runs.park(run.namespace, run.workflow_id, job.priority, job.workflow.graph_index)

    def decide(current: Job) -> Job:
        return transitions.park(current, now=ctx.now(), actor="supervisor") if current.status == "pending" else current

    with suppress(JobNotFound, InvalidTransition):
        parked = change(ctx, job.namespace, job.job_id, decide)
        log_transition("parked", [parked] if parked.workflow.parked else [])


def require_may_start(ctx: RunCommandsContext, job: Job) -> None:
    """Check that the run of a pending job allows it to start.

    Raises:
        InvalidTransition: The run is paused, or it ends.
    """
    if job.status == "pending" and not may_start(ctx, job):
        raise InvalidTransition(
            f"Cannot start job {job.job_id}: its workflow {job.workflow.workflow_id} starts no jobs now"
        )


def request_cancel(
    ctx: RunCommandsContext, namespace: str, workflow_id: str, *, actor: str, reason: str | None = None
) -> WorkflowRun:
    """Request the cancellation of a run. Its supervisor cancels the open jobs."""
    return change_run(
        ctx,
        namespace,
        workflow_id,
        lambda run: workflows.request_cancel(run, now=ctx.now(), actor=actor, reason=reason),
    )


def abort_unprocessable(ctx: RunCommandsContext, namespace: str, workflow_id: str, error: Exception) -> None:
    """Let a run fail that Vigil cannot process, with the name of the error as the reason. Can be repeated.

    Its supervisor cancels the open jobs and finalises it. A run that is gone, ended or terminating is unchanged.
    """
    run_error = processing_error("run", error)
    fields = {"action": "abort_unprocessable", "namespace": namespace, "workflow_id": workflow_id}
    logger.error("The run fails, because it cannot be processed", extra=fields, exc_info=error)
    with suppress(WorkflowNotFound):
        change_run(ctx, namespace, workflow_id, lambda run: workflows.abort(run, run_error, now=ctx.now()))


def pause(ctx: RunCommandsContext, namespace: str, workflow_id: str, *, actor: str) -> WorkflowRun:
    """Pause a run: no further job starts."""
    return change_run(ctx, namespace, workflow_id, lambda run: workflows.pause(run, now=ctx.now(), actor=actor))


def resume(ctx: RunCommandsContext, namespace: str, workflow_id: str, *, actor: str) -> WorkflowRun:
    """Resume a paused run."""

    def decide(run: WorkflowRun) -> WorkflowRun:
        return workflows.resume(run, awaiting_decision=count_awaiting_decision(ctx, run), now=ctx.now(), actor=actor)

    return change_run(ctx, namespace, workflow_id, decide)


def retry(
    ctx: RunCommandsContext, namespace: str, workflow_id: str, *, from_job: str | None, actor: str
) -> WorkflowRun:
    """Retry an ended run: its failed jobs and the jobs downstream of them run again.

    With `from_job`, that job and all jobs downstream of it run again too.

    Raises:
        ValidationFailed: The run has no job of this name.
        InvalidTransition: The run is open, no job of it has failed, or a job that lost a race still runs.
    """
    run = find_run(ctx, namespace, workflow_id)
    run_state = load_run_state(ctx, run, complete=True)
    if run.ended:
        _complete_races(ctx, run, run_state)
    rerun_indexes = nodes_to_rerun(run_state, None if from_job is None else _index_of(run_state, from_job, "/from"))

    def decide(current: WorkflowRun) -> WorkflowRun:
        return workflows.retry(current, frozenset(rerun_indexes), now=ctx.now(), actor=actor, start=from_job)

    retried = change_run(ctx, namespace, workflow_id, decide)
    ctx.runs.set_side_row_ttl(retried)
    return retried


def _complete_races(ctx: RunCommandsContext, run: WorkflowRun, run_state: RunState) -> None:
    """Record the ends of race losers that ended after the run, and release their slots.

    1. A loser that still runs would report into the next generation. Therefore the retry waits for its end.
    2. If the process crashes, the repeated retry does the same once more.

    Raises:
        InvalidTransition: A loser has not ended.
    """
    indexes_by_id = {
        job_id_at(ctx, run, index): index
        for index in range(run.total)
        if run_state.lost_race(index) and run_state.may_still_run(index)
    }
    jobs = list(ctx.jobs.find_many(run.namespace, indexes_by_id).values())
    running_names = sorted(str(job.name) for job in jobs if not job.ended)
    if running_names:
        raise InvalidTransition(
            f"Cannot retry workflow {run.workflow_id}: {', '.join(running_names[:MAX_NAMED_JOBS])} lost a race and "
            "has not stopped yet"
        )
    records = {indexes_by_id[job.job_id]: record_of(job) for job in jobs}
    for block, indexes in group_by_block(records).items():
        block_records = {index: records[index] for index in indexes}
        run_state.put_block(block, ctx.runs.record_states(run.namespace, run.workflow_id, block, block_records))
    if run.max_concurrency is not None and records:
        ctx.runs.release_slots(run, records)


def put_decision(
    ctx: RunCommandsContext,
    namespace: str,
    workflow_id: str,
    job: str,
    action: DecisionAction,
    *,
    decision_id: str,
    actor: str,
    comment: str | None,
) -> WorkflowRun:
    """Store an operator's decision on a failed job.

    1. The decision is put unless the failure already has one: of several operators, one succeeds.
    2. The run counts the decision as a signal.
    3. If the process crashes in between, the next decision on the job does step 2 for the stored one, also when it is
       then refused.

    Args:
        ctx: The run store.
        namespace: The namespace of the run.
        workflow_id: The run.
        job: The name of the failed job.
        action: What the operator decides.
        decision_id: The id of the decision. The same decision repeated under its id succeeds again.
        actor: The operator.
        comment: A note for the history.

    Raises:
        ValidationFailed: The run has no job of this name.
        InvalidTransition: The job or the run awaits no decision, or the failure already has one.
    """
    run = find_run(ctx, namespace, workflow_id)
    run_state = load_run_state(ctx, run)
    index = _index_of(run_state, job, "/job")
    record = run_state.block(block_of(index)).records.get(index)
    if record is None or record.state != "awaiting_decision" or run_state.lost_race(index):
        applied = ctx.runs.decision(run, index)
        if applied is not None and applied.decision_id == decision_id:
            return run
        raise InvalidTransition(f"Job {job} is {run_state.status(index)}: it awaits no decision")
    stored = ctx.runs.put_decision(
        run,
        OperatorDecision(
            decision_id=decision_id,
            index=index,
            state_version=record.state_version,
            action=action,
            actor=actor,
            at=ctx.now(),
            comment=comment,
        ),
    )
    is_ours = stored.decision_id == decision_id
    if is_ours or not run.has_pending_decisions:
        run = change_run(
            ctx,
            namespace,
            workflow_id,
            lambda current: workflows.decide(current, job, stored.action, now=ctx.now(), actor=stored.actor),
        )
    if not is_ours:
        raise InvalidTransition(f"Job {job} already has a decision: {stored.action}")
    return run


def _index_of(run_state: RunState, job: str, pointer: str) -> int:
    if job not in run_state.graph.index_of:
        raise ValidationFailed.at(pointer, "is not the name of a job of this workflow")
    return run_state.graph.index_of[job]


def count_awaiting_decision(ctx: RunCommandsContext, run: WorkflowRun) -> int:
    """Return the number of failed jobs that await a decision."""
    if run.failure_policy != "manual":
        return 0
    run_state = load_run_state(ctx, run, complete=True)
    return sum(run_state.awaits_decision(index) for index in range(run.total))
