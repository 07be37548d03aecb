"""What follows in a run from how its jobs stand: the matcher hears of them, notes it, and does what is certain now.

Whoever hears of a job notes first and reads the notes on others after, consistently: of two jobs that end at once, the
later one to be noted sees the other. What follows is worked out from the notes alone, so all of it can be repeated, and
is, whenever a process dies in between. What is wide is the fan-out function's, a chunk of jobs at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress

from vigil_core.domain.errors import JobCreationFailed, JobNotFound
from vigil_core.domain.exact_json import JsonValue, dumps
from vigil_core.domain.jobs import job as jobs
from vigil_core.domain.jobs.dependencies import Verdict
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.workflows import run as workflows
from vigil_core.domain.workflows.graph import by_chunk, chunk_of, chunks, places_of
from vigil_core.domain.workflows.run import Run
from vigil_core.domain.workflows.run_state import (
    FollowUp,
    Note,
    Standings,
    decided,
    follow_up,
    is_failure,
    losers,
    note_of,
)
from vigil_core.runtime.tracing import ids_of, traced
from vigil_core.services.context import Context, WideWork
from vigil_core.services.jobs.dependencies import with_condition
from vigil_core.services.jobs.transitions import NO_LONGER_OURS, cancel, change
from vigil_core.services.locks import claims_at_release
from vigil_core.services.verdict_log import log_fate, log_judged
from vigil_core.services.workflows.commands import change_run, id_at, standings_of
from vigil_core.store import keys
from vigil_core.store.jobs.jobs import RANKS
from vigil_core.store.table import Row
from vigil_core.store.workflows.runs import Listening, listening_of, run_from_row

NARROW = 200
"""Up to so many jobs are released and skipped at once; `fan_out` handles more, so that the stream goes on."""
HELD_AT_ONCE = 25
SETTLED_AT_ONCE = 16
"""Chunks of a message to settle: whoever does has to work out what follows in the whole graph first."""
BY = "matcher"


def follow_jobs(ctx: Context, namespace: str, workflow_id: str, versions: Sequence[Job]) -> None:
    """What follows from these versions of jobs of a run, the newest of each. Can be repeated."""
    run = ctx.runs.find(namespace, workflow_id)
    if run is not None:
        about = ids_of(versions[0]) if len(versions) == 1 else ids_of(run)
        with traced({"action": "follow_jobs", **about}):
            _follow_jobs(ctx, run, versions)


def _follow_jobs(ctx: Context, run: Run, versions: Sequence[Job]) -> None:
    standings = standings_of(ctx, run)
    by_place = {job.place_in_run: job for job in versions}
    notes = {place: note_of(job) for place, job in by_place.items()}
    if run.failure_policy == "manual" and not run.stopping:
        before = standings_of(ctx, run)  # What is read for this is too old for what follows.
        notes = {place: _undecided(before, place, its) for place, its in notes.items()}
    note(ctx, run, standings, notes)
    waiting = [place for place, job in by_place.items() if job.waits_for_run]
    # What came after a version has been heard of: nothing follows from it any more, least of all in another life. But
    # of a skip nobody hears, and whoever skipped a job that had waited may have died since.
    by_place = {place: job for place, job in by_place.items() if _is_newest(standings, place, job)}
    if run.status == "pending":
        # It may have begun since it was read, and whoever began it have looked before this was noted.
        run = ctx.runs.find(run.namespace, run.workflow_id) or run
    if run.ended or not run.sealed:
        return
    ended = [place for place, job in by_place.items() if job.ended]
    run = _note_failures(ctx, run, standings, ended)
    if run.max_concurrency is not None and ended:
        ctx.runs.free_slots(run, ended)
    if run.status != "pending" and not run.stopping:
        for place, job in by_place.items():
            if standings.graph.nodes[place].cancel_losers and job.dependency_status == "satisfied":
                _cancel_losers(ctx, run, standings, place)
        after = standings.graph.after(ended)
        for place in waiting:
            standings.look_before(place)
        settle(ctx, run, standings, [*after, *waiting])
        if (run.max_concurrency is not None and ended) or any(job.held for job in by_place.values()):
            let_go(ctx, run)
    look_whether_over(ctx, run, standings, {chunk_of(place) for place in (*ended, *waiting)})


def follow_run(ctx: Context, row: Row, before: Row | None) -> None:
    """What follows from a change of a run's own row: its supervisor is woken, its jobs start. Can be repeated."""
    run = run_from_row(row)
    with traced({"action": "follow_run", **ids_of(run)}):
        _follow_run(ctx, run, listening_of(row), before)


def _follow_run(ctx: Context, run: Run, listening: Listening | None, before: Row | None) -> None:
    if listening is not None and run.facts > listening.seen and not run.ended:
        ctx.supervisors.wake(listening.token)
    if run.status != "running" or (before is not None and before["status"] == "running"):
        return
    if before is not None and before["status"] == "pending":
        # Begun anew, what comes after a job that is kept may start as well: nobody will hear of that one again.
        anew = run.generation > 1
        standings = standings_of(ctx, run, whole=anew)
        settle(ctx, run, standings, range(run.total) if anew else standings.graph.beginnings)
        if anew:
            look_whether_over(ctx, run, standings_of(ctx, run), chunks(run.total)[-1:])
    let_go(ctx, run)


def note(ctx: Context, run: Run, standings: Standings, notes: Mapping[int, Note]) -> None:
    """Note how jobs stand. From then on `standings` has these chunks as they are."""
    for chunk, places in by_chunk(notes).items():
        some = {place: notes[place] for place in places}
        standings.put(chunk, ctx.runs.note(run.namespace, run.workflow_id, chunk, some))


def settle(ctx: Context, run: Run, standings: Standings, places: Iterable[int]) -> None:
    """Carry out what is certain about these jobs, as far as they wait. After skips are noted, those after them are
    looked at again, but for those that were certain before."""
    certain: set[int] = set()
    left = list(places)
    while left:
        found = follow_up(standings, left)
        certain |= found.certain
        if len(found.certain) > NARROW:
            _leave_to_fan_out(ctx, run, {chunk_of(place) for place in certain})
            return
        run, standings, left = _carry_out(ctx, run, standings, found, certain)


def settle_chunks(ctx: Context, message: Mapping[str, JsonValue]) -> None:
    """The fan-out function's share of what is wide: what is certain about the jobs of some chunks."""
    run = ctx.runs.find(str(message["namespace"]), str(message["workflow_id"]))
    if run is None or run.ended or run.stopping or run.status == "pending":
        return
    standings = standings_of(ctx, run, whole=True)
    found = follow_up(standings, range(run.total))
    its = {place for chunk in chunks_of(message) for place in places_of(chunk, run.total)}
    # Whoever skipped some of them may have died before he looked at those after them.
    forgotten = found.certain & set(standings.graph.after(found.skipped_before & its))
    its |= standings.graph.downstream(forgotten, passes=found.certain.__contains__)
    settle(ctx, *_carry_out(ctx, run, standings, found.of(its), found.certain))
    look_whether_over(ctx, run, standings_of(ctx, run), chunks_of(message)[:1])


def let_go(ctx: Context, run: Run) -> None:
    """Let jobs start that were held back, as many as may run at once. What is wide is the fan-out function's."""
    if let_some_go(ctx, run, lambda done: done < NARROW):
        return
    body: dict[str, JsonValue] = {"kind": "run_held", **ids_of(run)}
    ctx.queues.wide_work([WideWork(group=f"{run.workflow_id}#held", body=dumps({**body, "at": ctx.now().isoformat()}))])


def let_held_go(ctx: Context, message: Mapping[str, JsonValue], *, still_time: Callable[[], bool]) -> bool:
    """The fan-out function's share of `let_go`; False when time ran out before the end."""
    run = ctx.runs.find(str(message["namespace"]), str(message["workflow_id"]))
    return run is None or let_some_go(ctx, run, lambda _: still_time())


def let_some_go(ctx: Context, run: Run, more: Callable[[int], bool]) -> bool:
    """Let held jobs go in their order, one after another; whether that was all that can be done now."""
    freed: list[Job] = []
    try:
        return _let_some_go(ctx, run, more, freed)
    finally:
        log_fate("let_go", freed)


def _let_some_go(ctx: Context, run: Run, more: Callable[[int], bool], freed: list[Job]) -> bool:
    done = 0
    while more(done):
        if not (ctx.runs.find(run.namespace, run.workflow_id) or run).hands_out:
            return True
        held = ctx.runs.held(run, HELD_AT_ONCE)
        gone = 0
        for key in held:
            outcome = _let_go_one(ctx, run, key, freed)
            if outcome is None:
                gone += _let_owners_go(ctx, run, freed)
                break
            gone += outcome
        done += gone
        if not gone:
            return True
    return False


def look_whether_over(ctx: Context, run: Run, standings: Standings, touched: Iterable[int]) -> None:
    """Tell the run when no job is open any more. Only whoever saw the last job of a chunk end looks at the others. Who
    repeats what somebody did who has died may look at any chunk: of a run that is over each is."""
    if any(map(standings.chunk_is_over, touched)) and _all_over(ctx, run):
        change_run(ctx, run.namespace, run.workflow_id, lambda now: workflows.drain(now, now=ctx.now()))


def cancel_chunk(ctx: Context, message: Mapping[str, JsonValue]) -> None:
    """The fan-out function's share of cancelling what is left of a run: the jobs of one chunk."""
    run = ctx.runs.find(str(message["namespace"]), str(message["workflow_id"]))
    if run is None or not run.closing or run.generation != message["generation"]:
        return
    (chunk,) = chunks_of(message)
    ids = {id_at(ctx, run, place): place for place in places_of(chunk, run.total)}
    there = ctx.jobs.find_many(run.namespace, ids)

    def cancelled(job: Job) -> Job:
        return jobs.cancel(job, now=ctx.now(), by="supervisor")

    def stop(job: Job) -> Job:
        if not job.ended:
            with suppress(*NO_LONGER_OURS):
                return change(ctx, job.namespace, job.job_id, cancelled, known=job)
        return ctx.jobs.find(job.namespace, job.job_id) or job

    stopped = ctx.in_parallel(stop, there.values())
    standings = standings_of(ctx, run)
    notes = {ids[job.job_id]: note_of(job) for job in stopped}
    undecided = {place for place in notes if standings.of(place) == "undecided"}
    note(ctx, run, standings, {p: decided(its, its.standing) if p in undecided else its for p, its in notes.items()})
    look_whether_over(ctx, run, standings, [chunk])


def hand_out_chunks(ctx: Context, run: Run, kind: str, numbers: Iterable[int], *, at_once: int = 1) -> None:
    """Have the fan-out function do something with each of these chunks, so many a message, side by side."""
    listed = sorted(numbers)
    its: dict[str, JsonValue] = {**ids_of(run), "generation": run.generation}
    ctx.queues.wide_work(
        [
            WideWork(
                group=f"{run.workflow_id}#{listed[start]}",
                # SQS takes two messages of one text for one; what is to be done now may not have been certain then.
                body=dumps(
                    {"kind": kind, "chunks": listed[start : start + at_once], **its, "at": ctx.now().isoformat()}
                ),
            )
            for start in range(0, len(listed), at_once)
        ]
    )


def chunks_of(message: Mapping[str, JsonValue]) -> list[int]:
    """The chunks that a message is about."""
    listed = message["chunks"]
    assert isinstance(listed, Sequence)
    return [int(str(chunk)) for chunk in listed]


def all_chunks(run: Run) -> range:
    """The chunks of a run."""
    return chunks(run.total)


def _leave_to_fan_out(ctx: Context, run: Run, numbers: Iterable[int]) -> None:
    hand_out_chunks(ctx, run, "run_settle", numbers, at_once=SETTLED_AT_ONCE)


def _note_failures(ctx: Context, run: Run, standings: Standings, ended: Iterable[int]) -> Run:
    """Tell the run of jobs that have failed it. In a run under `manual` this also keeps its jobs from starting."""
    if run.stopping:
        return run
    for place in ended:
        if is_failure(standings, place):
            name = standings.graph.nodes[place].name
            wait = standings.of(place) == "undecided"
            run = change_run(
                ctx,
                run.namespace,
                run.workflow_id,
                lambda now, name=name, wait=wait: workflows.note_failure(now, name, undecided=wait, now=ctx.now()),  # type: ignore[misc]
            )
    return run


def _is_newest(standings: Standings, place: int, job: Job) -> bool:
    noted = standings.chunk(chunk_of(place)).notes.get(place)
    return noted is None or noted.moment <= decided(note_of(job), noted.standing).moment


def _undecided(standings: Standings, place: int, its: Note) -> Note:
    """A failure that an operator is to decide about, where the run allows no other."""
    if its.standing not in ("failed", "cancelled") or standings.has_lost(place):
        return its
    standings.assume(place, its.standing)
    failed = is_failure(standings, place)
    return Note(standing="undecided", moment=its.moment) if failed else its


def _carry_out(
    ctx: Context, run: Run, standings: Standings, what: FollowUp, certain: Container[int]
) -> tuple[Run, Standings, list[int]]:
    """Skip first, and note it, for whoever is released may look at what was skipped; then release. Who is turned away
    by its condition is heard of, as who fails is. Returns the run, how its jobs stand from now on, and who comes after
    those that were skipped, but for those that were certain before."""
    ids = {place: id_at(ctx, run, place) for place in (*what.skips, *what.releases)}
    found = ctx.jobs.find_many(run.namespace, ids.values())

    def judge(place: int) -> Job | None:
        met = place in what.releases
        verdict = what.releases[place] if met else what.skips[place]
        return _judge(ctx, run, found.get(ids[place]), verdict, met=met)

    skipped = [job for job in ctx.in_parallel(judge, what.skips) if job is not None]
    note(ctx, run, standings, {job.place_in_run: note_of(job) for job in skipped})
    ranks = {place: RANKS[found[ids[place]].priority] for place in what.releases if ids[place] in found}
    released: list[Job | None] = []
    for rank in sorted(set(ranks.values())):  # There may not be a place for all.
        released += ctx.in_parallel(judge, [place for place in ranks if ranks[place] == rank])
    waited = {job_id for job_id, job in found.items() if job.waits_for_run}
    judged = [job for job in (*skipped, *released) if job is not None and not job.waits_for_run]
    log_judged([job for job in judged if job.job_id in waited])
    run, standings = _tell_run_of_skips(ctx, run, what)
    return run, standings, [after for after in standings.graph.after(what.skips) if after not in certain]


def _tell_run_of_skips(ctx: Context, run: Run, what: FollowUp) -> tuple[Run, Standings]:
    """Races that nobody can win any more have failed, also when whoever skipped died before he told; the run may be
    over. Returns the run, and how its jobs stand from now on."""
    standings = standings_of(ctx, run)
    touched = {chunk_of(place) for place in what.skips}
    for chunk in touched:
        standings.chunk(chunk)  # Else what was skipped is not among what those after it are judged by.
    for join in (place for place in (*what.skips, *what.skipped_before) if standings.graph.nodes[place].cancel_losers):
        run = _note_failures(ctx, run, standings, standings.graph.nodes[join].depends_on)
    look_whether_over(ctx, run, standings, touched)
    return run, standings


def _judge(ctx: Context, run: Run, job: Job | None, verdict: Verdict, *, met: bool) -> Job | None:
    """What a verdict makes of a job, if it still waits; the job as it is then."""
    if job is None or not job.waits_for_run:
        return job
    place = job.place_in_run
    passed, verdict = with_condition(ctx, job, verdict) if met and job.condition else (met, verdict)
    held = bool(passed) and not _may_start(ctx, run, job)
    if held:
        ctx.runs.hold(run.namespace, run.workflow_id, job.priority, place)

    def decide(now: Job) -> Job:
        if not now.waits_for_run or now.attempt != job.attempt:
            return now
        return jobs.judged(now, verdict, met=met, passed=passed, held=held, now=ctx.now(), by=BY)

    def refuse(now: Job, error: JobCreationFailed) -> Job:
        if not now.waits_for_run or now.attempt != job.attempt:
            return now
        why = JobError(code=error.code, message=error.message)
        return jobs.refused(now, verdict, why, now=ctx.now(), by=BY)

    with suppress(JobNotFound):
        try:
            starts = bool(passed) and not held
            return change(
                ctx,
                job.namespace,
                job.job_id,
                decide,
                claims=lambda now: claims_at_release(ctx, now) if starts and now.waits_for_run else [],
                known=job,
            )
        except JobCreationFailed as error:
            reason = error
            return change(ctx, job.namespace, job.job_id, lambda now: refuse(now, reason))
    return None


def _may_start(ctx: Context, run: Run, job: Job) -> bool:
    """Whether a job that is ready may start at once: not past one of higher priority that is held back."""
    if run.max_concurrency is None or not run.hands_out:
        return run.hands_out
    first = ctx.runs.held(run, 1)
    outranked = bool(first) and keys.held_rank(first[0].sk) < RANKS[job.priority]
    return not outranked and ctx.runs.take_slot(run, job.place_in_run)


def _let_go_one(ctx: Context, run: Run, key: keys.Key, freed: list[Job]) -> bool | None:
    """Let a held job go, and add it to `freed`; False when there is nothing to do about it, None when no more may
    run."""
    place = keys.held_place(key.sk)
    job = ctx.jobs.find(run.namespace, id_at(ctx, run, place))
    if job is not None and job.waits_for_run:
        return False  # Somebody is about to hold it back, and its own change has this looked at again.
    if job is not None and job.held:
        if run.max_concurrency is not None and not ctx.runs.take_slot(run, place) and not _retake_slot(ctx, run, place):
            return None

        def decide(now: Job) -> Job:
            return jobs.let_go(now, now=ctx.now(), by=BY) if now.held else now

        with suppress(JobNotFound):
            try:
                now = change(ctx, job.namespace, job.job_id, decide, claims=lambda now: claims_at_release(ctx, now))
                freed.append(now)
            except JobCreationFailed as error:
                why = JobError(code=error.code, message=error.message)
                _refuse_held(ctx, job, why)
    ctx.runs.forget_held(key)
    return True


def _let_owners_go(ctx: Context, run: Run, freed: list[Job]) -> int:
    """Let jobs go that were held back after they had got their place: who is before them would wait for it for ever."""
    standings = standings_of(ctx, run)
    resting = [id_at(ctx, run, owner) for owner in ctx.runs.slots(run) if standings.of(owner) == "waiting"]
    held = [job for job in ctx.jobs.find_many(run.namespace, resting).values() if job.held]
    for job in held:
        key = keys.held_job(run.namespace, run.workflow_id, RANKS[job.priority], job.place_in_run)
        _let_go_one(ctx, run, key, freed)
    return len(held)


def _refuse_held(ctx: Context, job: Job, why: JobError) -> None:
    def decide(now: Job) -> Job:
        if not now.held or now.verdict is None:
            return now
        return jobs.refused(now, now.verdict, why, now=ctx.now(), by=BY)

    log_fate("failed", [change(ctx, job.namespace, job.job_id, decide)])


def _retake_slot(ctx: Context, run: Run, place: int) -> bool:
    """Free what ended jobs were given by whoever heard of them late, and try again."""
    standings = standings_of(ctx, run)
    stale = [owner for owner in ctx.runs.slots(run) if not standings.is_open(owner)]
    if not stale:
        return False
    ctx.runs.free_slots(run, stale)
    return ctx.runs.take_slot(run, place)


def _cancel_losers(ctx: Context, run: Run, standings: Standings, join: int) -> None:
    """The race is over: whoever still runs in it is cancelled, and noted as a loser before."""
    left = losers(standings, join)
    for chunk, places in by_chunk(left).items():
        standings.put(chunk, ctx.runs.note_lost(run.namespace, run.workflow_id, chunk, places))

    def stop(place: int) -> None:
        with suppress(*NO_LONGER_OURS):
            cancel(ctx, run.namespace, id_at(ctx, run, place), by=BY)

    ctx.in_parallel(stop, left)


def _all_over(ctx: Context, run: Run) -> bool:
    return standings_of(ctx, run, whole=True).all_over()
