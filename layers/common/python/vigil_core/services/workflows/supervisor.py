"""What the supervisor of a run does, state by state: begin, cancel the rest, carry out decisions, finalise, hand over.

Each names the generation and the execution that asks, and does nothing for one whose place another has taken. Each can
be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

from vigil_core.domain.errors import JobNotFound
from vigil_core.domain.exact_json import JsonValue, dumps
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.workflows import run as workflows
from vigil_core.domain.workflows.graph import block_of
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.domain.workflows.run_state import RunState, failed_nodes, is_failure, record_of, with_decision
from vigil_core.services.context import ChangesRuns, UsesDependencies, UsesMessageQueues, UsesThreads
from vigil_core.services.jobs.transitions import change
from vigil_core.services.workflows import advance
from vigil_core.services.workflows.commands import (
    change_run,
    count_awaiting_decision,
    job_id_at,
    load_run_state,
    start_supervisor,
)
from vigil_core.services.workflows.output import evaluate_output
from vigil_core.store.workflows.run_rows import OperatorDecision


class SupervisorContext(ChangesRuns, UsesDependencies, UsesMessageQueues, UsesThreads, Protocol):
    """What this module uses of the outside world."""


ACTOR = "supervisor"


def supervise(ctx: SupervisorContext, event: Mapping[str, JsonValue]) -> WorkflowRun | None:
    """Do what one state of the supervisor asks for; the run as it was before, if there is one."""
    namespace, workflow_id = str(event["namespace"]), str(event["workflow_id"])
    run = ctx.runs.find(namespace, workflow_id)
    if run is None or run.supervisor_id != event["supervisor_id"]:
        return run
    match event["action"]:
        case "start":
            change_run(ctx, namespace, workflow_id, lambda current: workflows.start(current, now=ctx.now()))
        case "cancel_remaining":
            cancel_remaining(ctx, run)
        case "apply_decisions":
            apply_decisions(ctx, run)
        case "finalise":
            finalise(ctx, run)
        case "start_successor":
            start_successor(ctx, run)
        case action:
            raise ValueError(f"a state of the supervisor asks for an unknown action {action!r}")
    return run


def cancel_remaining(ctx: SupervisorContext, run: WorkflowRun) -> None:
    """Have every job cancelled that has not ended. Nothing follows from their ends but the end of the run."""
    run = change_run(
        ctx, run.namespace, run.workflow_id, lambda current: workflows.begin_cancelling(current, now=ctx.now())
    )
    if not run.ended:
        advance.enqueue_blocks(ctx, run, "run_cancel", advance.all_blocks(run))


def apply_decisions(ctx: SupervisorContext, run: WorkflowRun) -> None:
    """Do what operators have decided so far, all of it; then the run goes on, unless more is to be decided."""
    run_state = load_run_state(ctx, run, complete=True)
    aborted = False
    for decision in ctx.runs.decisions(run):
        state_record = run_state.block(block_of(decision.index)).records.get(decision.index)
        if (
            state_record is None
            or run_state.state_of(decision.index) != "undecided"
            or state_record.state_version != decision.state_version
        ):
            continue  # Carried out before, or about an attempt that is over.
        match decision.action:
            case "retry":
                _rerun_job(ctx, run, run_state, decision)
            case "skip":
                state_record = with_decision(state_record, "pardoned")
                advance.record_states(ctx, run, run_state, {decision.index: state_record})
            case "abort":
                aborted = True  # What is undecided is noted as it is when the rest is cancelled.
    ignored_indexes = [index for index in range(run.total) if run_state.state_of(index) == "pardoned"]
    if not aborted:
        updated_state = load_run_state(ctx, run, complete=True)
        advance.apply_transitions(ctx, run, updated_state, updated_state.graph.successors(ignored_indexes))
        advance.finish_if_drained(ctx, run, updated_state, {block_of(index) for index in ignored_indexes})

    def finish_decisions(current: WorkflowRun) -> WorkflowRun:
        current_state = load_run_state(ctx, current, complete=True)
        name = next((current_state.graph.nodes[index].name for index in failed_nodes(current_state)), None)
        return workflows.complete_decisions(
            current, aborted=aborted, undecided=count_awaiting_decision(ctx, current), failed_job=name, now=ctx.now()
        )

    change_run(ctx, run.namespace, run.workflow_id, finish_decisions)


def finalise(ctx: SupervisorContext, run: WorkflowRun) -> None:
    """No job is open: say how the run has ended, with what its jobs came to."""
    run_state = load_run_state(ctx, run, complete=True)
    first_failure = _failed_job(ctx, run, run_state)
    output = evaluate_output(ctx, run, run_state)
    result_ref = None if output is None else ctx.runs.put_result(run, ctx.new_id()[-12:], dumps(output))

    def decide(current: WorkflowRun) -> WorkflowRun:
        if current.ended or not current.drained:
            return current
        ended = workflows.end(current, first_failure=first_failure, statistics=run_state.statistics(), now=ctx.now())
        return workflows.with_result(ended, result_ref)

    ended = change_run(ctx, run.namespace, run.workflow_id, decide)
    ctx.runs.set_side_row_ttl(ended)


def start_successor(ctx: SupervisorContext, run: WorkflowRun) -> None:
    """The next execution takes over from the one that supervises a run."""

    def decide(current: WorkflowRun) -> WorkflowRun:
        is_current = (current.generation, current.supervisor) == (run.generation, run.supervisor)
        return (
            workflows.next_supervisor_generation(current, now=ctx.now())
            if is_current and not current.ended
            else current
        )

    start_supervisor(ctx, change_run(ctx, run.namespace, run.workflow_id, decide))


def on_execution_ended(ctx: SupervisorContext, event: JsonValue, status: str) -> WorkflowRun | None:
    """The execution that was started with this event has ended without having ended its run. One that somebody stopped
    by hand was meant to stop the run. Returns the run as it was before, if there is one."""
    assert isinstance(event, Mapping)
    namespace, workflow_id = str(event["namespace"]), str(event["workflow_id"])
    run = ctx.runs.find(namespace, workflow_id)
    if run is None or run.ended or run.supervisor_id != event["supervisor_id"]:
        return run
    if status == "ABORTED":
        reason = "its execution was stopped"
        change_run(
            ctx,
            namespace,
            workflow_id,
            lambda current: (
                current
                if current.ended
                else workflows.request_cancel(current, now=ctx.now(), actor=ACTOR, reason=reason)
            ),
        )
    start_successor(ctx, run)
    return run


def _failed_job(ctx: SupervisorContext, run: WorkflowRun, run_state: RunState) -> tuple[str, JobError | None] | None:
    """The job that failed the run first, and why it failed."""
    index = None if run.failed_job is None else run_state.graph.index_of.get(run.failed_job)
    if index is None or not is_failure(run_state, index):
        index = next(failed_nodes(run_state), None)
    if index is None:
        return None
    job = ctx.jobs.find(run.namespace, job_id_at(ctx, run, index))
    return run_state.graph.nodes[index].name, job.error if job else None


def _rerun_job(ctx: SupervisorContext, run: WorkflowRun, run_state: RunState, decision: OperatorDecision) -> None:
    def decide(current: Job) -> Job:
        return transitions.rerun(current, now=ctx.now(), actor=decision.actor) if current.ended else current

    with suppress(JobNotFound):
        job = change(ctx, run.namespace, job_id_at(ctx, run, decision.index), decide)
        advance.record_states(ctx, run, run_state, {decision.index: record_of(job)})
