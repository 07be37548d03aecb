"""Record what happens to the jobs of a run: node states, failures, and the end of the last open job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from vigil_core.domain.workflows import run as workflows
from vigil_core.domain.workflows.graph import group_by_block
from vigil_core.domain.workflows.planning import is_failure
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.domain.workflows.run_state import RunState, StateRecord
from vigil_core.services.context import ChangesRuns
from vigil_core.services.workflows.commands import change_run, load_run_state


class NodeStatesContext(ChangesRuns, Protocol):
    """The run store and the supervisors."""


def record_states(
    ctx: NodeStatesContext, run: WorkflowRun, run_state: RunState, records: Mapping[int, StateRecord]
) -> None:
    """Record node states, one update for each block. `run_state` then has these blocks as they are stored."""
    for block, indexes in group_by_block(records).items():
        block_records = {index: records[index] for index in indexes}
        run_state.put_block(block, ctx.runs.record_states(run.namespace, run.workflow_id, block, block_records))


def record_failures(
    ctx: NodeStatesContext, run: WorkflowRun, run_state: RunState, ended_indexes: Iterable[int]
) -> WorkflowRun:
    """Record on the run which of these ended jobs have failed it, and return the run.

    Under policy `manual` this also pauses the run, so that no further job starts.
    """
    if run.terminating:
        return run
    for index in ended_indexes:
        if is_failure(run_state, index):
            run = _record_failure(
                ctx,
                run,
                run_state.graph.nodes[index].name,
                awaits_decision=run_state.state_of(index) == "awaiting_decision",
            )
    return run


def _record_failure(ctx: NodeStatesContext, run: WorkflowRun, job: str, *, awaits_decision: bool) -> WorkflowRun:
    return change_run(
        ctx,
        run.namespace,
        run.workflow_id,
        lambda current: workflows.record_failure(current, job, awaits_decision=awaits_decision, now=ctx.now()),
    )


def finish_if_drained(
    ctx: NodeStatesContext, run: WorkflowRun, run_state: RunState, changed_blocks: Iterable[int]
) -> None:
    """Mark the run as drained if no job is open.

    1. All blocks are read only if one of `changed_blocks` has no open job. Blocks whose last job ends later are
       checked by the process that records that end.
    2. If the process crashes before it marks the run, the repeated message or record checks again. It may check any
       block, because in a drained run every block has no open job.
    """
    if any(map(run_state.block_is_drained, changed_blocks)) and _all_ended(ctx, run):
        change_run(ctx, run.namespace, run.workflow_id, lambda current: workflows.drain(current, now=ctx.now()))


def _all_ended(ctx: NodeStatesContext, run: WorkflowRun) -> bool:
    return load_run_state(ctx, run, complete=True).is_drained()
