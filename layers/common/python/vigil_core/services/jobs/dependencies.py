"""Dependencies of jobs outside a run: registration, trigger rules, release and skip.

No end of a dependency is missed:

1. The waiting job first writes its dependent rows, one at each dependency, and then reads the dependencies.
2. A dependency first writes its end, and the stream then delivers it to the matcher, which reads the dependent rows.
3. If the end is written before the read of step 1, the waiting job sees it. Otherwise the matcher sees the dependent
   row. At least one of the two records the end.

Each end state is recorded once, so every process that evaluates the trigger rule last sees the same counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from vigil_core.domain.errors import FieldProblem, JobNotFound, MissingDependency
from vigil_core.domain.ids import is_uuid7, workflow_job_id
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.conditions import ConditionError, evaluate, select_jobs
from vigil_core.domain.jobs.dependencies import Dependency, Dependent
from vigil_core.domain.jobs.dependency_results import ResultUnreadable
from vigil_core.domain.jobs.job import CONDITION_FAILED, Job, JobError
from vigil_core.domain.jobs.trigger_rules import (
    FAILED_END_STATES,
    DependencyCounts,
    EndState,
    Verdict,
    end_state_of,
    evaluate_rule,
    rule_verdict,
)
from vigil_core.runtime.failures import contain, error_name
from vigil_core.services.context import ChangesJobs, UsesDependencies, UsesExpressions, UsesRuns, UsesThreads
from vigil_core.services.jobs.dependency_results import dependency_ids, load_all_results
from vigil_core.services.jobs.transitions import change
from vigil_core.services.verdict_log import log_verdicts


class RelatedJobsContext(ChangesJobs, UsesDependencies, UsesRuns, UsesThreads, Protocol):
    """The collaborators that read dependencies and dependents."""


class DependenciesContext(RelatedJobsContext, UsesExpressions, Protocol):
    """The collaborators of dependencies."""


MAX_RELATED_JOBS = 1_000
"""The number of dependents that a job shows."""


@dataclass(frozen=True, kw_only=True)
class ResolvedDependencies:
    """The dependencies of a new job with their current versions, and the end states of the ended ones."""

    dependencies: tuple[Dependency, ...] = ()
    end_states: tuple[EndState, ...] = ()
    failures: tuple[str, ...] = ()
    """The ids of the failed and the cancelled dependencies."""

    def ready_now(self, job: Job) -> Job:
        """Make an unsaved new job `pending` if its trigger rule is satisfied already and it has no condition."""
        if not job.awaits_dependencies or job.dependencies.condition is not None:
            return job
        counts = DependencyCounts.of(len(self.dependencies), Counter(self.end_states), self.failures)
        if not evaluate_rule(job.dependencies.trigger_rule, counts):
            return job
        return transitions.create_ready(job, rule_verdict(job.dependencies.trigger_rule, counts, is_satisfied=True))


def resolve_dependencies(ctx: RelatedJobsContext, namespace: str, job_ids: Sequence[str]) -> ResolvedDependencies:
    """Read the dependencies of a new job.

    Raises:
        MissingDependency: Some of them do not exist; the error has one problem for each.
    """
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
    end_states = {
        job_id: end_state_of(jobs_by_id[job_id].status, jobs_by_id[job_id].dependencies.verdict)
        for job_id in unique_ids
    }
    return ResolvedDependencies(
        dependencies=tuple(
            Dependency(job_id=job_id, known_version=jobs_by_id[job_id].version) for job_id in unique_ids
        ),
        end_states=tuple(end_state for end_state in end_states.values() if end_state is not None),
        failures=tuple(job_id for job_id, end_state in end_states.items() if end_state in FAILED_END_STATES),
    )


def register_with_dependencies(ctx: DependenciesContext, job: Job) -> None:
    """Register a waiting or scheduled job with its dependencies. Can be repeated.

    1. Write a dependent row at each dependency.
    2. Read the dependencies, and mark the open ones so that the matcher receives their versions. A mark returns the
       dependency after the write, so an end between read and mark is not missed.
    3. Record the end states of the ended ones, and apply the trigger rule to the counts.

    If the process crashes, the stream delivers the version again and all steps run again. A scheduled job registers
    again at its start time: until then, its dependencies can skip it, but not release it.
    """
    ctx.dependencies.put_dependents(job)
    jobs_by_id = ctx.jobs.find_many(job.namespace, (dependency.job_id for dependency in job.dependencies.depends_on))
    unmarked = [other for other in jobs_by_id.values() if not other.ended and not other.has_waits]
    jobs_by_id |= {
        other.job_id: other for other in ctx.in_parallel(ctx.jobs.mark_has_waits, unmarked) if other is not None
    }
    _apply_trigger_rule(ctx, job, ctx.dependencies.record_end_states(job, _end_states(job, jobs_by_id)))


def verdict_at(ctx: DependenciesContext, job: Job) -> datetime | None:
    """Return the time since which the trigger rule of a waiting job is decided; None if it is undecided."""
    jobs_by_id = ctx.jobs.find_many(job.namespace, (dependency.job_id for dependency in job.dependencies.depends_on))
    end_states = list((_end_states(job, jobs_by_id) | ctx.dependencies.end_states(job)).values())
    counts = DependencyCounts.of(len(job.dependencies.depends_on), Counter(end_states))
    if evaluate_rule(job.dependencies.trigger_rule, counts) is None:
        return None
    return max([job.updated_at, *(other.updated_at for other in jobs_by_id.values() if other.ended)])


def on_dependency_finished(ctx: DependenciesContext, dependent: Dependent, dependency: Job) -> None:
    """Record the end of a dependency, and apply the trigger rule of the dependent."""
    end_state = end_state_of(dependency.status, dependency.dependencies.verdict)
    assert end_state is not None
    job = ctx.jobs.find(dependency.namespace, dependent.job_id)
    if job is not None and job.can_be_skipped and job.attempt == dependent.attempt:
        _apply_trigger_rule(ctx, job, ctx.dependencies.record_end_states(job, {dependent.index: end_state}))


def register_waiting_job(ctx: DependenciesContext, namespace: str, job_id: str) -> None:
    """Register a job with its dependencies if it still waits for them."""
    job = ctx.jobs.find(namespace, job_id)
    if job is not None and job.awaits_dependencies:
        register_with_dependencies(ctx, job)


@dataclass(frozen=True, kw_only=True)
class RelatedJobs:
    """The dependencies and the dependents of a job, up to a limit each."""

    upstream: Sequence[Job]
    downstream: Sequence[Job]
    truncated: bool
    """Whether the limit leaves out a job."""


def related_jobs(ctx: RelatedJobsContext, job: Job) -> RelatedJobs:
    """Read the dependencies and the dependents of a job."""
    upstream_ids = [dependency.job_id for dependency in job.dependencies.depends_on]
    downstream_ids = ctx.dependencies.dependents(job.namespace, job.job_id, MAX_RELATED_JOBS + 1)
    if job.workflow.workflow_id is not None and job.workflow.index is not None:
        graph = ctx.runs.graph(job.namespace, job.workflow.workflow_id)
        upstream_ids = [
            workflow_job_id(job.workflow.workflow_id, name) for name in graph.dependency_names(job.workflow.index)
        ]
        successor_names = [graph.nodes[index].name for index in graph.dependents[job.workflow.index]]
        downstream_ids = [
            *(workflow_job_id(job.workflow.workflow_id, name) for name in successor_names),
            *downstream_ids,
        ]
    truncated = max(len(upstream_ids), len(downstream_ids)) > MAX_RELATED_JOBS
    upstream_ids, downstream_ids = upstream_ids[:MAX_RELATED_JOBS], downstream_ids[:MAX_RELATED_JOBS]
    jobs_by_id = {
        job_id: other
        for job_id, other in ctx.jobs.find_many(job.namespace, [*upstream_ids, *downstream_ids]).items()
        if not other.deleted
    }
    downstream_jobs = [
        jobs_by_id[job_id]
        for job_id in downstream_ids
        if job_id in jobs_by_id and (jobs_by_id[job_id].can_be_skipped or jobs_by_id[job_id].workflow.in_run)
    ]
    return RelatedJobs(
        upstream=[jobs_by_id[job_id] for job_id in upstream_ids if job_id in jobs_by_id],
        downstream=downstream_jobs,
        truncated=truncated,
    )


def _end_states(job: Job, jobs_by_id: Mapping[str, Job]) -> dict[int, EndState]:
    """Return the end states of the ended dependencies by index. A dependency that is gone counts as cancelled."""
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
    """Release, skip or fail a waiting job, or skip a scheduled one, if the counts decide its trigger rule."""
    is_satisfied = evaluate_rule(job.dependencies.trigger_rule, counts)
    if is_satisfied is None or (is_satisfied and not job.awaits_dependencies):
        return
    verdict = rule_verdict(job.dependencies.trigger_rule, counts, is_satisfied)
    passed, verdict = (
        apply_condition(ctx, job, verdict) if is_satisfied and job.dependencies.condition else (is_satisfied, verdict)
    )

    def decide(current: Job) -> Job:
        may_change = current.awaits_dependencies if is_satisfied else current.can_be_skipped
        if not may_change or current.attempt != job.attempt:
            return current
        return transitions.apply_verdict(
            current, verdict, is_satisfied=is_satisfied, condition_result=passed, now=ctx.now(), actor="matcher"
        )

    with suppress(JobNotFound):
        updated = change(ctx, job.namespace, job.job_id, decide)
        log_verdicts([] if updated.can_be_skipped else [updated])


def apply_condition(ctx: DependenciesContext, job: Job, verdict: Verdict) -> tuple[bool | JobError, Verdict]:
    """Evaluate the condition of a job; the first value is the reason of the failure if it cannot be evaluated.

    Only the results that the condition needs are read.

    Raises:
        ExpressionsDeferred: `fan_out` must evaluate it.
    """

    def failed(code: str, reason: str) -> tuple[JobError, Verdict]:
        # The reason can quote a literal of the condition, which may contain half of a surrogate pair.
        text = reason.encode(errors="replace").decode()
        failed_verdict = verdict.with_reason(f"the condition cannot be evaluated: {text}")
        return JobError(code=code, message=failed_verdict.reason), failed_verdict

    def evaluate_now() -> tuple[bool | JobError, Verdict]:
        condition = str(job.dependencies.condition)
        try:
            ctx.expressions.require_share(job.namespace)
            ids_by_name = dependency_ids(ctx, job)
            needed = {name: ids_by_name[name] for name in select_jobs(condition, list(ids_by_name))}
            results = load_all_results(ctx, job.namespace, needed)
            with ctx.expressions.measure(job.namespace) as cpu:
                passed = evaluate(condition, results, cpu)
        except (ConditionError, ResultUnreadable) as error:
            return failed(error.code if isinstance(error, ResultUnreadable) else CONDITION_FAILED, str(error))
        return passed, verdict if passed else verdict.with_reason("the condition is false")

    return contain(evaluate_now, lambda error: failed(CONDITION_FAILED, error_name(error)))
