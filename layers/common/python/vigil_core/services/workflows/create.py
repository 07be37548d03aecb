"""Create a run: what it is made of first, then the run, then its jobs; a supervisor once all of them are there.

The graph and the bodies of the jobs are stored before the run is: whoever finds the run can finish it. Jobs have ids
that follow from the run's and their names, and each is created once, however often a chunk is prepared.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from vigil_core.domain.errors import JobCreationFailed, JobNotFound
from vigil_core.domain.exact_json import JsonValue, dumps
from vigil_core.domain.ids import job_id_of
from vigil_core.domain.jobs import job as jobs
from vigil_core.domain.jobs.job import Job, NewJob
from vigil_core.domain.workflows import run as workflows
from vigil_core.domain.workflows.graph import CHUNK_JOBS, chunk_of, chunks, places_of
from vigil_core.domain.workflows.run import NewRun, Run
from vigil_core.domain.workflows.run_state import note_of
from vigil_core.domain.workflows.validation import MAX_JOBS
from vigil_core.services.context import Context
from vigil_core.services.jobs.transitions import body_text, change
from vigil_core.services.timers import wake_for_run
from vigil_core.services.workflows import advance as follow_run
from vigil_core.services.workflows.commands import change_run, find_run, standings_of, start_supervisor
from vigil_core.store import keys
from vigil_core.store.table import ConditionFailed

AT_ONCE = 4 * CHUNK_JOBS
"""Jobs that whoever asks for a run creates himself; of more, the fan-out function does each chunk."""
COMES_AFTER_SHOWN = 100
COMES_AFTER_BYTES = 1_024


def create_run(ctx: Context, namespace: str, new: NewRun, *, by: str, resumed: bool = False) -> Run:
    """Store a new run, with all of its jobs or with what the fan-out function needs to create them.

    Raises:
        PayloadTooLarge: a payload is too large to travel in a request.
    """
    if resumed and (mine := ctx.runs.find(namespace, new.workflow_id)) is not None:
        return _go_on(ctx, mine)
    for place, job in enumerate(new.jobs):
        for name, body in (("payload", job.payload), ("fallback", job.fallback)):
            if body is not None:
                body_text(body, f"jobs/{place}/{name}")
    run = workflows.create(namespace, new, now=ctx.now(), by=by)
    ctx.runs.put_graph(namespace, run.workflow_id, new.graph)
    ctx.in_parallel(
        lambda chunk: ctx.runs.put_bodies(
            namespace, run.workflow_id, chunk, [new.jobs[place] for place in places_of(chunk, run.total)]
        ),
        chunks(run.total),
    )
    for listed in ("workflows", "jobs"):
        ctx.listing.note_day(namespace, listed, run.created_at.date())
    for queue in {job.queue for job in new.jobs}:
        ctx.job_queues.note(namespace, queue)
    try:
        ctx.runs.create(run)
    except ConditionFailed:  # Somebody else has just created it, or the SDK, whose answer was lost.
        return _go_on(ctx, find_run(ctx, namespace, run.workflow_id))
    wake_for_run(ctx, run)
    return prepare(ctx, run)


def prepare(ctx: Context, run: Run) -> Run:
    """See to it that the jobs of a run are there, created or waiting again. Can be repeated."""
    if run.total > AT_ONCE:
        follow_run.hand_out_chunks(ctx, run, "run_prepare", follow_run.all_chunks(run))
        return run
    for chunk in follow_run.all_chunks(run):
        _prepare(ctx, run, chunk)
    return _seal(ctx, run)


def prepare_chunk(ctx: Context, message: Mapping[str, JsonValue]) -> None:
    """The fan-out function's share of `prepare`. Whoever finishes the last chunk starts the supervisor."""
    run = ctx.runs.find(str(message["namespace"]), str(message["workflow_id"]))
    if run is None or run.generation != message["generation"]:
        return
    (chunk,) = follow_run.chunks_of(message)
    if not run.sealed:
        _prepare(ctx, run, chunk)
    if ctx.runs.mark_prepared(run, chunk) == len(follow_run.all_chunks(run)):
        _seal(ctx, run)


def _go_on(ctx: Context, run: Run) -> Run:
    """A run that an earlier try has created: what that one has left undone is not left to the sweeper."""
    return run if run.sealed else prepare(ctx, run)


def _seal(ctx: Context, run: Run) -> Run:
    sealed = change_run(ctx, run.namespace, run.workflow_id, lambda now: workflows.seal(now, now=ctx.now()))
    if sealed.generation == run.generation and sealed.status == "pending":
        start_supervisor(ctx, sealed)
    return sealed


def _prepare(ctx: Context, run: Run, chunk: int) -> None:
    places = list(places_of(chunk, run.total))
    if run.again is None:
        _create_jobs(ctx, run, chunk, places)
    else:
        _run_again(ctx, run, [place for place in places if place in run.again])


def _create_jobs(ctx: Context, run: Run, chunk: int, places: list[int]) -> None:
    graph = ctx.runs.graph(run.namespace, run.workflow_id)
    bodies = ctx.runs.bodies(run.namespace, run.workflow_id, chunk)
    ids = [job_id_of(run.workflow_id, graph.nodes[place].name) for place in places]
    there = ctx.jobs.find_many(run.namespace, ids)

    def create(number: int) -> None:
        place, body = places[number], bodies[number]
        new = replace(
            body,
            job_id=ids[number],
            workflow_id=run.workflow_id,
            workflow_place=place,
            comes_after=_shown(graph.names_before(place)),
        )
        with suppress(JobCreationFailed):  # Somebody else has just created it.
            _create_job(ctx, run, new)

    ctx.in_parallel(create, [number for number, job_id in enumerate(ids) if job_id not in there])


def _create_job(ctx: Context, run: Run, new: NewJob) -> None:
    job = jobs.create(run.namespace, new, now=ctx.now(), by=run.log[0].by, payload_ref=None)
    payload = None if new.payload is None else dumps(new.payload)
    fallback = None if new.fallback is None else dumps(new.fallback)
    ctx.jobs.create(ctx.jobs.put_bodies(job, ctx.new_id()[-12:], payload=payload, fallback=fallback))


def _run_again(ctx: Context, run: Run, places: list[int]) -> None:
    """Have ended jobs wait again, and note that they do: what is noted of their last attempt is over. Before that, they
    give up what they had in that life: a place among those that may run at once, or in line for one; a race lost."""
    if run.max_concurrency is not None and places:
        ctx.runs.free_slots(run, places)
    for key in ctx.runs.held(run, MAX_JOBS):
        if keys.held_place(key.sk) in places:
            ctx.runs.forget_held(key)
    if places:
        ctx.runs.forget_lost(run.namespace, run.workflow_id, chunk_of(places[0]), places)
    graph = ctx.runs.graph(run.namespace, run.workflow_id)
    by = run.log[-1].by

    def decide(now: Job) -> Job:
        return jobs.run_again(now, now=ctx.now(), by=by) if now.ended else now

    def revive(place: int) -> Job | None:
        with suppress(JobNotFound):
            return change(ctx, run.namespace, job_id_of(run.workflow_id, graph.nodes[place].name), decide)
        return None

    revived = [job for job in ctx.in_parallel(revive, places) if job is not None]
    notes = {job.place_in_run: note_of(job) for job in revived}
    follow_run.note(ctx, run, standings_of(ctx, run), notes)


def _shown(names: list[str]) -> tuple[str, ...]:
    """As many names as a job's own row can bear."""
    shown: list[str] = []
    size = 0
    for name in names[:COMES_AFTER_SHOWN]:
        size += len(name.encode()) + 3
        if shown and size > COMES_AFTER_BYTES:
            break
        shown.append(name)
    return tuple(shown)
