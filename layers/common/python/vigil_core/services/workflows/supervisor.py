"""What the supervisor of a run does, state by state: begin, cancel the rest, carry out decisions, finalise, hand over.

Each names the generation and the execution that asks, and does nothing for one whose place another has taken. Each can
be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from vigil_core.domain.errors import JobNotFound
from vigil_core.domain.exact_json import JsonValue, dumps
from vigil_core.domain.jobs import job as jobs
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.workflows import run as workflows
from vigil_core.domain.workflows.graph import chunk_of
from vigil_core.domain.workflows.run import Run
from vigil_core.domain.workflows.run_state import Standings, decided, failures, is_failure, note_of
from vigil_core.services.context import Context
from vigil_core.services.jobs.transitions import change
from vigil_core.services.workflows import advance as follow_run
from vigil_core.services.workflows.commands import change_run, id_at, standings_of, start_supervisor, undecided
from vigil_core.services.workflows.output import output_of
from vigil_core.store.workflows.runs import Decision

BY = "supervisor"


def supervise(ctx: Context, event: Mapping[str, JsonValue]) -> Run | None:
    """Do what one state of the supervisor asks for; the run as it was before, if there is one."""
    namespace, workflow_id = str(event["namespace"]), str(event["workflow_id"])
    run = ctx.runs.find(namespace, workflow_id)
    if run is None or run.supervised != event["supervised"]:
        return run
    match event["action"]:
        case "begin":
            change_run(ctx, namespace, workflow_id, lambda now: workflows.begin(now, now=ctx.now()))
        case "cancel_the_rest":
            cancel_the_rest(ctx, run)
        case "apply_decisions":
            apply_decisions(ctx, run)
        case "finalise":
            finalise(ctx, run)
        case "hand_over":
            replace_supervisor(ctx, run)
        case action:
            raise ValueError(f"a state of the supervisor asks for an unknown action {action!r}")
    return run


def cancel_the_rest(ctx: Context, run: Run) -> None:
    """Have every job cancelled that has not ended. Nothing follows from their ends but the end of the run."""
    run = change_run(ctx, run.namespace, run.workflow_id, lambda now: workflows.close(now, now=ctx.now()))
    if not run.ended:
        follow_run.hand_out_chunks(ctx, run, "run_cancel", follow_run.all_chunks(run))


def apply_decisions(ctx: Context, run: Run) -> None:
    """Do what operators have decided so far, all of it; then the run goes on, unless more is to be decided."""
    standings = standings_of(ctx, run, whole=True)
    aborted = False
    for decision in ctx.runs.decisions(run):
        note = standings.chunk(chunk_of(decision.place)).notes.get(decision.place)
        if note is None or standings.of(decision.place) != "undecided" or note.moment != decision.moment:
            continue  # Carried out before, or about an attempt that is over.
        match decision.action:
            case "retry":
                _run_again(ctx, run, standings, decision)
            case "skip":
                note = decided(note, "pardoned")
                follow_run.note(ctx, run, standings, {decision.place: note})
            case "abort":
                aborted = True  # What is undecided is noted as it is when the rest is cancelled.
    pardoned = [place for place in range(run.total) if standings.of(place) == "pardoned"]
    if not aborted:
        fresh = standings_of(ctx, run, whole=True)
        follow_run.settle(ctx, run, fresh, fresh.graph.after(pardoned))
        follow_run.look_whether_over(ctx, run, fresh, {chunk_of(place) for place in pardoned})

    def done(now: Run) -> Run:
        left = standings_of(ctx, now, whole=True)
        name = next((left.graph.nodes[place].name for place in failures(left)), None)
        return workflows.decisions_done(
            now, aborted=aborted, undecided=undecided(ctx, now), failed_job=name, now=ctx.now()
        )

    change_run(ctx, run.namespace, run.workflow_id, done)


def finalise(ctx: Context, run: Run) -> None:
    """No job is open: say how the run has ended, with what its jobs came to."""
    standings = standings_of(ctx, run, whole=True)
    failed = _failed_job(ctx, run, standings)
    said = output_of(ctx, run, standings)
    result_ref = None if said is None else ctx.runs.put_result(run, ctx.new_id()[-12:], dumps(said))

    def decide(now: Run) -> Run:
        if now.ended or not now.drained:
            return now
        ended = workflows.end(now, first_failure=failed, statistics=standings.statistics(), now=ctx.now())
        return workflows.with_result(ended, result_ref)

    ended = change_run(ctx, run.namespace, run.workflow_id, decide)
    ctx.runs.keep_beside(ended)


def replace_supervisor(ctx: Context, run: Run) -> None:
    """The next execution takes over from the one that supervises a run."""

    def decide(now: Run) -> Run:
        same = (now.generation, now.supervisor) == (run.generation, run.supervisor)
        return workflows.succeed_supervisor(now, now=ctx.now()) if same and not now.ended else now

    start_supervisor(ctx, change_run(ctx, run.namespace, run.workflow_id, decide))


def mourn(ctx: Context, event: JsonValue, status: str) -> Run | None:
    """The execution that was started with this event has ended without having ended its run. One that somebody stopped
    by hand was meant to stop the run. Returns the run as it was before, if there is one."""
    assert isinstance(event, Mapping)
    namespace, workflow_id = str(event["namespace"]), str(event["workflow_id"])
    run = ctx.runs.find(namespace, workflow_id)
    if run is None or run.ended or run.supervised != event["supervised"]:
        return run
    if status == "ABORTED":
        why = "its execution was stopped"
        change_run(
            ctx,
            namespace,
            workflow_id,
            lambda now: now if now.ended else workflows.request_cancel(now, now=ctx.now(), by=BY, why=why),
        )
    replace_supervisor(ctx, run)
    return run


def _failed_job(ctx: Context, run: Run, standings: Standings) -> tuple[str, JobError | None] | None:
    """The job that failed the run first, and why it failed."""
    place = None if run.failed_job is None else standings.graph.place_of.get(run.failed_job)
    if place is None or not is_failure(standings, place):
        place = next(failures(standings), None)
    if place is None:
        return None
    job = ctx.jobs.find(run.namespace, id_at(ctx, run, place))
    return standings.graph.nodes[place].name, job.error if job else None


def _run_again(ctx: Context, run: Run, standings: Standings, decision: Decision) -> None:
    def decide(now: Job) -> Job:
        return jobs.run_again(now, now=ctx.now(), by=decision.by) if now.ended else now

    with suppress(JobNotFound):
        job = change(ctx, run.namespace, id_at(ctx, run, decision.place), decide)
        follow_run.note(ctx, run, standings, {decision.place: note_of(job)})
