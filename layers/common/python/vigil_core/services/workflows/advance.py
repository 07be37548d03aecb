"""What follows in a run from how its jobs stand: the matcher hears of them, notes it, and does what is certain now.

Whoever hears of a job notes first and reads the notes on others after, consistently: of two jobs that end at once, the
later one to be noted sees the other. What follows is worked out from the notes alone, so all of it can be repeated, and
is, whenever a process dies in between. What is wide is the fan-out function's, a chunk of jobs at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from vigil_core.domain.errors import JobCreationFailed, JobNotFound
from vigil_core.domain.exact_json import JsonValue, dumps
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.dependencies import Verdict
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.workflows import run as workflows
from vigil_core.domain.workflows.graph import block_numbers, block_of, group_by_block, indexes_in_block
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.domain.workflows.run_state import (
    RunState,
    StateRecord,
    TransitionPlan,
    is_failure,
    losers,
    plan_transitions,
    record_of,
    with_decision,
)
from vigil_core.runtime.tracing import ids_of, traced
from vigil_core.services.context import ChangesRuns, UsesDependencies, UsesMessageQueues, UsesThreads
from vigil_core.services.jobs.dependencies import apply_condition
from vigil_core.services.jobs.transitions import LOST_JOB_ERRORS, cancel, change
from vigil_core.services.locks import locks_for_release
from vigil_core.services.ports import FanOutMessage
from vigil_core.services.verdict_log import log_transition, log_verdicts
from vigil_core.services.workflows.commands import change_run, job_id_at, load_run_state
from vigil_core.store import keys
from vigil_core.store.jobs.job_rows import PRIORITY_RANKS
from vigil_core.store.table import Row
from vigil_core.store.workflows.run_rows import SupervisorToken, run_from_row, supervisor_token_from_row


class AdvanceRunContext(ChangesRuns, UsesDependencies, UsesMessageQueues, UsesThreads, Protocol):
    """What this module uses of the outside world."""


MAX_INLINE_JOBS = 200
"""Up to so many jobs are released and skipped at once; `fan_out` handles more, so that the stream goes on."""
PARKED_BATCH = 25
BLOCKS_PER_MESSAGE = 16
"""Chunks of a message to settle: whoever does has to work out what follows in the whole graph first."""
ACTOR = "matcher"


def on_jobs_changed(ctx: AdvanceRunContext, namespace: str, workflow_id: str, versions: Sequence[Job]) -> None:
    """What follows from these versions of jobs of a run, the newest of each. Can be repeated."""
    run = ctx.runs.find(namespace, workflow_id)
    if run is not None:
        log_fields = ids_of(versions[0]) if len(versions) == 1 else ids_of(run)
        with traced({"action": "follow_jobs", **log_fields}):
            _on_jobs_changed(ctx, run, versions)


def _on_jobs_changed(ctx: AdvanceRunContext, run: WorkflowRun, versions: Sequence[Job]) -> None:
    run_state = load_run_state(ctx, run)
    jobs_by_index = {job.workflow.graph_index: job for job in versions}
    records = {index: record_of(job) for index, job in jobs_by_index.items()}
    if run.failure_policy == "manual" and not run.terminating:
        earlier_state = load_run_state(ctx, run)  # What is read for this is too old for what follows.
        records = {
            index: _as_awaiting_decision(earlier_state, index, state_record) for index, state_record in records.items()
        }
    record_states(ctx, run, run_state, records)
    waiting_indexes = [index for index, job in jobs_by_index.items() if job.awaits_run]
    # What came after a version has been heard of: nothing follows from it any more, least of all in another life. But
    # of a skip nobody hears, and whoever skipped a job that had waited may have died since.
    jobs_by_index = {index: job for index, job in jobs_by_index.items() if _is_latest(run_state, index, job)}
    if run.status == "pending":
        # It may have begun since it was read, and whoever began it have looked before this was noted.
        run = ctx.runs.find(run.namespace, run.workflow_id) or run
    if run.ended or not run.registration_complete:
        return
    ended_indexes = [index for index, job in jobs_by_index.items() if job.ended]
    run = _record_failures(ctx, run, run_state, ended_indexes)
    if run.max_concurrency is not None and ended_indexes:
        ctx.runs.release_slots(run, ended_indexes)
    if run.status != "pending" and not run.terminating:
        for index, job in jobs_by_index.items():
            if run_state.graph.nodes[index].cancel_losers and job.dependencies.status == "satisfied":
                _cancel_losers(ctx, run, run_state, index)
        successors = run_state.graph.successors(ended_indexes)
        for index in waiting_indexes:
            run_state.load_dependencies(index)
        apply_transitions(ctx, run, run_state, [*successors, *waiting_indexes])
        if (run.max_concurrency is not None and ended_indexes) or any(
            job.workflow.parked for job in jobs_by_index.values()
        ):
            release_parked(ctx, run)
    finish_if_drained(ctx, run, run_state, {block_of(index) for index in (*ended_indexes, *waiting_indexes)})


def on_run_changed(ctx: AdvanceRunContext, row: Row, previous_row: Row | None) -> None:
    """What follows from a change of a run's own row: its supervisor is woken, its jobs start. Can be repeated."""
    run = run_from_row(row)
    with traced({"action": "follow_run", **ids_of(run)}):
        _on_run_changed(ctx, run, supervisor_token_from_row(row), previous_row)


def _on_run_changed(
    ctx: AdvanceRunContext, run: WorkflowRun, supervisor_token: SupervisorToken | None, previous_row: Row | None
) -> None:
    if supervisor_token is not None and run.signal_count > supervisor_token.seen_signals and not run.ended:
        ctx.supervisors.wake(supervisor_token.token)
    if run.status != "running" or (previous_row is not None and previous_row["status"] == "running"):
        return
    if previous_row is not None and previous_row["status"] == "pending":
        # Begun anew, what comes after a job that is kept may start as well: nobody will hear of that one again.
        is_rerun = run.generation > 1
        run_state = load_run_state(ctx, run, complete=is_rerun)
        apply_transitions(ctx, run, run_state, range(run.total) if is_rerun else run_state.graph.roots)
        if is_rerun:
            finish_if_drained(ctx, run, load_run_state(ctx, run), block_numbers(run.total)[-1:])
    release_parked(ctx, run)


def record_states(
    ctx: AdvanceRunContext, run: WorkflowRun, run_state: RunState, records: Mapping[int, StateRecord]
) -> None:
    """Note how jobs stand. From then on `standings` has these chunks as they are."""
    for block, indexes in group_by_block(records).items():
        block_records = {index: records[index] for index in indexes}
        run_state.put_block(block, ctx.runs.record_states(run.namespace, run.workflow_id, block, block_records))


def apply_transitions(ctx: AdvanceRunContext, run: WorkflowRun, run_state: RunState, indexes: Iterable[int]) -> None:
    """Carry out what is certain about these jobs, as far as they wait. After skips are noted, those after them are
    looked at again, but for those that were certain before."""
    certain: set[int] = set()
    remaining = list(indexes)
    while remaining:
        plan = plan_transitions(run_state, remaining)
        certain |= plan.decided_indexes
        if len(plan.decided_indexes) > MAX_INLINE_JOBS:
            _defer_to_fan_out(ctx, run, {block_of(index) for index in certain})
            return
        run, run_state, remaining = _apply_plan(ctx, run, run_state, plan, certain)


def apply_transitions_bulk(ctx: AdvanceRunContext, message: Mapping[str, JsonValue]) -> None:
    """The fan-out function's share of what is wide: what is certain about the jobs of some chunks."""
    run = ctx.runs.find(str(message["namespace"]), str(message["workflow_id"]))
    if run is None or run.ended or run.terminating or run.status == "pending":
        return
    run_state = load_run_state(ctx, run, complete=True)
    plan = plan_transitions(run_state, range(run.total))
    indexes = {index for block in block_numbers_in(message) for index in indexes_in_block(block, run.total)}
    # Whoever skipped some of them may have died before he looked at those after them.
    missed_indexes = plan.decided_indexes & set(run_state.graph.successors(plan.already_skipped & indexes))
    indexes |= run_state.graph.downstream(missed_indexes, traverses=plan.decided_indexes.__contains__)
    apply_transitions(ctx, *_apply_plan(ctx, run, run_state, plan.restricted_to(indexes), plan.decided_indexes))
    finish_if_drained(ctx, run, load_run_state(ctx, run), block_numbers_in(message)[:1])


def release_parked(ctx: AdvanceRunContext, run: WorkflowRun) -> None:
    """Let jobs start that were held back, as many as may run at once. What is wide is the fan-out function's."""
    if release_some_parked(ctx, run, lambda count: count < MAX_INLINE_JOBS):
        return
    body: dict[str, JsonValue] = {"kind": "run_held", **ids_of(run)}
    ctx.message_queues.send_fan_out(
        [FanOutMessage(group=f"{run.workflow_id}#held", body=dumps({**body, "at": ctx.now().isoformat()}))]
    )


def release_parked_bulk(
    ctx: AdvanceRunContext, message: Mapping[str, JsonValue], *, has_time_left: Callable[[], bool]
) -> bool:
    """The fan-out function's share of `let_go`; False when time ran out before the end."""
    run = ctx.runs.find(str(message["namespace"]), str(message["workflow_id"]))
    return run is None or release_some_parked(ctx, run, lambda _: has_time_left())


def release_some_parked(ctx: AdvanceRunContext, run: WorkflowRun, should_continue: Callable[[int], bool]) -> bool:
    """Let held jobs go in their order, one after another; whether that was all that can be done now."""
    released: list[Job] = []
    try:
        return _release_next(ctx, run, should_continue, released)
    finally:
        log_transition("let_go", released)


def _release_next(
    ctx: AdvanceRunContext, run: WorkflowRun, should_continue: Callable[[int], bool], released: list[Job]
) -> bool:
    handled_count = 0
    while should_continue(handled_count):
        if not (ctx.runs.find(run.namespace, run.workflow_id) or run).accepts_starts:
            return True
        parked_keys = ctx.runs.parked(run, PARKED_BATCH)
        batch_count = 0
        for key in parked_keys:
            is_handled = _release_one(ctx, run, key, released)
            if is_handled is None:
                batch_count += _release_slot_owners(ctx, run, released)
                break
            batch_count += is_handled
        handled_count += batch_count
        if not batch_count:
            return True
    return False


def finish_if_drained(
    ctx: AdvanceRunContext, run: WorkflowRun, run_state: RunState, changed_blocks: Iterable[int]
) -> None:
    """Tell the run when no job is open any more. Only whoever saw the last job of a chunk end looks at the others. Who
    repeats what somebody did who has died may look at any chunk: of a run that is over each is."""
    if any(map(run_state.block_is_drained, changed_blocks)) and _all_ended(ctx, run):
        change_run(ctx, run.namespace, run.workflow_id, lambda current: workflows.drain(current, now=ctx.now()))


def cancel_block(ctx: AdvanceRunContext, message: Mapping[str, JsonValue]) -> None:
    """The fan-out function's share of cancelling what is left of a run: the jobs of one chunk."""
    run = ctx.runs.find(str(message["namespace"]), str(message["workflow_id"]))
    if run is None or not run.cancelling or run.generation != message["generation"]:
        return
    (block,) = block_numbers_in(message)
    indexes_by_id = {job_id_at(ctx, run, index): index for index in indexes_in_block(block, run.total)}
    jobs_by_id = ctx.jobs.find_many(run.namespace, indexes_by_id)

    def decide(job: Job) -> Job:
        return transitions.cancel(job, now=ctx.now(), actor="supervisor")

    def cancel_open(job: Job) -> Job:
        if not job.ended:
            with suppress(*LOST_JOB_ERRORS):
                return change(ctx, job.namespace, job.job_id, decide, cached=job)
        return ctx.jobs.find(job.namespace, job.job_id) or job

    cancelled_jobs = ctx.in_parallel(cancel_open, jobs_by_id.values())
    run_state = load_run_state(ctx, run)
    records = {indexes_by_id[job.job_id]: record_of(job) for job in cancelled_jobs}
    undecided_indexes = {index for index in records if run_state.state_of(index) == "undecided"}
    record_states(
        ctx,
        run,
        run_state,
        {
            index: with_decision(state_record, state_record.state) if index in undecided_indexes else state_record
            for index, state_record in records.items()
        },
    )
    finish_if_drained(ctx, run, run_state, [block])


def enqueue_blocks(
    ctx: AdvanceRunContext, run: WorkflowRun, kind: str, block_numbers: Iterable[int], *, per_message: int = 1
) -> None:
    """Have the fan-out function do something with each of these chunks, so many a message, side by side."""
    sorted_numbers = sorted(block_numbers)
    run_fields: dict[str, JsonValue] = {**ids_of(run), "generation": run.generation}
    ctx.message_queues.send_fan_out(
        [
            FanOutMessage(
                group=f"{run.workflow_id}#{sorted_numbers[start]}",
                # SQS takes two messages of one text for one; what is to be done now may not have been certain then.
                body=dumps(
                    {
                        "kind": kind,
                        "chunks": sorted_numbers[start : start + per_message],
                        **run_fields,
                        "at": ctx.now().isoformat(),
                    }
                ),
            )
            for start in range(0, len(sorted_numbers), per_message)
        ]
    )


def block_numbers_in(message: Mapping[str, JsonValue]) -> list[int]:
    """The chunks that a message is about."""
    numbers = message["chunks"]
    assert isinstance(numbers, Sequence)
    return [int(str(block)) for block in numbers]


def all_blocks(run: WorkflowRun) -> range:
    """The chunks of a run."""
    return block_numbers(run.total)


def _defer_to_fan_out(ctx: AdvanceRunContext, run: WorkflowRun, block_numbers: Iterable[int]) -> None:
    enqueue_blocks(ctx, run, "run_settle", block_numbers, per_message=BLOCKS_PER_MESSAGE)


def _record_failures(
    ctx: AdvanceRunContext, run: WorkflowRun, run_state: RunState, ended_indexes: Iterable[int]
) -> WorkflowRun:
    """Tell the run of jobs that have failed it. In a run under `manual` this also keeps its jobs from starting."""
    if run.terminating:
        return run
    for index in ended_indexes:
        if is_failure(run_state, index):
            name = run_state.graph.nodes[index].name
            awaits_decision = run_state.state_of(index) == "undecided"
            run = change_run(
                ctx,
                run.namespace,
                run.workflow_id,
                lambda current, name=name, awaits_decision=awaits_decision: workflows.record_failure(
                    current, name, undecided=awaits_decision, now=ctx.now()
                ),  # type: ignore[misc]
            )
    return run


def _is_latest(run_state: RunState, index: int, job: Job) -> bool:
    state_record = run_state.block(block_of(index)).records.get(index)
    return (
        state_record is None
        or state_record.state_version <= with_decision(record_of(job), state_record.state).state_version
    )


def _as_awaiting_decision(run_state: RunState, index: int, state_record: StateRecord) -> StateRecord:
    """A failure that an operator is to decide about, where the run allows no other."""
    if state_record.state not in ("failed", "cancelled") or run_state.lost_race(index):
        return state_record
    run_state.assume(index, state_record.state)
    failed_run = is_failure(run_state, index)
    return StateRecord(state="undecided", state_version=state_record.state_version) if failed_run else state_record


def _apply_plan(
    ctx: AdvanceRunContext, run: WorkflowRun, run_state: RunState, plan: TransitionPlan, certain: Container[int]
) -> tuple[WorkflowRun, RunState, list[int]]:
    """Skip first, and note it, for whoever is released may look at what was skipped; then release. Who is turned away
    by its condition is heard of, as who fails is. Returns the run, how its jobs stand from now on, and who comes after
    those that were skipped, but for those that were certain before."""
    ids_by_index = {index: job_id_at(ctx, run, index) for index in (*plan.skips, *plan.releases)}
    jobs_by_id = ctx.jobs.find_many(run.namespace, ids_by_index.values())

    def apply_rule(index: int) -> Job | None:
        is_satisfied = index in plan.releases
        verdict = plan.releases[index] if is_satisfied else plan.skips[index]
        return _apply_trigger_rule(ctx, run, jobs_by_id.get(ids_by_index[index]), verdict, is_satisfied=is_satisfied)

    skipped = [job for job in ctx.in_parallel(apply_rule, plan.skips) if job is not None]
    record_states(ctx, run, run_state, {job.workflow.graph_index: record_of(job) for job in skipped})
    ranks_by_index = {
        index: PRIORITY_RANKS[jobs_by_id[ids_by_index[index]].priority]
        for index in plan.releases
        if ids_by_index[index] in jobs_by_id
    }
    released: list[Job | None] = []
    for rank in sorted(set(ranks_by_index.values())):  # There may not be a place for all.
        released += ctx.in_parallel(apply_rule, [index for index in ranks_by_index if ranks_by_index[index] == rank])
    waiting_ids = {job_id for job_id, job in jobs_by_id.items() if job.awaits_run}
    changed_jobs = [job for job in (*skipped, *released) if job is not None and not job.awaits_run]
    log_verdicts([job for job in changed_jobs if job.job_id in waiting_ids])
    run, run_state = _propagate_skips(ctx, run, plan)
    return (
        run,
        run_state,
        [successor for successor in run_state.graph.successors(plan.skips) if successor not in certain],
    )


def _propagate_skips(ctx: AdvanceRunContext, run: WorkflowRun, plan: TransitionPlan) -> tuple[WorkflowRun, RunState]:
    """Races that nobody can win any more have failed, also when whoever skipped died before he told; the run may be
    over. Returns the run, and how its jobs stand from now on."""
    run_state = load_run_state(ctx, run)
    changed_blocks = {block_of(index) for index in plan.skips}
    for block in changed_blocks:
        run_state.block(block)  # Else what was skipped is not among what those after it are judged by.
    for join_index in (
        index for index in (*plan.skips, *plan.already_skipped) if run_state.graph.nodes[index].cancel_losers
    ):
        run = _record_failures(ctx, run, run_state, run_state.graph.nodes[join_index].depends_on)
    finish_if_drained(ctx, run, run_state, changed_blocks)
    return run, run_state


def _apply_trigger_rule(
    ctx: AdvanceRunContext, run: WorkflowRun, job: Job | None, verdict: Verdict, *, is_satisfied: bool
) -> Job | None:
    """What a verdict makes of a job, if it still waits; the job as it is then."""
    if job is None or not job.awaits_run:
        return job
    index = job.workflow.graph_index
    passed, verdict = (
        apply_condition(ctx, job, verdict) if is_satisfied and job.dependencies.condition else (is_satisfied, verdict)
    )
    parked = bool(passed) and not _try_acquire_slot(ctx, run, job)
    if parked:
        ctx.runs.park(run.namespace, run.workflow_id, job.priority, index)

    def decide(current: Job) -> Job:
        if not current.awaits_run or current.attempt != job.attempt:
            return current
        return transitions.apply_verdict(
            current,
            verdict,
            is_satisfied=is_satisfied,
            condition_result=passed,
            parked=parked,
            now=ctx.now(),
            actor=ACTOR,
        )

    def fail_start(current: Job, error: JobCreationFailed) -> Job:
        if not current.awaits_run or current.attempt != job.attempt:
            return current
        job_error = JobError(code=error.code, message=error.message)
        return transitions.fail_before_start(current, verdict, job_error, now=ctx.now(), actor=ACTOR)

    with suppress(JobNotFound):
        try:
            starts = bool(passed) and not parked
            return change(
                ctx,
                job.namespace,
                job.job_id,
                decide,
                lock_acquisitions=lambda current: (
                    locks_for_release(ctx, current) if starts and current.awaits_run else []
                ),
                cached=job,
            )
        except JobCreationFailed as error:
            creation_error = error
            return change(ctx, job.namespace, job.job_id, lambda current: fail_start(current, creation_error))
    return None


def _try_acquire_slot(ctx: AdvanceRunContext, run: WorkflowRun, job: Job) -> bool:
    """Whether a job that is ready may start at once: not past one of higher priority that is held back."""
    if run.max_concurrency is None or not run.accepts_starts:
        return run.accepts_starts
    first_parked = ctx.runs.parked(run, 1)
    is_outranked = bool(first_parked) and keys.parked_rank(first_parked[0].sk) < PRIORITY_RANKS[job.priority]
    return not is_outranked and ctx.runs.acquire_slot(run, job.workflow.graph_index)


def _release_one(ctx: AdvanceRunContext, run: WorkflowRun, key: keys.Key, released: list[Job]) -> bool | None:
    """Let a held job go, and add it to `freed`; False when there is nothing to do about it, None when no more may
    run."""
    index = keys.parked_index(key.sk)
    job = ctx.jobs.find(run.namespace, job_id_at(ctx, run, index))
    if job is not None and job.awaits_run:
        return False  # Somebody is about to hold it back, and its own change has this looked at again.
    if job is not None and job.workflow.parked:
        if (
            run.max_concurrency is not None
            and not ctx.runs.acquire_slot(run, index)
            and not _reclaim_leaked_slots(ctx, run, index)
        ):
            return None

        def decide(current: Job) -> Job:
            return transitions.unpark(current, now=ctx.now(), actor=ACTOR) if current.workflow.parked else current

        with suppress(JobNotFound):
            try:
                released_job = change(
                    ctx,
                    job.namespace,
                    job.job_id,
                    decide,
                    lock_acquisitions=lambda current: locks_for_release(ctx, current),
                )
                released.append(released_job)
            except JobCreationFailed as error:
                job_error = JobError(code=error.code, message=error.message)
                _fail_parked(ctx, job, job_error)
    ctx.runs.unpark(key)
    return True


def _release_slot_owners(ctx: AdvanceRunContext, run: WorkflowRun, released: list[Job]) -> int:
    """Let jobs go that were held back after they had got their place: who is before them would wait for it for ever."""
    run_state = load_run_state(ctx, run)
    waiting_ids = [
        job_id_at(ctx, run, owner) for owner in ctx.runs.slot_owners(run) if run_state.state_of(owner) == "waiting"
    ]
    parked_jobs = [job for job in ctx.jobs.find_many(run.namespace, waiting_ids).values() if job.workflow.parked]
    for job in parked_jobs:
        key = keys.parked_job(run.namespace, run.workflow_id, PRIORITY_RANKS[job.priority], job.workflow.graph_index)
        _release_one(ctx, run, key, released)
    return len(parked_jobs)


def _fail_parked(ctx: AdvanceRunContext, job: Job, job_error: JobError) -> None:
    def decide(current: Job) -> Job:
        if not current.workflow.parked or current.dependencies.verdict is None:
            return current
        return transitions.fail_before_start(
            current, current.dependencies.verdict, job_error, now=ctx.now(), actor=ACTOR
        )

    log_transition("failed", [change(ctx, job.namespace, job.job_id, decide)])


def _reclaim_leaked_slots(ctx: AdvanceRunContext, run: WorkflowRun, index: int) -> bool:
    """Free what ended jobs were given by whoever heard of them late, and try again."""
    run_state = load_run_state(ctx, run)
    leaked_slots = [owner for owner in ctx.runs.slot_owners(run) if not run_state.is_open(owner)]
    if not leaked_slots:
        return False
    ctx.runs.release_slots(run, leaked_slots)
    return ctx.runs.acquire_slot(run, index)


def _cancel_losers(ctx: AdvanceRunContext, run: WorkflowRun, run_state: RunState, join_index: int) -> None:
    """The race is over: whoever still runs in it is cancelled, and noted as a loser before."""
    loser_indexes = losers(run_state, join_index)
    for block, indexes in group_by_block(loser_indexes).items():
        run_state.put_block(block, ctx.runs.record_race_losers(run.namespace, run.workflow_id, block, indexes))

    def cancel_loser(index: int) -> None:
        with suppress(*LOST_JOB_ERRORS):
            cancel(ctx, run.namespace, job_id_at(ctx, run, index), actor=ACTOR)

    ctx.in_parallel(cancel_loser, loser_indexes)


def _all_ended(ctx: AdvanceRunContext, run: WorkflowRun) -> bool:
    return load_run_state(ctx, run, complete=True).is_drained()
