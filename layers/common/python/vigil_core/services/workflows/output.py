"""The output of a run: an expression over its jobs' results, or the result of its only last job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vigil_core.domain.errors import StoreConflict, VigilError
from vigil_core.domain.jobs.conditions import DependencyResult, field_names
from vigil_core.domain.jobs.job import JobError
from vigil_core.domain.workflows.output import OUTPUT_INVALID, OutputInvalid, evaluate_output
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.domain.workflows.run_state import RunState
from vigil_core.services.context import ChangesRuns, UsesDependencies, UsesThreads
from vigil_core.services.cpu_limits import expression_budget
from vigil_core.services.jobs.dependencies import load_results
from vigil_core.services.workflows.commands import job_id_at


class RunOutputContext(ChangesRuns, UsesDependencies, UsesThreads, Protocol):
    """The run and job stores, and the results of jobs."""


@dataclass(frozen=True, kw_only=True)
class StoredOutput:
    """The pointer to the stored output of a run, or the error that prevents an output. Both None: no output."""

    result_ref: str | None = None
    error: JobError | None = None


MAX_RESULTS = 100
"""The number of jobs whose results an expression can use: the jobs that it names, otherwise the first jobs."""
DATA_ERRORS = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError, VigilError)
"""The errors that a value can cause. They recur at each attempt, unlike the errors of the network and of AWS."""


def store_output(ctx: RunOutputContext, run: WorkflowRun, run_state: RunState) -> StoredOutput:
    """Store the output of a run.

    An output that is invalid or cannot be stored is returned as an error, with which the run ends. Raises only errors
    that another attempt can overcome, so that no run remains open because of its own data.
    """
    try:
        text = _output_text(ctx, run, run_state)
        ref = None if text is None else ctx.runs.put_result(run, ctx.new_id()[-12:], text)
        return StoredOutput(result_ref=ref)
    except OutputInvalid as error:
        return _as_error(str(error))
    except StoreConflict:
        raise
    except DATA_ERRORS as error:
        return _as_error(str(OutputInvalid(f"The output cannot be stored: {type(error).__name__}: {error}")))


def _as_error(message: str) -> StoredOutput:
    return StoredOutput(error=JobError(code=OUTPUT_INVALID, message=message))


def _output_text(ctx: RunOutputContext, run: WorkflowRun, run_state: RunState) -> str | None:
    """Return the output as JSON text, or None if the run has none.

    Without an output expression, the output is the result of the only job without successors.
    """
    graph = run_state.graph
    if run.output is None:
        sink_indexes = [index for index in range(run.total) if not graph.dependents[index]]
        results = _load_results(ctx, run, run_state, sink_indexes) if len(sink_indexes) == 1 else []
        return results[0].result if results else None
    named_indexes = [graph.index_of[name] for name in field_names(run.output) if name in graph.index_of]
    results = _load_results(ctx, run, run_state, (named_indexes or list(range(run.total)))[:MAX_RESULTS])
    return evaluate_output(run.output, results, expression_budget())


def _load_results(
    ctx: RunOutputContext, run: WorkflowRun, run_state: RunState, indexes: list[int]
) -> list[DependencyResult]:
    return load_results(
        ctx, run.namespace, {job_id_at(ctx, run, index): run_state.graph.nodes[index].name for index in indexes}
    )
