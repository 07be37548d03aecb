"""Create a run: its graph and job definitions, then the run, then its jobs, and finally its supervisor.

1. The graph and the job definitions are stored before the run. Any process that finds the run can therefore create its
   jobs.
2. The id of a job follows from the run's id and the job's name. A block can be prepared several times, and each job is
   created once.
3. If the process crashes before all jobs exist, the repeated request or the sweeper (`reconcile_run`) continues.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from vigil_core.domain.errors import JobCreationFailed, JobNotFound
from vigil_core.domain.exact_json import dumps
from vigil_core.domain.ids import workflow_job_id
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job, NewJob
from vigil_core.domain.workflows import run as workflows
from vigil_core.domain.workflows.graph import BLOCK_SIZE, block_numbers, block_of, indexes_in_block
from vigil_core.domain.workflows.run import NewWorkflowRun, WorkflowRun
from vigil_core.domain.workflows.run_state import StateRecord, record_of
from vigil_core.domain.workflows.validation import MAX_JOBS
from vigil_core.runtime.failures import contain
from vigil_core.services.context import (
    ChangesRuns,
    UsesDependencies,
    UsesJobQueues,
    UsesLimits,
    UsesListing,
    UsesMessageQueues,
    UsesThreads,
)
from vigil_core.services.jobs.transitions import change, encode_payload
from vigil_core.services.limits.admission import require_queues, reserve_jobs
from vigil_core.services.messages import RunPrepare
from vigil_core.services.timers import start_run_timer
from vigil_core.services.workflows.blocks import enqueue_blocks
from vigil_core.services.workflows.commands import (
    abort_unprocessable,
    change_run,
    find_run,
    load_run_state,
    start_supervisor,
)
from vigil_core.services.workflows.node_states import record_states
from vigil_core.store import keys
from vigil_core.store.table import ConditionFailed


class CreateRunContext(
    ChangesRuns,
    UsesDependencies,
    UsesListing,
    UsesLimits,
    UsesJobQueues,
    UsesMessageQueues,
    UsesThreads,
    Protocol,
):
    """The run and job stores, the listing and queue indexes, the supervisors, and the queue of `fan_out`."""


MAX_SYNCHRONOUS_JOBS = 4 * BLOCK_SIZE
"""The number of jobs that the request itself creates. `fan_out` creates the jobs of larger runs, block by block."""
MAX_UPSTREAM_NAMES = 100
"""The number of dependency names that a job stores."""
MAX_UPSTREAM_BYTES = 1_024
"""The size of the dependency names that a job stores."""


def create_run(
    ctx: CreateRunContext, namespace: str, new: NewWorkflowRun, *, actor: str, resumed: bool = False
) -> WorkflowRun:
    """Store a new run, and create its jobs here or through `fan_out`.

    Args:
        ctx: The stores and queues.
        namespace: The namespace of the client.
        new: The validated definition.
        actor: The API key or function that creates the run.
        resumed: Whether an earlier attempt may have stored the run.

    Raises:
        LimitExceeded: The namespace has too many open jobs.
        PayloadTooLarge: A payload is larger than a request allows.
        RequestLimitExceeded: The namespace has too many queues.
    """
    if resumed and (earlier := ctx.runs.find(namespace, new.workflow_id)) is not None:
        return _resume_creation(ctx, earlier)
    for index, job in enumerate(new.jobs):
        for name, body in (("payload", job.payload), ("fallback", job.fallback)):
            if body is not None:
                encode_payload(body, f"jobs/{index}/{name}")
    require_queues(ctx, namespace, {job.queue for job in new.jobs})
    amount = sum(1 + (job.batch_size or 0) for job in new.jobs)
    with reserve_jobs(ctx, namespace, amount) as reservation:
        run = workflows.create(namespace, new, now=ctx.now(), actor=actor)
        is_new = _store_run(ctx, new, run)
        reservation.unused = 0 if is_new else amount
    if not is_new:
        return _resume_creation(ctx, find_run(ctx, namespace, run.workflow_id))
    start_run_timer(ctx, run)
    return prepare_jobs(ctx, run)


def _store_run(ctx: CreateRunContext, new: NewWorkflowRun, run: WorkflowRun) -> bool:
    """Store the definition of a run, then the run. Return False if the run exists already."""
    namespace = run.namespace
    ctx.runs.put_graph(namespace, run.workflow_id, new.graph)
    ctx.in_parallel(
        lambda block: ctx.runs.put_job_definitions(
            namespace, run.workflow_id, block, [new.jobs[index] for index in indexes_in_block(block, run.total)]
        ),
        block_numbers(run.total),
    )
    for entity in ("workflows", "jobs"):
        ctx.listing.mark_day(namespace, entity, run.created_at.date())
    for queue in {job.queue for job in new.jobs}:
        ctx.job_queues.register(namespace, queue)
    try:
        ctx.runs.create(run)
    except ConditionFailed:  # A concurrent request, or an earlier attempt whose answer was lost, has created it.
        return False
    return True


def prepare_jobs(ctx: CreateRunContext, run: WorkflowRun) -> WorkflowRun:
    """Create the jobs of a run, or return the jobs of a rerun to `waiting`. Can be repeated."""
    if run.total > MAX_SYNCHRONOUS_JOBS:
        enqueue_blocks(ctx, run, RunPrepare, block_numbers(run.total))
        return run
    for block in block_numbers(run.total):
        _create_or_rerun(ctx, run, block)
    return _mark_complete(ctx, run)


def prepare_block(ctx: CreateRunContext, message: RunPrepare) -> None:
    """Prepare the jobs of one block for `fan_out`. The process that prepares the last block starts the supervisor.

    1. The jobs of the block are prepared first, then the block is marked as prepared in the run's row.
    2. If the process crashes before the mark, the message is delivered again and prepares only the missing jobs.
    3. The update of the mark returns the marks of all blocks. The last update sees that all blocks are prepared, and
       so does a repeated one.
    """
    run = ctx.runs.find(message.namespace, message.workflow_id)
    if run is None or run.generation != message.generation:
        return
    if not run.registration_complete:
        _create_or_rerun(ctx, run, message.block)
    if ctx.runs.mark_prepared(run, message.block) == len(block_numbers(run.total)):
        _mark_complete(ctx, run)


def _resume_creation(ctx: CreateRunContext, run: WorkflowRun) -> WorkflowRun:
    """Complete the creation of a run that an earlier attempt has stored, without waiting for the sweeper."""
    return run if run.registration_complete else prepare_jobs(ctx, run)


def _mark_complete(ctx: CreateRunContext, run: WorkflowRun) -> WorkflowRun:
    completed = change_run(
        ctx,
        run.namespace,
        run.workflow_id,
        lambda current: workflows.mark_registration_complete(current, now=ctx.now()),
    )
    if completed.generation == run.generation and completed.status == "pending":
        start_supervisor(ctx, completed)
    return completed


def _create_or_rerun(ctx: CreateRunContext, run: WorkflowRun, block: int) -> None:
    indexes = list(indexes_in_block(block, run.total))
    if run.rerun is None:
        _create_jobs(ctx, run, block, indexes)
    else:
        _rerun_jobs(ctx, run, [index for index in indexes if index in run.rerun])


def _create_jobs(ctx: CreateRunContext, run: WorkflowRun, block: int, indexes: list[int]) -> None:
    graph = ctx.runs.graph(run.namespace, run.workflow_id)
    definitions = ctx.runs.job_definitions(run.namespace, run.workflow_id, block)
    ids = [workflow_job_id(run.workflow_id, graph.nodes[index].name) for index in indexes]
    jobs_by_id = ctx.jobs.find_many(run.namespace, ids)

    def create(position: int) -> None:
        index, definition = indexes[position], definitions[position]
        upstream_names = graph.dependency_names(index)
        stored_names = _truncate_names(upstream_names)
        new = replace(
            definition,
            job_id=ids[position],
            workflow_id=run.workflow_id,
            workflow_index=index,
            upstream_names=stored_names,
            upstream_truncated=len(stored_names) < len(upstream_names),
        )

        def create_once() -> None:
            with suppress(JobCreationFailed):  # A concurrent process has created it.
                _create_job(ctx, run, new)

        contain(create_once, lambda error: _abort_without(ctx, run, index, error))

    ctx.in_parallel(create, [position for position, job_id in enumerate(ids) if job_id not in jobs_by_id])


def _abort_without(ctx: CreateRunContext, run: WorkflowRun, index: int, error: Exception) -> None:
    """Abort a run that has a job which cannot be created, and record that job as cancelled.

    The other jobs are created and cancelled, so the run ends as any aborted run does. The state version is lower than
    that of any version of the job.
    """
    record_states(ctx, run, load_run_state(ctx, run), {index: StateRecord(state="cancelled", state_version=1)})
    abort_unprocessable(ctx, run.namespace, run.workflow_id, error)


def _create_job(ctx: CreateRunContext, run: WorkflowRun, new: NewJob) -> None:
    job = transitions.create(run.namespace, new, now=ctx.now(), actor=run.log[0].actor, payload_ref=None)
    payload = None if new.payload is None else dumps(new.payload)
    fallback = None if new.fallback is None else dumps(new.fallback)
    ctx.jobs.create(ctx.jobs.put_payloads(job, ctx.new_id()[-12:], payload=payload, fallback=fallback))


def _rerun_jobs(ctx: CreateRunContext, run: WorkflowRun, indexes: list[int]) -> None:
    """Return ended jobs to `waiting`, and record their new states.

    1. The slots, parked rows and race-loser marks of the previous generation are removed first. A job that waits again
       therefore never has any of them.
    2. Then the jobs change, and their states are recorded. If the process crashes in between, the block is prepared
       again: a job that waits already does not change, and its state is recorded.
    """
    if run.max_concurrency is not None and indexes:
        ctx.runs.release_slots(run, indexes)
    for key in ctx.runs.parked(run, MAX_JOBS):
        if keys.parked_index(key.sk) in indexes:
            ctx.runs.unpark(key)
    if indexes:
        ctx.runs.clear_race_losers(run.namespace, run.workflow_id, block_of(indexes[0]), indexes)
    graph = ctx.runs.graph(run.namespace, run.workflow_id)
    actor = run.log[-1].actor

    def decide(current: Job) -> Job:
        return transitions.rerun(current, now=ctx.now(), actor=actor) if current.ended else current

    def rerun(index: int) -> Job | None:
        with suppress(JobNotFound):
            return change(ctx, run.namespace, workflow_job_id(run.workflow_id, graph.nodes[index].name), decide)
        return None

    rerun_jobs = [job for job in ctx.in_parallel(rerun, indexes) if job is not None]
    records = {job.workflow.graph_index: record_of(job) for job in rerun_jobs}
    record_states(ctx, run, load_run_state(ctx, run), records)


def _truncate_names(names: list[str]) -> tuple[str, ...]:
    """Return the first names, as many as fit into a job's row."""
    kept_names: list[str] = []
    size = 0
    for name in names[:MAX_UPSTREAM_NAMES]:
        size += len(name.encode()) + 3
        if kept_names and size > MAX_UPSTREAM_BYTES:
            break
        kept_names.append(name)
    return tuple(kept_names)
