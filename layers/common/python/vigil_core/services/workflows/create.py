"""Create a run: what it is made of first, then the run, then its jobs; a supervisor once all of them are there.

The graph and the bodies of the jobs are stored before the run is: whoever finds the run can finish it. Jobs have ids
that follow from the run's and their names, and each is created once, however often a chunk is prepared.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from vigil_core.domain.errors import JobCreationFailed, JobNotFound
from vigil_core.domain.exact_json import JsonValue, dumps
from vigil_core.domain.ids import workflow_job_id
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job, NewJob
from vigil_core.domain.workflows import run as workflows
from vigil_core.domain.workflows.graph import BLOCK_SIZE, block_numbers, block_of, indexes_in_block
from vigil_core.domain.workflows.run import NewWorkflowRun, WorkflowRun
from vigil_core.domain.workflows.run_state import record_of
from vigil_core.domain.workflows.validation import MAX_JOBS
from vigil_core.services.context import (
    ChangesRuns,
    UsesDependencies,
    UsesJobQueues,
    UsesListing,
    UsesMessageQueues,
    UsesThreads,
)
from vigil_core.services.jobs.transitions import change, encode_body
from vigil_core.services.timers import start_run_timer
from vigil_core.services.workflows import advance
from vigil_core.services.workflows.commands import change_run, find_run, load_run_state, start_supervisor
from vigil_core.store import keys
from vigil_core.store.table import ConditionFailed


class CreateRunContext(
    ChangesRuns,
    UsesDependencies,
    UsesListing,
    UsesJobQueues,
    UsesMessageQueues,
    UsesThreads,
    Protocol,
):
    """What this module uses of the outside world."""


MAX_SYNCHRONOUS_JOBS = 4 * BLOCK_SIZE
"""Jobs that whoever asks for a run creates himself; of more, the fan-out function does each chunk."""
MAX_UPSTREAM_NAMES = 100
MAX_UPSTREAM_BYTES = 1_024


def create_run(
    ctx: CreateRunContext, namespace: str, new: NewWorkflowRun, *, actor: str, resumed: bool = False
) -> WorkflowRun:
    """Store a new run, with all of its jobs or with what the fan-out function needs to create them.

    Raises:
        PayloadTooLarge: a payload is too large to travel in a request.
    """
    if resumed and (earlier := ctx.runs.find(namespace, new.workflow_id)) is not None:
        return _resume_creation(ctx, earlier)
    for index, job in enumerate(new.jobs):
        for name, body in (("payload", job.payload), ("fallback", job.fallback)):
            if body is not None:
                encode_body(body, f"jobs/{index}/{name}")
    run = workflows.create(namespace, new, now=ctx.now(), actor=actor)
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
    except ConditionFailed:  # Somebody else has just created it, or the SDK, whose answer was lost.
        return _resume_creation(ctx, find_run(ctx, namespace, run.workflow_id))
    start_run_timer(ctx, run)
    return prepare_jobs(ctx, run)


def prepare_jobs(ctx: CreateRunContext, run: WorkflowRun) -> WorkflowRun:
    """See to it that the jobs of a run are there, created or waiting again. Can be repeated."""
    if run.total > MAX_SYNCHRONOUS_JOBS:
        advance.enqueue_blocks(ctx, run, "run_prepare", advance.all_blocks(run))
        return run
    for block in advance.all_blocks(run):
        _create_or_rerun(ctx, run, block)
    return _mark_complete(ctx, run)


def prepare_block(ctx: CreateRunContext, message: Mapping[str, JsonValue]) -> None:
    """The fan-out function's share of `prepare`. Whoever finishes the last chunk starts the supervisor."""
    run = ctx.runs.find(str(message["namespace"]), str(message["workflow_id"]))
    if run is None or run.generation != message["generation"]:
        return
    (block,) = advance.block_numbers_in(message)
    if not run.registration_complete:
        _create_or_rerun(ctx, run, block)
    if ctx.runs.mark_prepared(run, block) == len(advance.all_blocks(run)):
        _mark_complete(ctx, run)


def _resume_creation(ctx: CreateRunContext, run: WorkflowRun) -> WorkflowRun:
    """A run that an earlier try has created: what that one has left undone is not left to the sweeper."""
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
    bodies = ctx.runs.job_definitions(run.namespace, run.workflow_id, block)
    ids = [workflow_job_id(run.workflow_id, graph.nodes[index].name) for index in indexes]
    jobs_by_id = ctx.jobs.find_many(run.namespace, ids)

    def create(position: int) -> None:
        index, body = indexes[position], bodies[position]
        new = replace(
            body,
            job_id=ids[position],
            workflow_id=run.workflow_id,
            workflow_index=index,
            upstream_names=_truncate_names(graph.dependency_names(index)),
        )
        with suppress(JobCreationFailed):  # Somebody else has just created it.
            _create_job(ctx, run, new)

    ctx.in_parallel(create, [position for position, job_id in enumerate(ids) if job_id not in jobs_by_id])


def _create_job(ctx: CreateRunContext, run: WorkflowRun, new: NewJob) -> None:
    job = transitions.create(run.namespace, new, now=ctx.now(), actor=run.log[0].actor, payload_ref=None)
    payload = None if new.payload is None else dumps(new.payload)
    fallback = None if new.fallback is None else dumps(new.fallback)
    ctx.jobs.create(ctx.jobs.put_payloads(job, ctx.new_id()[-12:], payload=payload, fallback=fallback))


def _rerun_jobs(ctx: CreateRunContext, run: WorkflowRun, indexes: list[int]) -> None:
    """Have ended jobs wait again, and note that they do: what is noted of their last attempt is over. Before that, they
    give up what they had in that life: a place among those that may run at once, or in line for one; a race lost."""
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
    advance.record_states(ctx, run, load_run_state(ctx, run), records)


def _truncate_names(names: list[str]) -> tuple[str, ...]:
    """As many names as a job's own row can bear."""
    kept_names: list[str] = []
    size = 0
    for name in names[:MAX_UPSTREAM_NAMES]:
        size += len(name.encode()) + 3
        if kept_names and size > MAX_UPSTREAM_BYTES:
            break
        kept_names.append(name)
    return tuple(kept_names)
