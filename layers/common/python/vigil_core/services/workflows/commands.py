"""Runs of workflows: found, changed, and what their jobs have to ask them before they begin."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from vigil_core.domain.errors import (
    InvalidTransition,
    JobNotFound,
    StoreConflict,
    ValidationFailed,
    WorkflowNotFound,
)
from vigil_core.domain.exact_json import dumps
from vigil_core.domain.ids import is_uuid7, job_id_of
from vigil_core.domain.jobs import job as jobs
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.workflows import run as workflows
from vigil_core.domain.workflows.graph import chunk_of
from vigil_core.domain.workflows.run import DecisionAction, Run
from vigil_core.domain.workflows.run_state import Standings, to_run_again
from vigil_core.services.context import Context
from vigil_core.services.jobs.transitions import ATTEMPTS, change
from vigil_core.services.long_poll import hold
from vigil_core.services.verdict_log import log_fate
from vigil_core.store import keys
from vigil_core.store.workflows.runs import Decision


def find_run(ctx: Context, namespace: str, workflow_id: str) -> Run:
    """The run as of now. Raises WorkflowNotFound, also for what cannot be an id."""
    run = ctx.runs.find(namespace, workflow_id) if is_uuid7(workflow_id) else None
    if run is None:
        raise WorkflowNotFound(workflow_id)
    return run


def change_run(ctx: Context, namespace: str, workflow_id: str, decide: Callable[[Run], Run]) -> Run:
    """Store what is decided of the run as it is now; decided anew, whenever somebody else was first."""
    for attempt in range(ATTEMPTS):
        before = find_run(ctx, namespace, workflow_id)
        after = decide(before)
        try:
            return ctx.runs.save(before, after)
        except StoreConflict:
            ctx.sleep(0.01 * attempt)
    raise StoreConflict(f"Workflow {workflow_id} is being changed by too many at once: try again")


def hold_run(ctx: Context, run: Run, *, enough: Callable[[Run], bool], until: datetime) -> Run:
    """The run once it is as it was waited for, or as it is when time is over."""
    return hold(ctx, lambda: find_run(ctx, run.namespace, run.workflow_id), enough=enough, until=until, seen=run)


def id_at(ctx: Context, run: Run, place: int) -> str:
    """The id of the job at this place."""
    return job_id_of(run.workflow_id, ctx.runs.graph(run.namespace, run.workflow_id).nodes[place].name)


def standings_of(ctx: Context, run: Run, *, whole: bool = False) -> Standings:
    """How its jobs stand, read chunk by chunk when asked for, or all at once."""
    graph = ctx.runs.graph(run.namespace, run.workflow_id)
    standings = Standings(graph=graph, read=lambda chunk: ctx.runs.chunk(run.namespace, run.workflow_id, chunk))
    if whole:
        found, _ = ctx.runs.chunks(run)
        for chunk, notes in found.items():
            standings.put(chunk, notes)
    return standings


def start_supervisor(ctx: Context, run: Run) -> None:
    """Have an execution supervise a run whose jobs are all there. One of that name is as good."""
    event = {
        "pk": keys.run(run.namespace, run.workflow_id).pk,
        "namespace": run.namespace,
        "workflow_id": run.workflow_id,
        "generation": str(run.generation),
        "supervisor": str(run.supervisor),
        "supervised": run.supervised,
        "watched": {"loops": 0},
    }
    ctx.supervisors.start(run.execution, dumps(event))


def may_begin(ctx: Context, job: Job) -> bool:
    """Whether the run of a job that is ready lets it begin now. Where it is paused, the job is held back."""
    if job.workflow_id is None or job.workflow_place is None:
        return True
    run = ctx.runs.find(job.namespace, job.workflow_id)
    if run is None or run.hands_out:
        return True
    if run.status == "paused" and not run.stopping:
        hold_back(ctx, run, job)
    return False


def hold_back(ctx: Context, run: Run, job: Job) -> None:
    """Hold back a job that nobody has begun. It is kept in mind first: whoever lets go sees it there, or its own change
    has the run looked at again."""
    ctx.runs.hold(run.namespace, run.workflow_id, job.priority, job.place_in_run)

    def decide(now: Job) -> Job:
        return jobs.hold_back(now, now=ctx.now(), by="supervisor") if now.status == "pending" else now

    with suppress(JobNotFound, InvalidTransition):
        held = change(ctx, job.namespace, job.job_id, decide)
        log_fate("held", [held] if held.held else [])


def require_may_begin(ctx: Context, job: Job) -> None:
    """Raise InvalidTransition where the run of a job does not let it begin."""
    if job.status == "pending" and not may_begin(ctx, job):
        raise InvalidTransition(f"Cannot start job {job.job_id}: its workflow {job.workflow_id} holds it back")


def request_cancel(ctx: Context, namespace: str, workflow_id: str, *, by: str, why: str | None = None) -> Run:
    """Have what has not ended cancelled."""
    return change_run(
        ctx, namespace, workflow_id, lambda run: workflows.request_cancel(run, now=ctx.now(), by=by, why=why)
    )


def pause(ctx: Context, namespace: str, workflow_id: str, *, by: str) -> Run:
    """Nothing new starts, from now on."""
    return change_run(ctx, namespace, workflow_id, lambda run: workflows.pause(run, now=ctx.now(), by=by))


def resume(ctx: Context, namespace: str, workflow_id: str, *, by: str) -> Run:
    """Go on."""

    def decide(run: Run) -> Run:
        return workflows.resume(run, undecided=undecided(ctx, run), now=ctx.now(), by=by)

    return change_run(ctx, namespace, workflow_id, decide)


def retry(ctx: Context, namespace: str, workflow_id: str, *, start: str | None, by: str) -> Run:
    """Begin an ended run anew: what failed, what came after it, and with `start` that job and all after it.

    Raises:
        ValidationFailed: there is no such job in it.
        InvalidTransition: it goes on, or nothing of it has failed.
    """
    run = find_run(ctx, namespace, workflow_id)
    standings = standings_of(ctx, run, whole=True)
    again = to_run_again(standings, None if start is None else _place(standings, start, "/from"))

    def decide(now: Run) -> Run:
        return workflows.retry(now, frozenset(again), now=ctx.now(), by=by, start=start)

    retried = change_run(ctx, namespace, workflow_id, decide)
    ctx.runs.keep_beside(retried)
    return retried


def put_decision(
    ctx: Context, namespace: str, workflow_id: str, job: str, action: DecisionAction, *, by: str, note: str | None
) -> Run:
    """Say what is to become of a failed job. The decision is stored first, then the run says that there is one.

    Raises:
        ValidationFailed: there is no such job in it.
        InvalidTransition: the job, or the run, waits for no decision.
    """
    run = find_run(ctx, namespace, workflow_id)
    standings = standings_of(ctx, run)
    place = _place(standings, job, "/job")
    its = standings.chunk(chunk_of(place)).notes.get(place)
    if its is None or its.standing != "undecided" or standings.has_lost(place):
        raise InvalidTransition(f"Job {job} is {standings.status(place)}: it waits for no decision")
    decision = Decision(place=place, moment=its.moment, action=action, by=by, at=ctx.now(), note=note)
    ctx.runs.put_decision(run, decision)
    return change_run(ctx, namespace, workflow_id, lambda now: workflows.decide(now, job, action, now=ctx.now(), by=by))


def _place(standings: Standings, job: str, pointer: str) -> int:
    if job not in standings.graph.place_of:
        raise ValidationFailed.at(pointer, "is the name of no job of this workflow")
    return standings.graph.place_of[job]


def undecided(ctx: Context, run: Run) -> int:
    """How many failed jobs wait for a decision."""
    if run.failure_policy != "manual":
        return 0
    standings = standings_of(ctx, run, whole=True)
    return sum(standings.of(place) == "undecided" for place in range(run.total))
