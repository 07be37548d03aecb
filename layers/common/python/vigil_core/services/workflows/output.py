"""The output of a run: an expression over its jobs' results, or the result of its only last job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vigil_core.domain.ids import workflow_job_id
from vigil_core.domain.jobs.conditions import ConditionError, result_of_one_job, select_jobs
from vigil_core.domain.jobs.dependency_results import ResultUnavailable, ResultUnreadable
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.workflows.graph import Graph
from vigil_core.domain.workflows.output import OUTPUT_INVALID, OutputInvalid, evaluate_output
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.domain.workflows.run_state import RunState
from vigil_core.runtime.failures import is_transient
from vigil_core.services.context import ChangesRuns, UsesDependencies, UsesThreads
from vigil_core.services.cpu_limits import expression_budget
from vigil_core.services.jobs.dependency_results import load_all_results


class RunOutputContext(ChangesRuns, UsesDependencies, UsesThreads, Protocol):
    """The run and job stores, and the results of jobs."""


@dataclass(frozen=True, kw_only=True)
class StoredOutput:
    """The pointer to the stored output of a run, or the error that prevents an output. Both None: no output."""

    result_ref: str | None = None
    error: JobError | None = None


def store_output(ctx: RunOutputContext, run: WorkflowRun, run_state: RunState) -> StoredOutput:
    """Store the output of a run.

    An output that is invalid or cannot be stored is returned as an error, with which the run ends. Raises only
    transient errors, so that no run remains open because of its own data.
    """
    try:
        return StoredOutput(result_ref=_store(ctx, run, run_state.graph))
    except (OutputInvalid, ConditionError) as error:
        return _as_error(str(error))
    except ResultUnreadable as error:
        return _as_error(error.message, error.code)
    except Exception as error:
        if is_transient(error):
            raise
        return _as_error(str(OutputInvalid(f"The output cannot be stored: {type(error).__name__}: {error}")))


def _as_error(message: str, code: str = OUTPUT_INVALID) -> StoredOutput:
    return StoredOutput(error=JobError(code=code, message=message))


def _store(ctx: RunOutputContext, run: WorkflowRun, graph: Graph) -> str | None:
    """Store the output and return the pointer to it, or None if the run has no output.

    1. Without an expression, the output is the result of the only job without successors. With the expression
       `NAME.result` it is the result of that job. Such a result is copied without being read, whatever its size.
    2. Any other expression is evaluated on the results that it needs.
    """
    name = _only_sink(graph) if run.output is None else result_of_one_job(run.output, graph.index_of)
    if name is not None:
        job = ctx.jobs.find(run.namespace, workflow_job_id(run.workflow_id, name))
        if job is None:
            raise ResultUnavailable(f"Job {name} no longer exists")
        return _copy_result(ctx, run, job)
    if run.output is None:
        return None
    names = select_jobs(run.output, [node.name for node in graph.nodes])
    ids_by_name = {name: workflow_job_id(run.workflow_id, name) for name in names}
    text = evaluate_output(run.output, load_all_results(ctx, run.namespace, ids_by_name), expression_budget())
    return ctx.runs.put_result(run, ctx.new_id()[-12:], text)


def _only_sink(graph: Graph) -> str | None:
    sinks = [node.name for index, node in enumerate(graph.nodes) if not graph.dependents[index]]
    return sinks[0] if len(sinks) == 1 else None


def _copy_result(ctx: RunOutputContext, run: WorkflowRun, job: Job) -> str | None:
    """Copy the result of a job to the run: an object inside S3, a row by way of this process."""
    nonce = ctx.new_id()[-12:]
    name, pointer_of = ctx.runs.result_object(run, nonce)
    if (size := ctx.jobs.copy_result_object(job, name, "ended")) is not None:
        return pointer_of(size or None)
    text = ctx.jobs.row_result(job)
    return None if text is None else ctx.runs.put_result(run, nonce, text)
