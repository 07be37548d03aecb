"""Advance a workflow run after its jobs or the run itself have changed. The matcher calls this for stream records.

The steps for changed jobs: load the state, record the changes, plan, apply the plan, finish the run if it is drained.

Two jobs may end at once, and two processes then advance the same run at the same time:

1. Each process records the state of its job first.
2. Each process reads the states of the other jobs afterwards, consistently: with the answer of its own update for the
   same block, with a consistent read for another block.
3. The process that records last therefore sees both ends, and no release or skip is missed.

The plan follows from the recorded states alone, so every step can be repeated after a crash. Bulk work goes to
`fan_out`, some blocks of jobs at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from vigil_core.domain.jobs.job import Job
from vigil_core.domain.workflows.graph import block_numbers, block_of
from vigil_core.domain.workflows.planning import TransitionPlan, as_awaiting_decision, plan_transitions
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.domain.workflows.run_state import RunState, record_of
from vigil_core.runtime.tracing import ids_of, traced
from vigil_core.services.context import ChangesRuns, UsesDependencies, UsesExpressions, UsesMessageQueues, UsesThreads
from vigil_core.services.timers import start_cancel_timer
from vigil_core.services.workflows.apply import apply_plan, apply_transitions
from vigil_core.services.workflows.cancellation import cancel_losers
from vigil_core.services.workflows.commands import load_run_state, park
from vigil_core.services.workflows.node_states import finish_if_drained, record_failures, record_states
from vigil_core.services.workflows.parking import release_parked
from vigil_core.store.table import Row
from vigil_core.store.workflows.run_rows import SupervisorToken, run_from_row, supervisor_token_from_row


class AdvanceRunContext(ChangesRuns, UsesDependencies, UsesMessageQueues, UsesExpressions, UsesThreads, Protocol):
    """The run and job stores, the dependencies' results, the queue of `fan_out`, the supervisors, and threads."""


@dataclass(frozen=True, kw_only=True)
class _JobChanges:
    """The changed jobs of a run, with the run and its state."""

    run: WorkflowRun
    run_state: RunState
    jobs: Mapping[int, Job]
    """The newest version of each changed job, by index. `_record` removes versions that are no longer the latest."""
    waiting_indexes: Sequence[int] = ()
    """The changed jobs that wait for their run, including those that `_record` removed from `jobs`."""
    loser_indexes: Sequence[int] = ()
    """The jobs that have lost a race which one of the changed jobs ended. For the run, they have ended."""

    @property
    def ended_indexes(self) -> list[int]:
        """The changed jobs that have ended."""
        return [index for index, job in self.jobs.items() if job.ended]

    @property
    def has_freed_slots(self) -> bool:
        """Whether ended jobs have given back a concurrency slot."""
        return self.run.max_concurrency is not None and bool(self.ended_indexes)


def on_jobs_changed(ctx: AdvanceRunContext, namespace: str, workflow_id: str, versions: Sequence[Job]) -> None:
    """Advance a run after these versions of its jobs, the newest of each job. Can be repeated."""
    run = ctx.runs.find(namespace, workflow_id)
    if run is not None:
        log_fields = ids_of(versions[0]) if len(versions) == 1 else ids_of(run)
        with traced({"action": "advance_jobs", **log_fields}):
            _on_jobs_changed(ctx, run, versions)


def _on_jobs_changed(ctx: AdvanceRunContext, run: WorkflowRun, versions: Sequence[Job]) -> None:
    changes = _load_state(ctx, run, versions)
    if run.ended:
        _cancel_losers(ctx, changes)
        return
    changes = _record(ctx, changes)
    if changes.run.ended or not changes.run.registration_complete:
        return
    changes = _record_ends(ctx, changes)
    if changes.run.status == "paused" and not changes.run.terminating:
        _park_pending(ctx, changes)
    if changes.run.accepts_transitions:
        plan = _plan(changes)
        _apply(ctx, changes, plan)
    _finish_if_drained(ctx, changes)


def _load_state(ctx: AdvanceRunContext, run: WorkflowRun, versions: Sequence[Job]) -> _JobChanges:
    """Load the state of the run.

    1. The graph never changes. Blocks of node states are read when a later step first needs them.
    2. `_record` replaces the blocks of the changed jobs, so no later step uses a block from before the record.
    3. Nothing is written. If the process crashes here, the stream delivers the versions again.
    """
    jobs = {job.workflow.graph_index: job for job in versions}
    return _JobChanges(
        run=run,
        run_state=load_run_state(ctx, run),
        jobs=jobs,
        waiting_indexes=[index for index, job in jobs.items() if job.awaits_run],
    )


def _record(ctx: AdvanceRunContext, changes: _JobChanges) -> _JobChanges:
    """Record the node states of the changed jobs, and keep only the latest versions.

    1. A record never replaces a later one, so a version that arrives twice or late changes nothing.
    2. If a later version of a job is recorded, nothing more follows from this one: the process that recorded the later
       version has applied, or will apply, its effects. Waiting jobs are the exception. A skip by the run does not lead
       back here, so if the process that skipped a job crashed, the repeated version of the waiting job continues.
    3. A run that was `pending` when it was read is read once more after the record. The process that starts a run
       plans its roots from the recorded states. Either that process sees this record, or this read sees the start.
    4. If the process crashes after the record, the stream delivers the versions again, and they are still the latest.
    """
    run, run_state = changes.run, changes.run_state
    records = {index: record_of(job) for index, job in changes.jobs.items()}
    if run.failure_policy == "manual" and not run.terminating:
        # A state of its own: the blocks read for this decision are too old for the steps after the record.
        earlier_state = load_run_state(ctx, run)
        records = {index: as_awaiting_decision(earlier_state, index, record) for index, record in records.items()}
    record_states(ctx, run, run_state, records)
    latest = {index: job for index, job in changes.jobs.items() if run_state.is_latest(index, record_of(job))}
    if run.status == "pending":
        run = ctx.runs.find(run.namespace, run.workflow_id) or run
    return replace(changes, run=run, jobs=latest)


def _record_ends(ctx: AdvanceRunContext, changes: _JobChanges) -> _JobChanges:
    """Record on the run what the ended jobs mean for it: failures, free slots and race losers.

    1. Failures come first. Under `fail_fast` and `manual` a failure keeps the run from starting further jobs, and the
       steps below use the run as it is after that change.
    2. Losers of a race are recorded before the plan, because the trigger rules count them as skipped.
    3. Each write can be repeated: a failure is recorded once, a slot is released once, a loser is cancelled once. If
       the process crashes in between, the repeated versions are still the latest and lead here again.
    """
    run = record_failures(ctx, changes.run, changes.run_state, changes.ended_indexes)
    if changes.has_freed_slots:
        ctx.runs.release_slots(run, changes.ended_indexes)
    changes = replace(changes, run=run)
    return replace(changes, loser_indexes=_cancel_losers(ctx, changes)) if run.accepts_transitions else changes


def _cancel_losers(ctx: AdvanceRunContext, changes: _JobChanges) -> list[int]:
    """Cancel the losers of each race that one of the changed jobs ended, and return them.

    The run may end as soon as its losers are recorded. A process that repeats the change afterwards cancels them.
    """
    return [
        loser
        for index, job in changes.jobs.items()
        if changes.run_state.graph.nodes[index].cancel_losers and job.dependencies.status == "satisfied"
        for loser in cancel_losers(ctx, changes.run, changes.run_state, index)
    ]


def _park_pending(ctx: AdvanceRunContext, changes: _JobChanges) -> None:
    """Park the changed jobs that became pending in a paused run: their next attempt was due.

    No worker would get them, so their status and `waiting_for` name the run. A job is parked once. A resume in between
    is handled by `park` and `_apply`.
    """
    for job in changes.jobs.values():
        if job.status == "pending":
            park(ctx, changes.run, job)


def _plan(changes: _JobChanges) -> TransitionPlan:
    """Plan the transitions of the successors of ended jobs and race losers, and of the changed jobs that wait.

    1. The dependencies of a job that has just begun to wait may have ended before, so their states are loaded. For a
       successor of an ended job, the blocks that are loaded suffice: see `forecast_rule`.
    2. The plan itself is a pure function of the recorded states. If the process crashes, the same states give the same
       plan.
    """
    for index in changes.waiting_indexes:
        changes.run_state.load_dependencies(index)
    successors = changes.run_state.graph.successors([*changes.ended_indexes, *changes.loser_indexes])
    return plan_transitions(changes.run_state, [*successors, *changes.waiting_indexes])


def _apply(ctx: AdvanceRunContext, changes: _JobChanges, plan: TransitionPlan) -> None:
    """Apply the plan, then release parked jobs if slots were freed or a changed job is parked.

    1. Newly ready jobs come before the parked ones, but never overtake a parked job of higher priority.
    2. A job is parked in two writes: its parked row, then the job. The change of the parked job leads here. A release
       that ran between the two writes is thereby repeated after them, and no parked job is missed.
    3. If the process crashes, the repeated versions lead here again. Jobs that were released or skipped no longer wait,
       so only the missing transitions are applied.
    """
    apply_plan(ctx, changes.run, changes.run_state, plan)
    if changes.has_freed_slots or any(job.workflow.parked for job in changes.jobs.values()):
        release_parked(ctx, changes.run)


def _finish_if_drained(ctx: AdvanceRunContext, changes: _JobChanges) -> None:
    """Mark the run as drained if no job is open any more.

    1. Each end is recorded before the check, and the check reads all blocks consistently. The process that records the
       last end therefore sees that no job is open.
    2. If that process crashes before the mark, the stream delivers its versions again, and the check is repeated.
    """
    changed_indexes = (*changes.ended_indexes, *changes.waiting_indexes, *changes.loser_indexes)
    finish_if_drained(ctx, changes.run, changes.run_state, {block_of(index) for index in changed_indexes})


def on_run_changed(ctx: AdvanceRunContext, row: Row, previous_row: Row | None) -> None:
    """Wake the supervisor of a changed run, and start jobs if the run starts or resumes. Can be repeated.

    A record can arrive late, when a retry of the run is being prepared. Jobs therefore start only if the run as it is
    now has the same generation and accepts transitions.
    """
    run = run_from_row(row)
    with traced({"action": "advance_run", **ids_of(run)}):
        _wake_supervisor(ctx, run, supervisor_token_from_row(row))
        is_cancelled = run.cancel_requested_by is not None and not run.ended
        if is_cancelled and (previous_row is None or "cancel_requested_by" not in previous_row):
            start_cancel_timer(ctx, run)
        if run.status != "running" or (previous_row is not None and previous_row["status"] == "running"):
            return
        current = ctx.runs.find(run.namespace, run.workflow_id)
        if current is None or current.generation != run.generation or not current.accepts_transitions:
            return
        if previous_row is not None and previous_row["status"] == "pending":
            _start_jobs(ctx, current)
        release_parked(ctx, current)


def _wake_supervisor(ctx: AdvanceRunContext, run: WorkflowRun, supervisor_token: SupervisorToken | None) -> None:
    """Wake the supervisor if the run has signals that it has not seen.

    1. A signal increments a counter in the run's row. The supervisor stores its token and the counter that it has seen
       in the same row, and then waits.
    2. The stream delivers both writes. Whichever comes last shows the token and the higher counter together.
    3. If the process crashes, the stream delivers the change again. The sweeper also compares the two numbers.
    """
    if supervisor_token is not None and run.signal_count > supervisor_token.seen_signals and not run.ended:
        ctx.supervisors.wake(supervisor_token.token)


def _start_jobs(ctx: AdvanceRunContext, run: WorkflowRun) -> None:
    """Apply the first transitions of a run that has just started.

    1. In the first generation only roots can start. In a later one, the successors of jobs that keep their success can
       start as well: those jobs do not end once more, so no change leads to their successors.
    2. If the process crashes, the stream delivers the change of the run again, and the plan is repeated.
    """
    is_rerun = run.generation > 1
    run_state = load_run_state(ctx, run, complete=is_rerun)
    apply_transitions(ctx, run, run_state, range(run.total) if is_rerun else run_state.graph.roots)
    if is_rerun:
        finish_if_drained(ctx, run, load_run_state(ctx, run), block_numbers(run.total)[-1:])
