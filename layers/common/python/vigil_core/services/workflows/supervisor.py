"""The actions of a run's supervisor: start, cancel the remaining jobs, apply decisions, finalise, start a successor.

The state machine `supervisor` calls these functions, one action for each of its states. Each request names the
generation of the run and the number of the supervisor, and a superseded supervisor changes nothing. Step Functions
retries a failed state, so every action can be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

from vigil_core.domain.errors import JobNotFound
from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.workflows import run as workflows
from vigil_core.domain.workflows.graph import block_numbers, block_of
from vigil_core.domain.workflows.planning import failed_nodes, is_failure
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.domain.workflows.run_state import RunState, StateRecord, record_of, with_decision
from vigil_core.services.context import ChangesRuns, UsesDependencies, UsesExpressions, UsesMessageQueues, UsesThreads
from vigil_core.services.expressions import InlineExpressions
from vigil_core.services.jobs.transitions import change
from vigil_core.services.messages import RunCancel, SupervisedRun, SupervisorRequest
from vigil_core.services.workflows.apply import apply_transitions
from vigil_core.services.workflows.blocks import enqueue_blocks
from vigil_core.services.workflows.commands import (
    change_run,
    count_awaiting_decision,
    job_id_at,
    load_run_state,
    start_supervisor,
)
from vigil_core.services.workflows.node_states import finish_if_drained, record_states
from vigil_core.services.workflows.output import store_output
from vigil_core.store.workflows.run_rows import OperatorDecision


class SupervisorContext(ChangesRuns, UsesDependencies, UsesExpressions, UsesMessageQueues, UsesThreads, Protocol):
    """The run and job stores, the dependencies' results, the queue of `fan_out`, the supervisors, and threads."""


ACTOR = "supervisor"


def supervise(ctx: SupervisorContext, event: Mapping[str, JsonValue]) -> WorkflowRun | None:
    """Perform the action that a state of the supervisor requests.

    1. The supervisor stores its token and the signals it has seen in the run's row, and waits. Signals are only ever
       added, and the matcher wakes the supervisor if it has not seen all of them. No signal is lost.
    2. A woken supervisor reads the run and selects the action from what the row says, never from the wake-up call. A
       call that arrives twice has no further effect.
    3. If the process crashes during an action, Step Functions repeats the action.
    4. If the execution itself ends too early, `on_execution_ended` or the sweeper starts a successor supervisor.

    Returns:
        The run before the action, or None if it does not exist.
    """
    request = SupervisorRequest.from_document(event)
    run = ctx.runs.find(request.namespace, request.workflow_id)
    if run is None or run.supervisor_id != request.supervisor_id:
        return run
    match request.action:
        case "start":
            start(ctx, run)
        case "cancel_remaining":
            cancel_remaining(ctx, run)
        case "apply_decisions":
            apply_decisions(ctx, run)
        case "finalise":
            finalise(ctx, run)
        case "start_successor":
            start_successor(ctx, run)
        case action:
            raise ValueError(f"State of the supervisor requests the unknown action {action!r}")
    return run


def start(ctx: SupervisorContext, run: WorkflowRun) -> None:
    """Set the run to `running`.

    1. The stream delivers this change to the matcher, which starts the roots. The supervisor starts no job itself.
    2. A run that has started before does not change, so the action can be repeated.
    """
    change_run(ctx, run.namespace, run.workflow_id, lambda current: workflows.start(current, now=ctx.now()))


def cancel_remaining(ctx: SupervisorContext, run: WorkflowRun) -> None:
    """Cancel all open jobs of the run. `fan_out` cancels them block by block.

    1. The run is marked as cancelling first. From then on no job is released or skipped, so no job opens again.
    2. If the process crashes before the messages are sent, the repeated action sends them. A block that is cancelled
       twice does not change.
    """
    run = change_run(
        ctx, run.namespace, run.workflow_id, lambda current: workflows.begin_cancelling(current, now=ctx.now())
    )
    if not run.ended:
        enqueue_blocks(ctx, run, RunCancel, block_numbers(run.total))


def apply_decisions(ctx: SupervisorContext, run: WorkflowRun) -> None:
    """Apply all decisions that operators have made so far, then resume the run unless more decisions are open.

    1. Each decision names the state version of the job that failed. A decision that was applied before, and one about
       an earlier attempt, no longer matches that version and is passed over.
    2. Decisions are applied first, then the successors of ignored failures are planned from the states as recorded by
       then, and the run itself changes last.
    3. If the process crashes before the run changes, the run still has pending decisions, and the repeated action
       applies what is missing. Ignored failures are found by their recorded state, not by their decision.
    """
    run_state = load_run_state(ctx, run, complete=True)
    is_aborted = _apply_each_decision(ctx, run, run_state)
    if not is_aborted:
        _continue_after_ignored_failures(ctx, run, run_state)
    _complete_decisions(ctx, run, is_aborted=is_aborted)


def finalise(ctx: SupervisorContext, run: WorkflowRun) -> None:
    """End a drained run with its status, statistics and result.

    1. The result is stored first, under a name of its own, then the version of the run that points to it. If the
       process crashes in between, the stored result is an orphan and expires.
    2. A run that has ended before does not change. The repeated action only sets the TTL of the side rows again.
    3. An output that is invalid or cannot be stored fails the run. No value that a client or a worker chose keeps the
       run open.
    """
    run_state = load_run_state(ctx, run, complete=True)
    first_failure = _first_failure(ctx, run, run_state)
    output = store_output(ctx, run, run_state)

    def decide(current: WorkflowRun) -> WorkflowRun:
        if current.ended or not current.drained:
            return current
        ended = workflows.end(
            current,
            first_failure=first_failure,
            output_error=output.error,
            statistics=run_state.statistics(),
            now=ctx.now(),
        )
        return workflows.with_result(ended, output.result_ref)

    ended = change_run(ctx, run.namespace, run.workflow_id, decide)
    ctx.runs.set_side_row_ttl(ended)


def start_successor(ctx: SupervisorContext, run: WorkflowRun) -> None:
    """Start the supervisor that succeeds the current one.

    1. The run's supervisor number is incremented first. From then on the current supervisor is superseded: its writes
       of a token fail, and its requests have no effect.
    2. If the process crashes before the new execution starts, the sweeper finds that no execution of that name runs,
       and starts a successor.
    3. Of two processes that start a successor for the same supervisor, only one increments the number. Both then start
       the execution of the same name, and Step Functions starts a name once.
    """

    def decide(current: WorkflowRun) -> WorkflowRun:
        is_current = (current.generation, current.supervisor) == (run.generation, run.supervisor)
        if current.ended or not is_current:
            return current
        return workflows.next_supervisor_generation(current, now=ctx.now())

    start_supervisor(ctx, change_run(ctx, run.namespace, run.workflow_id, decide))


def on_execution_ended(ctx: SupervisorContext, event: JsonValue, status: str) -> WorkflowRun | None:
    """Start a successor for an execution that ended before its run.

    An execution that an operator stopped (status `ABORTED`) cancels the run: stopping it is the request to do so.

    Args:
        ctx: The run store and the supervisors.
        event: The input of the execution.
        status: The status of the execution in Step Functions.

    Returns:
        The run before the change, or None if it does not exist.
    """
    assert isinstance(event, Mapping)
    request = SupervisedRun.from_document(event)
    run = ctx.runs.find(request.namespace, request.workflow_id)
    if run is None or run.ended or run.supervisor_id != request.supervisor_id:
        return run
    if status == "ABORTED":
        change_run(ctx, run.namespace, run.workflow_id, lambda current: _cancel_unless_ended(ctx, current))
    start_successor(ctx, run)
    return run


def _cancel_unless_ended(ctx: SupervisorContext, run: WorkflowRun) -> WorkflowRun:
    if run.ended:
        return run
    return workflows.request_cancel(run, now=ctx.now(), actor=ACTOR, reason="its execution was stopped")


def _apply_each_decision(ctx: SupervisorContext, run: WorkflowRun, run_state: RunState) -> bool:
    """Apply the decisions that match the state of their job, and return whether one of them aborts the run."""
    is_aborted = False
    for decision in ctx.runs.decisions(run):
        record = run_state.block(block_of(decision.index)).records.get(decision.index)
        if record is None or not _is_open_decision(run_state, record, decision):
            continue
        match decision.action:
            case "retry":
                _rerun_job(ctx, run, run_state, decision)
            case "skip":
                record_states(ctx, run, run_state, {decision.index: with_decision(record, "ignored_failure")})
            case "abort":
                is_aborted = True  # The failure is recorded as it is when the remaining jobs are cancelled.
    return is_aborted


def _is_open_decision(run_state: RunState, record: StateRecord, decision: OperatorDecision) -> bool:
    """Return whether a decision is not yet applied, and about the current attempt of its job."""
    awaits_decision = run_state.state_of(decision.index) == "awaiting_decision"
    return awaits_decision and record.state_version == decision.state_version


def _rerun_job(ctx: SupervisorContext, run: WorkflowRun, run_state: RunState, decision: OperatorDecision) -> None:
    """Return a failed job to `waiting`, then record its new state."""

    def decide(current: Job) -> Job:
        return transitions.rerun(current, now=ctx.now(), actor=decision.actor) if current.ended else current

    with suppress(JobNotFound):
        job = change(ctx, run.namespace, job_id_at(ctx, run, decision.index), decide)
        record_states(ctx, run, run_state, {decision.index: record_of(job)})


def _continue_after_ignored_failures(ctx: SupervisorContext, run: WorkflowRun, run_state: RunState) -> None:
    """Apply the transitions that follow from ignored failures, and finish the run if it is drained."""
    ignored_indexes = [index for index in range(run.total) if run_state.state_of(index) == "ignored_failure"]
    updated_state = load_run_state(ctx, run, complete=True)
    inline_ctx = ctx.with_expressions(InlineExpressions())
    apply_transitions(inline_ctx, run, updated_state, updated_state.graph.successors(ignored_indexes))
    finish_if_drained(ctx, run, updated_state, {block_of(index) for index in ignored_indexes})


def _complete_decisions(ctx: SupervisorContext, run: WorkflowRun, *, is_aborted: bool) -> None:
    """Record on the run that the decisions are applied."""

    def decide(current: WorkflowRun) -> WorkflowRun:
        run_state = load_run_state(ctx, current, complete=True)
        failed_job = next((run_state.graph.nodes[index].name for index in failed_nodes(run_state)), None)
        return workflows.complete_decisions(
            current,
            aborted=is_aborted,
            awaiting_decision=count_awaiting_decision(ctx, current),
            failed_job=failed_job,
            now=ctx.now(),
        )

    change_run(ctx, run.namespace, run.workflow_id, decide)


def _first_failure(ctx: SupervisorContext, run: WorkflowRun, run_state: RunState) -> tuple[str, JobError | None] | None:
    """Return the name and error of the first job that failed the run, or None if no job did."""
    index = None if run.failed_job is None else run_state.graph.index_of.get(run.failed_job)
    if index is None or not is_failure(run_state, index):
        index = next(failed_nodes(run_state), None)
    if index is None:
        return None
    job = ctx.jobs.find(run.namespace, job_id_at(ctx, run, index))
    return run_state.graph.nodes[index].name, job.error if job else None
