"""Reconcile an open run: its deadline, a missing supervisor, a lost signal, a stall.

The sweeper calls this for each run whose check is due, which is less and less often while the run is open.
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Protocol

from vigil_core.domain.workflows import run as workflows
from vigil_core.domain.workflows.graph import block_numbers
from vigil_core.domain.workflows.run import FIRST_CHECK, WorkflowRun
from vigil_core.domain.workflows.run_state import RunState
from vigil_core.services.context import (
    ChangesRuns,
    UsesDependencies,
    UsesExpressions,
    UsesJobQueues,
    UsesLimits,
    UsesListing,
    UsesMessageQueues,
    UsesThreads,
)
from vigil_core.services.expressions import InlineExpressions
from vigil_core.services.workflows.apply import apply_transitions
from vigil_core.services.workflows.commands import change_run, find_run, load_run_state, start_supervisor
from vigil_core.services.workflows.create import prepare_jobs
from vigil_core.services.workflows.node_states import finish_if_drained
from vigil_core.services.workflows.parking import release_parked
from vigil_core.services.workflows.supervisor import cancel_remaining, finalise, start_successor


class ReconcileRunContext(
    ChangesRuns,
    UsesDependencies,
    UsesExpressions,
    UsesLimits,
    UsesListing,
    UsesJobQueues,
    UsesMessageQueues,
    UsesThreads,
    Protocol,
):
    """The run and job stores, the supervisors, the queue of `fan_out`, and what the creation of jobs uses."""


MAX_NAMED_JOBS = 5
"""The number of jobs that the reason of a stall names."""


def reconcile_run(ctx: ReconcileRunContext, namespace: str, workflow_id: str) -> None:
    """Apply the deadline of a run, and repair the effects of crashes and lost messages. Can be repeated.

    1. A run past its deadline gets the signal to end.
    2. A run whose creation stopped halfway gets its missing jobs.
    3. A run without a running supervisor gets one: first the execution that its row names, and if that one has ended, a
       successor.
    4. A run with a running supervisor is repaired: a lost signal is sent again, its jobs are advanced once more from
       the recorded states, and a stall is reported.
    5. A run that was cancelled before this check and is still open is cancelled, and finalised when it is drained, by
       this function. Each action can be repeated, so the supervisor may do the same.
    6. The next check is scheduled last. If the process crashes before, the run is still due and is checked again.
    """
    run = ctx.runs.find(namespace, workflow_id)
    if run is None or run.ended:
        return
    run = change_run(ctx, namespace, workflow_id, lambda current: workflows.apply_deadline(current, now=ctx.now()))
    if not run.registration_complete:
        if run.cancel_requested_by is not None or ctx.now() - run.updated_at >= FIRST_CHECK:
            prepare_jobs(ctx, run)
    elif ctx.supervisors.is_running(run.execution_name):
        _repair(ctx, run)
    else:
        if run.status == "pending":
            start_supervisor(ctx, run)
        if run.status != "pending" or not ctx.supervisors.is_running(run.execution_name):
            start_successor(ctx, run)
    if run.cancel_requested_by is not None:
        _end_cancelled_run(ctx, run)
    change_run(
        ctx,
        namespace,
        workflow_id,
        lambda current: current if current.ended else workflows.schedule_next_check(current, now=ctx.now()),
    )


def _end_cancelled_run(ctx: ReconcileRunContext, run: WorkflowRun) -> None:
    """Do what the supervisor of a cancelled run has not done: cancel the open jobs, or finalise the drained run.

    A supervisor that has begun to cancel the jobs within the last half minute continues by itself.
    """
    current = find_run(ctx, run.namespace, run.workflow_id)
    if current.ended or not current.registration_complete:
        return
    if current.drained:
        finalise(ctx, current)
    elif not current.cancelling or ctx.now() - current.updated_at >= FIRST_CHECK / 2:
        cancel_remaining(ctx, current)


def _repair(ctx: ReconcileRunContext, run: WorkflowRun) -> None:
    """Repair a run whose supervisor is running: wake it if necessary, and advance the jobs.

    A run has stalled if it is open and no job has changed for its health check interval.
    """
    supervisor_token = ctx.runs.supervisor_token(run)
    if supervisor_token is not None and run.signal_count > supervisor_token.seen_signals:
        ctx.supervisors.wake(supervisor_token.token)
    if run.status != "running":
        return
    records_by_block, last_recorded_at = ctx.runs.state_blocks(run)
    run_state = load_run_state(ctx, run)
    for block, records in records_by_block.items():
        run_state.put_block(block, records)
    if not run.terminating:
        apply_transitions(ctx.with_expressions(InlineExpressions()), run, run_state, range(run.total))
        release_parked(ctx, run)
    finish_if_drained(ctx, run, load_run_state(ctx, run), block_numbers(run.total)[-1:])
    if run.health_check_interval_s is None:
        return
    interval, now = timedelta(seconds=run.health_check_interval_s), ctx.now()
    if now - max(last_recorded_at, run.stalled_at or last_recorded_at) >= interval:
        reason = _stall_reason(run_state, run)
        change_run(
            ctx, run.namespace, run.workflow_id, lambda current: workflows.mark_stalled(current, reason, now=now)
        )


def _stall_reason(run_state: RunState, run: WorkflowRun) -> str:
    """Describe a stall: the number of open jobs by status, and the first jobs that others wait for."""
    names_by_status: dict[str, list[str]] = {}
    for index in range(run.total):
        if run_state.is_open(index):
            names_by_status.setdefault(run_state.status(index), []).append(run_state.graph.nodes[index].name)
    counts = Counter({status: len(names) for status, names in names_by_status.items()})
    counts_text = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    first_names = next(
        (
            names_by_status[status]
            for status in ("running", "pending", "scheduled", "waiting")
            if status in names_by_status
        ),
        [],
    )
    named = ", ".join(first_names[:MAX_NAMED_JOBS])
    return f"no job has changed for {run.health_check_interval_s} s: {counts_text}; first {named}"
