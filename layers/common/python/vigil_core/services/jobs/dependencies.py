"""Jobs that wait for other jobs to end: watched by the matcher once they wait, released or skipped when their rule is
decided.

Whoever waits names himself at his dependencies and reads them after; whoever ends is matched after he was written. One
of the two sees the other. How a dependency ended is noted once, so that the same tally decides whoever comes last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from vigil_core.domain.errors import FieldProblem, JobNotFound, MissingDependency
from vigil_core.domain.exact_json import JsonValue, loads
from vigil_core.domain.ids import is_uuid7, job_id_of
from vigil_core.domain.jobs import job as jobs
from vigil_core.domain.jobs.conditions import ConditionError, Input, evaluate
from vigil_core.domain.jobs.dependencies import (
    ENDINGS,
    MAX_DEPENDENCIES,
    Dependency,
    Dependent,
    Ending,
    Tally,
    Verdict,
    ending_of,
    holds,
    verdict_of,
)
from vigil_core.domain.jobs.job import Job
from vigil_core.services.context import Context
from vigil_core.services.jobs.transitions import change
from vigil_core.services.verdict_log import log_judged
from vigil_core.store.jobs.jobs import Bodies

MAX_RESULT_BYTES = 256 * 1024
"""Of all results that a condition or a worker is shown of a job's dependencies, together."""

MAX_NEIGHBOURS = 1_000
"""Shown of the jobs that wait for one."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The jobs that a new job is to depend on, as of now, and how those have ended that have."""

    dependencies: tuple[Dependency, ...] = ()
    endings: tuple[Ending, ...] = ()

    def settle(self, job: Job) -> Job:
        """A job about to be created: ready at once, where its rule holds already and it has no condition."""
        if not job.waits_for_others or job.condition is not None:
            return job
        tally = Tally(total=len(self.dependencies), **{ending: self.endings.count(ending) for ending in ENDINGS})
        if not holds(job.trigger_rule, tally):
            return job
        return jobs.born_ready(job, verdict_of(job.trigger_rule, tally, held=True))


def find_dependencies(ctx: Context, namespace: str, job_ids: Sequence[str]) -> Found:
    """Look at the jobs that a new one is to depend on. Raises MissingDependency, naming each that does not exist."""
    if not job_ids:
        return Found()
    wanted = list(dict.fromkeys(job_ids))
    found = ctx.jobs.find_many(namespace, filter(is_uuid7, wanted))
    missing = [job_id for job_id in wanted if (job := found.get(job_id)) is None or job.deleted]
    if missing:
        raise MissingDependency(
            FieldProblem(
                pointer=f"/depends_on/{job_ids.index(job_id)}",
                detail=f"Job with ID {job_id} not found",
                code=MissingDependency.code,
            )
            for job_id in missing
        )
    endings = (ending_of(found[job_id].status, found[job_id].verdict) for job_id in wanted)
    return Found(
        dependencies=tuple(Dependency(job_id=job_id, known_version=found[job_id].version) for job_id in wanted),
        endings=tuple(ending for ending in endings if ending is not None),
    )


def watch(ctx: Context, job: Job) -> None:
    """See to it that the end of each dependency is heard of, and judge by those that have ended. Can be repeated."""
    ctx.dependencies.put_dependents(job)
    now = ctx.jobs.find_many(job.namespace, (dependency.job_id for dependency in job.depends_on))
    open_ones = [each for each in now.values() if not each.ended and not each.awaited]
    now |= {each.job_id: each for each in ctx.in_parallel(ctx.jobs.mark_awaited, open_ones) if each is not None}
    _judge(ctx, job, ctx.dependencies.record(job, _endings(job, now)))


def decided_since(ctx: Context, job: Job) -> datetime | None:
    """Since when it is certain what is to become of a job that waits for others; None while that is open."""
    now = ctx.jobs.find_many(job.namespace, (dependency.job_id for dependency in job.depends_on))
    noted = list((_endings(job, now) | ctx.dependencies.endings(job)).values())
    tally = Tally(total=len(job.depends_on), **{ending: noted.count(ending) for ending in ENDINGS})
    if holds(job.trigger_rule, tally) is None:
        return None
    return max([job.updated_at, *(each.updated_at for each in now.values() if each.ended)])


def heard(ctx: Context, dependent: Dependent, dependency: Job) -> None:
    """A job has ended on which another depends."""
    ending = ending_of(dependency.status, dependency.verdict)
    assert ending is not None
    job = ctx.jobs.find(dependency.namespace, dependent.job_id)
    if job is not None and job.waits_for_others and job.attempt == dependent.attempt:
        _judge(ctx, job, ctx.dependencies.record(job, {dependent.index: ending}))


def inputs_of(ctx: Context, job: Job) -> list[Input]:
    """The dependencies of a job with their results, at most a hundred; nothing is read for one that has none."""
    if not (job.depends_on or job.comes_after):
        return []
    return inputs_from(ctx, job.namespace, _dependency_names(ctx, job))


def inputs_from(ctx: Context, namespace: str, names: Mapping[str, str]) -> list[Input]:
    """Jobs with their results, given by their ids what they are called; a result that would make them too many bytes is
    left out."""
    found = ctx.jobs.find_many(namespace, names)
    there = [found[job_id] for job_id in names if job_id in found]
    left = MAX_RESULT_BYTES
    inputs: list[Input] = []

    def read(each: Job) -> Bodies:
        return ctx.jobs.bodies(each, payload=False, room=MAX_RESULT_BYTES)

    for each, bodies in zip(there, ctx.in_parallel(read, there), strict=True):
        size = len((bodies.result or "").encode())
        fits = size <= left and bodies.result_url is None
        left -= size if fits else 0
        inputs.append(
            Input(
                name=names[each.job_id],
                status=each.status,
                health=each.health,
                result=bodies.result if fits else None,
                left_out=not fits,
            )
        )
    return inputs


def told_of(inputs: Sequence[Input]) -> dict[str, dict[str, JsonValue]]:
    """Dependencies as whoever runs the job is told of them, by the names by which the job calls them, in its order."""
    return {
        each.name: {
            "status": each.status,
            "job_health": each.health,
            "result": None if each.result is None else loads(each.result),
            "truncated": each.left_out,
        }
        for each in inputs
    }


def neighbours(ctx: Context, job: Job) -> tuple[list[Job], list[Job]]:
    """The jobs on which it depends, and those that wait for it."""
    before = [dependency.job_id for dependency in job.depends_on]
    after = ctx.dependencies.dependents(job.namespace, job.job_id, MAX_NEIGHBOURS)
    if job.workflow_id is not None and job.workflow_place is not None:
        graph = ctx.runs.graph(job.namespace, job.workflow_id)
        before = [job_id_of(job.workflow_id, name) for name in graph.names_before(job.workflow_place)[:MAX_NEIGHBOURS]]
        later = [graph.nodes[place].name for place in graph.dependents[job.workflow_place][:MAX_NEIGHBOURS]]
        after = [*(job_id_of(job.workflow_id, name) for name in later), *after][:MAX_NEIGHBOURS]
    found = {
        job_id: each
        for job_id, each in ctx.jobs.find_many(job.namespace, [*before, *after]).items()
        if not each.deleted
    }
    waiting = [
        found[job_id]
        for job_id in after
        if job_id in found and (found[job_id].waits_for_others or found[job_id].in_run)
    ]
    return [found[job_id] for job_id in before if job_id in found], waiting


def _dependency_names(ctx: Context, job: Job) -> dict[str, str]:
    """By their ids, what a job calls its dependencies: by id, or in a run by name."""
    if job.workflow_id is None or job.workflow_place is None:
        return {dependency.job_id: dependency.job_id for dependency in job.depends_on}
    names = ctx.runs.graph(job.namespace, job.workflow_id).names_before(job.workflow_place)
    return {job_id_of(job.workflow_id, name): name for name in names[:MAX_DEPENDENCIES]}


def _endings(job: Job, now: Mapping[str, Job]) -> dict[int, Ending]:
    """How the dependencies have ended that have, by their numbers. One that is gone counts as cancelled."""
    endings: dict[int, Ending] = {}
    for index, dependency in enumerate(job.depends_on):
        seen = now.get(dependency.job_id)
        ending = "cancelled" if seen is None else ending_of(seen.status, seen.verdict)
        if ending is not None:
            endings[index] = ending
    return endings


def _judge(ctx: Context, job: Job, tally: Tally) -> None:
    held = holds(job.trigger_rule, tally)
    if held is None:
        return
    verdict = verdict_of(job.trigger_rule, tally, held)
    passed, verdict = with_condition(ctx, job, verdict) if held and job.condition else (held, verdict)

    def decide(now: Job) -> Job:
        if not now.waits_for_others or now.attempt != job.attempt:
            return now
        return jobs.judged(now, verdict, met=held, passed=passed, now=ctx.now(), by="matcher")

    with suppress(JobNotFound):
        judged = change(ctx, job.namespace, job.job_id, decide)
        log_judged([] if judged.waits_for_others else [judged])


def with_condition(ctx: Context, job: Job, verdict: Verdict) -> tuple[bool | None, Verdict]:
    """Whether the condition holds, too; None when it cannot be evaluated."""
    try:
        passed = evaluate(str(job.condition), inputs_of(ctx, job))
    except ConditionError as error:
        return None, verdict.because(f"the condition cannot be evaluated: {error}")
    return passed, verdict if passed else verdict.because("the condition is false")
