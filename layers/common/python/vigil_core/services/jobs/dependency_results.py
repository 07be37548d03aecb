"""Read the results of dependencies, for workers, conditions, joins, outputs and templates.

Each reader has its limits, and no reader replaces data by null:

- A claim and the event of a function contain the first dependencies, and mark everything that is left out.
- A page of dependencies ends before the result that does not fit.
- A condition, a join, an output or a template reads all results that it needs, or fails with the name of the limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from vigil_core.domain.errors import MalformedRequest, ValidationFailed
from vigil_core.domain.exact_json import MAX_STORED_DEPTH, JsonValue, dumps, loads, loads_stored, nesting_depth
from vigil_core.domain.ids import workflow_job_id
from vigil_core.domain.jobs.conditions import DependencyResult
from vigil_core.domain.jobs.dependency_results import (
    MAX_CLAIM_BYTES,
    MAX_EXPRESSION_BYTES,
    MAX_EXPRESSION_DEPENDENCIES,
    MAX_INLINE_BYTES,
    MAX_INLINE_DEPENDENCIES,
    MAX_PAGE_BYTES,
    InlineResults,
    ResultTooLarge,
    ResultUnavailable,
)
from vigil_core.domain.jobs.job import Job
from vigil_core.services.context import UsesJobs, UsesRuns
from vigil_core.store.jobs.payloads import StoredResult

JOBS_PER_READ = 100
"""The number of jobs that one request reads."""


class DependencyResultsContext(UsesJobs, UsesRuns, Protocol):
    """The jobs, and the graphs of runs, which name the dependencies."""


def dependency_ids(ctx: DependencyResultsContext, job: Job) -> dict[str, str]:
    """Return the ids of a job's dependencies by name, in the job's order.

    Outside a run, the name is the id. A job without dependencies costs no request.
    """
    if not (job.dependencies.depends_on or job.workflow.upstream_names):
        return {}
    if job.workflow.workflow_id is None or job.workflow.index is None:
        return {dependency.job_id: dependency.job_id for dependency in job.dependencies.depends_on}
    names = ctx.runs.graph(job.namespace, job.workflow.workflow_id).dependency_names(job.workflow.index)
    return {name: workflow_job_id(job.workflow.workflow_id, name) for name in names}


def load_inline_results(ctx: DependencyResultsContext, job: Job, *, max_bytes: int = MAX_INLINE_BYTES) -> InlineResults:
    """Read the first dependencies of a job with their results. A result that does not fit is marked."""
    ids_by_name = dependency_ids(ctx, job)
    names = list(ids_by_name)[:MAX_INLINE_DEPENDENCIES]
    results = [
        result for result, _ in _read(ctx, job.namespace, {name: ids_by_name[name] for name in names}, max_bytes)
    ]
    truncated = len(names) < len(ids_by_name) or any(result.truncated for result in results)
    return InlineResults(results=results, truncated=truncated)


def load_claimed_results(ctx: DependencyResultsContext, jobs: Sequence[Job]) -> list[InlineResults]:
    """Read the first dependencies of each job of a claim. The first jobs use the size of the answer first."""
    bytes_left = MAX_CLAIM_BYTES
    results_by_job: list[InlineResults] = []
    for job in jobs:
        inline = load_inline_results(ctx, job, max_bytes=min(MAX_INLINE_BYTES, bytes_left))
        bytes_left -= sum(len((result.result or "").encode()) for result in inline.results)
        results_by_job.append(inline)
    return results_by_job


def load_results_page(
    ctx: DependencyResultsContext, job: Job, *, start: int, page_size: int
) -> tuple[list[DependencyResult], int | None]:
    """Read a page of a job's dependencies with their results.

    The page ends before the first result that does not fit. Only a result that is too large for a page of its own, or
    was uploaded, is marked.

    Returns:
        The page, and the index at which the next page starts, or None at the end.
    """
    ids_by_name = dependency_ids(ctx, job)
    names = list(ids_by_name)[start : start + page_size]
    page: list[DependencyResult] = []
    taken = 0
    for result, stored in _read(ctx, job.namespace, {name: ids_by_name[name] for name in names}, MAX_PAGE_BYTES):
        if stored.is_over_limit and any(earlier.result is not None for earlier in page) and not stored.is_upload:
            break
        page.append(result)
        taken = names.index(result.name) + 1
    else:
        taken = len(names)
    return page, start + taken if start + taken < len(ids_by_name) else None


def load_all_results(
    ctx: DependencyResultsContext, namespace: str, ids_by_name: Mapping[str, str]
) -> list[DependencyResult]:
    """Read jobs with all their results, for a reader that needs each of them.

    Raises:
        ResultTooLarge: There are too many jobs, or their results are too large together.
        ResultUnavailable: A job or its result no longer exists, or a client uploaded a result that is not JSON.
    """
    if len(ids_by_name) > MAX_EXPRESSION_DEPENDENCIES:
        raise ResultTooLarge.by_count(len(ids_by_name))
    results: list[DependencyResult] = []
    for result, stored in _read(ctx, namespace, ids_by_name, MAX_EXPRESSION_BYTES, uploads=True):
        if stored.is_over_limit:
            raise ResultTooLarge.by_size(result.name)
        if stored.is_missing:
            raise ResultUnavailable(f"The result of job {result.name} no longer exists")
        results.append(_checked(result) if stored.is_upload else result)
    if len(results) < len(ids_by_name):
        missing = next(iter(ids_by_name.keys() - {result.name for result in results}))
        raise ResultUnavailable(f"Job {missing} no longer exists")
    return results


def dependency_results_json(results: Sequence[DependencyResult]) -> dict[str, dict[str, JsonValue]]:
    """Build the `dependencies` member that the job's worker or function receives, by name, in the job's order."""
    return {
        result.name: {
            "job_id": result.job_id,
            "status": result.status,
            "job_health": result.health,
            "result": None if result.result is None else loads_stored(result.result),
            "truncated": result.truncated,
        }
        for result in results
    }


def results_by_name_text(results: Sequence[DependencyResult]) -> str:
    """Return the JSON text of all results by name. The text of each result is not parsed.

    Raises:
        ResultTooLarge: The text has too many levels of nesting.
    """
    text = "{" + ",".join(f"{dumps(result.name)}:{result.result or 'null'}" for result in results) + "}"
    if text.count("[") + text.count("{") > MAX_STORED_DEPTH and nesting_depth(text) > MAX_STORED_DEPTH:
        raise ResultTooLarge.by_depth(MAX_STORED_DEPTH)
    return text


def _read(
    ctx: DependencyResultsContext,
    namespace: str,
    ids_by_name: Mapping[str, str],
    max_bytes: int,
    *,
    uploads: bool = False,
) -> Iterator[tuple[DependencyResult, StoredResult]]:
    """Read jobs one after the other, each with its result if that fits.

    A job that no longer exists is left out.
    """
    names_by_id = {job_id: name for name, job_id in ids_by_name.items()}
    job_ids = list(names_by_id)
    for start in range(0, len(job_ids), JOBS_PER_READ):
        part = job_ids[start : start + JOBS_PER_READ]
        jobs_by_id = ctx.jobs.find_many(namespace, part)
        existing_jobs = [jobs_by_id[job_id] for job_id in part if job_id in jobs_by_id]
        for job, stored in ctx.jobs.results(existing_jobs, max_bytes=max_bytes, uploads=uploads):
            max_bytes -= stored.size
            yield (
                DependencyResult(
                    name=names_by_id[job.job_id],
                    job_id=job.job_id,
                    status=job.status,
                    health=job.health,
                    result=stored.text,
                    truncated=stored.is_over_limit or stored.is_missing,
                ),
                stored,
            )


def _checked(result: DependencyResult) -> DependencyResult:
    """Return the result of an upload, whose text must be JSON under the rules for numbers and texts.

    Raises:
        ResultUnavailable: The text is not JSON, or breaks a rule.
    """
    try:
        loads(result.result or "")
    except (MalformedRequest, ValidationFailed) as error:
        raise ResultUnavailable(f"The uploaded result of job {result.name} is not valid: {error.message}") from error
    return result
