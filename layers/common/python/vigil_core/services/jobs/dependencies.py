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
from typing import Protocol

from vigil_core.domain.errors import FieldProblem, JobNotFound, MissingDependency
from vigil_core.domain.exact_json import JsonValue, loads
from vigil_core.domain.ids import is_uuid7, workflow_job_id
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.conditions import ConditionError, DependencyResult, evaluate
from vigil_core.domain.jobs.dependencies import (
    END_STATES,
    MAX_DEPENDENCIES,
    Dependency,
    DependencyCounts,
    Dependent,
    EndState,
    Verdict,
    end_state_of,
    evaluate_rule,
    rule_verdict,
)
from vigil_core.domain.jobs.job import Job
from vigil_core.services.context import ChangesJobs, UsesDependencies, UsesRuns, UsesThreads
from vigil_core.services.jobs.transitions import change
from vigil_core.services.verdict_log import log_verdicts
from vigil_core.store.jobs.jobs import JobPayloads


class DependenciesContext(ChangesJobs, UsesDependencies, UsesRuns, UsesThreads, Protocol):
    """What this module uses of the outside world."""


MAX_RESULT_BYTES = 256 * 1024
"""Of all results that a condition or a worker is shown of a job's dependencies, together."""

MAX_RELATED_JOBS = 1_000
"""Shown of the jobs that wait for one."""


@dataclass(frozen=True, kw_only=True)
class ResolvedDependencies:
    """The jobs that a new job is to depend on, as of now, and how those have ended that have."""

    dependencies: tuple[Dependency, ...] = ()
    end_states: tuple[EndState, ...] = ()

    def ready_now(self, job: Job) -> Job:
        """A job about to be created: ready at once, where its rule holds already and it has no condition."""
        if not job.awaits_dependencies or job.dependencies.condition is not None:
            return job
        counts = DependencyCounts(
            total=len(self.dependencies), **{end_state: self.end_states.count(end_state) for end_state in END_STATES}
        )
        if not evaluate_rule(job.dependencies.trigger_rule, counts):
            return job
        return transitions.create_ready(job, rule_verdict(job.dependencies.trigger_rule, counts, is_satisfied=True))


def resolve_dependencies(ctx: DependenciesContext, namespace: str, job_ids: Sequence[str]) -> ResolvedDependencies:
    """Look at the jobs that a new one is to depend on. Raises MissingDependency, naming each that does not exist."""
    if not job_ids:
        return ResolvedDependencies()
    unique_ids = list(dict.fromkeys(job_ids))
    jobs_by_id = ctx.jobs.find_many(namespace, filter(is_uuid7, unique_ids))
    missing_ids = [job_id for job_id in unique_ids if (job := jobs_by_id.get(job_id)) is None or job.deleted]
    if missing_ids:
        raise MissingDependency(
            FieldProblem(
                pointer=f"/depends_on/{job_ids.index(job_id)}",
                detail=f"Job with ID {job_id} not found",
                code=MissingDependency.code,
            )
            for job_id in missing_ids
        )
    end_states = (
        end_state_of(jobs_by_id[job_id].status, jobs_by_id[job_id].dependencies.verdict) for job_id in unique_ids
    )
    return ResolvedDependencies(
        dependencies=tuple(
            Dependency(job_id=job_id, known_version=jobs_by_id[job_id].version) for job_id in unique_ids
        ),
        end_states=tuple(end_state for end_state in end_states if end_state is not None),
    )


def register_with_dependencies(ctx: DependenciesContext, job: Job) -> None:
    """See to it that the end of each dependency is heard of, and judge by those that have ended. Can be repeated."""
    ctx.dependencies.put_dependents(job)
    jobs_by_id = ctx.jobs.find_many(job.namespace, (dependency.job_id for dependency in job.dependencies.depends_on))
    unmarked = [other for other in jobs_by_id.values() if not other.ended and not other.has_waits]
    jobs_by_id |= {
        other.job_id: other for other in ctx.in_parallel(ctx.jobs.mark_has_waits, unmarked) if other is not None
    }
    _apply_trigger_rule(ctx, job, ctx.dependencies.record_end_states(job, _end_states(job, jobs_by_id)))


def verdict_at(ctx: DependenciesContext, job: Job) -> datetime | None:
    """Since when it is certain what is to become of a job that waits for others; None while that is open."""
    jobs_by_id = ctx.jobs.find_many(job.namespace, (dependency.job_id for dependency in job.dependencies.depends_on))
    end_states = list((_end_states(job, jobs_by_id) | ctx.dependencies.end_states(job)).values())
    counts = DependencyCounts(
        total=len(job.dependencies.depends_on), **{end_state: end_states.count(end_state) for end_state in END_STATES}
    )
    if evaluate_rule(job.dependencies.trigger_rule, counts) is None:
        return None
    return max([job.updated_at, *(other.updated_at for other in jobs_by_id.values() if other.ended)])


def on_dependency_finished(ctx: DependenciesContext, dependent: Dependent, dependency: Job) -> None:
    """A job has ended on which another depends."""
    end_state = end_state_of(dependency.status, dependency.dependencies.verdict)
    assert end_state is not None
    job = ctx.jobs.find(dependency.namespace, dependent.job_id)
    if job is not None and job.awaits_dependencies and job.attempt == dependent.attempt:
        _apply_trigger_rule(ctx, job, ctx.dependencies.record_end_states(job, {dependent.index: end_state}))


def load_dependency_results(ctx: DependenciesContext, job: Job) -> list[DependencyResult]:
    """The dependencies of a job with their results, at most a hundred; nothing is read for one that has none."""
    if not (job.dependencies.depends_on or job.workflow.upstream_names):
        return []
    return load_results(ctx, job.namespace, _dependency_names(ctx, job))


def load_results(ctx: DependenciesContext, namespace: str, names_by_id: Mapping[str, str]) -> list[DependencyResult]:
    """Jobs with their results, given by their ids what they are called; a result that would make them too many bytes is
    left out."""
    jobs_by_id = ctx.jobs.find_many(namespace, names_by_id)
    existing_jobs = [jobs_by_id[job_id] for job_id in names_by_id if job_id in jobs_by_id]
    bytes_left = MAX_RESULT_BYTES
    results: list[DependencyResult] = []

    def read(job: Job) -> JobPayloads:
        return ctx.jobs.payloads(job, payload=False, max_bytes=MAX_RESULT_BYTES)

    for job, bodies in zip(existing_jobs, ctx.in_parallel(read, existing_jobs), strict=True):
        size = len((bodies.result or "").encode())
        fits = size <= bytes_left and bodies.result_url is None
        bytes_left -= size if fits else 0
        results.append(
            DependencyResult(
                name=names_by_id[job.job_id],
                status=job.status,
                health=job.health,
                result=bodies.result if fits else None,
                truncated=not fits,
            )
        )
    return results


def dependency_results_json(results: Sequence[DependencyResult]) -> dict[str, dict[str, JsonValue]]:
    """Dependencies as whoever runs the job is told of them, by the names by which the job calls them, in its order."""
    return {
        result.name: {
            "status": result.status,
            "job_health": result.health,
            "result": None if result.result is None else loads(result.result),
            "truncated": result.truncated,
        }
        for result in results
    }


def upstream_and_downstream(ctx: DependenciesContext, job: Job) -> tuple[list[Job], list[Job]]:
    """The jobs on which it depends, and those that wait for it."""
    upstream_ids = [dependency.job_id for dependency in job.dependencies.depends_on]
    downstream_ids = ctx.dependencies.dependents(job.namespace, job.job_id, MAX_RELATED_JOBS)
    if job.workflow.workflow_id is not None and job.workflow.index is not None:
        graph = ctx.runs.graph(job.namespace, job.workflow.workflow_id)
        upstream_ids = [
            workflow_job_id(job.workflow.workflow_id, name)
            for name in graph.dependency_names(job.workflow.index)[:MAX_RELATED_JOBS]
        ]
        successor_names = [graph.nodes[index].name for index in graph.dependents[job.workflow.index][:MAX_RELATED_JOBS]]
        downstream_ids = [
            *(workflow_job_id(job.workflow.workflow_id, name) for name in successor_names),
            *downstream_ids,
        ][:MAX_RELATED_JOBS]
    jobs_by_id = {
        job_id: other
        for job_id, other in ctx.jobs.find_many(job.namespace, [*upstream_ids, *downstream_ids]).items()
        if not other.deleted
    }
    downstream_jobs = [
        jobs_by_id[job_id]
        for job_id in downstream_ids
        if job_id in jobs_by_id and (jobs_by_id[job_id].awaits_dependencies or jobs_by_id[job_id].workflow.in_run)
    ]
    return [jobs_by_id[job_id] for job_id in upstream_ids if job_id in jobs_by_id], downstream_jobs


def _dependency_names(ctx: DependenciesContext, job: Job) -> dict[str, str]:
    """By their ids, what a job calls its dependencies: by id, or in a run by name."""
    if job.workflow.workflow_id is None or job.workflow.index is None:
        return {dependency.job_id: dependency.job_id for dependency in job.dependencies.depends_on}
    names = ctx.runs.graph(job.namespace, job.workflow.workflow_id).dependency_names(job.workflow.index)
    return {workflow_job_id(job.workflow.workflow_id, name): name for name in names[:MAX_DEPENDENCIES]}


def _end_states(job: Job, jobs_by_id: Mapping[str, Job]) -> dict[int, EndState]:
    """How the dependencies have ended that have, by their numbers. One that is gone counts as cancelled."""
    end_states: dict[int, EndState] = {}
    for index, dependency in enumerate(job.dependencies.depends_on):
        dependency_job = jobs_by_id.get(dependency.job_id)
        end_state = (
            "cancelled"
            if dependency_job is None
            else end_state_of(dependency_job.status, dependency_job.dependencies.verdict)
        )
        if end_state is not None:
            end_states[index] = end_state
    return end_states


def _apply_trigger_rule(ctx: DependenciesContext, job: Job, counts: DependencyCounts) -> None:
    is_satisfied = evaluate_rule(job.dependencies.trigger_rule, counts)
    if is_satisfied is None:
        return
    verdict = rule_verdict(job.dependencies.trigger_rule, counts, is_satisfied)
    passed, verdict = (
        apply_condition(ctx, job, verdict) if is_satisfied and job.dependencies.condition else (is_satisfied, verdict)
    )

    def decide(current: Job) -> Job:
        if not current.awaits_dependencies or current.attempt != job.attempt:
            return current
        return transitions.apply_verdict(
            current, verdict, is_satisfied=is_satisfied, condition_result=passed, now=ctx.now(), actor="matcher"
        )

    with suppress(JobNotFound):
        updated = change(ctx, job.namespace, job.job_id, decide)
        log_verdicts([] if updated.awaits_dependencies else [updated])


def apply_condition(ctx: DependenciesContext, job: Job, verdict: Verdict) -> tuple[bool | None, Verdict]:
    """Whether the condition holds, too; None when it cannot be evaluated."""
    try:
        passed = evaluate(str(job.dependencies.condition), load_dependency_results(ctx, job))
    except ConditionError as error:
        return None, verdict.with_reason(f"the condition cannot be evaluated: {error}")
    return passed, verdict if passed else verdict.with_reason("the condition is false")
