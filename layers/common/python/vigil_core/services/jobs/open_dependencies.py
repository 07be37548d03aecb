"""The dependencies for which waiting jobs still wait, as `waiting_for` shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Protocol

from vigil_core.domain.jobs.job import Job
from vigil_core.domain.workflows.run_state import RunState
from vigil_core.services.context import UsesDependencies, UsesRuns, UsesThreads


class OpenDependenciesContext(UsesDependencies, UsesRuns, UsesThreads, Protocol):
    """The recorded ends of dependencies, and the graphs and node states of runs."""


def open_dependencies(ctx: OpenDependenciesContext, jobs: Sequence[Job]) -> Mapping[str, Sequence[str]]:
    """Return the open dependencies of the waiting ones among some jobs, by job id: names in a run, otherwise ids.

    1. A dependency counts as open until Vigil has recorded its end, within moments of the end itself.
    2. Jobs that wait for no dependency cost no request. The others cost one request per hundred outside runs, and one
       or two per run.
    """
    outside_runs = [job for job in jobs if job.awaits_dependencies]
    in_runs = sorted((job for job in jobs if job.awaits_run), key=_run_of)
    found: dict[str, Sequence[str]] = {}
    if outside_runs:
        ended_by_job = ctx.dependencies.end_states_of_jobs(outside_runs)
        for job in outside_runs:
            ended = ended_by_job.get(job.job_id, frozenset())
            ids = [dependency.job_id for dependency in job.dependencies.depends_on]
            found[job.job_id] = [job_id for index, job_id in enumerate(ids) if index not in ended]
    runs = [list(members) for _, members in groupby(in_runs, key=_run_of)]
    for names_by_job in ctx.in_parallel(partial(_open_names, ctx), runs):
        found |= names_by_job
    return found


def _run_of(job: Job) -> str:
    return str(job.workflow.workflow_id)


def _open_names(ctx: OpenDependenciesContext, jobs: Sequence[Job]) -> dict[str, Sequence[str]]:
    """Return the open dependencies of jobs of one run. Of a job with very many, only the first are considered."""
    if not any(job.workflow.upstream_names for job in jobs):
        return {job.job_id: [] for job in jobs}
    namespace, workflow_id = jobs[0].namespace, _run_of(jobs[0])
    graph = ctx.runs.graph(namespace, workflow_id)
    run_state = RunState(graph=graph, load_block=partial(ctx.runs.state_block, namespace, workflow_id))
    return {
        job.job_id: [name for name in job.workflow.upstream_names if run_state.end_state(graph.index_of[name]) is None]
        for job in jobs
    }
