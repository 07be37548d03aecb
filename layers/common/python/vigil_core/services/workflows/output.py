"""The output of a run: an expression over its jobs' results, or the result of its only last job."""

from __future__ import annotations

from typing import Protocol

from vigil_core.domain.exact_json import JsonValue, loads
from vigil_core.domain.jobs.conditions import ConditionError, DependencyResult, evaluate_expression, field_names
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.domain.workflows.run_state import RunState
from vigil_core.services.context import ChangesRuns, UsesDependencies, UsesThreads
from vigil_core.services.jobs.dependencies import load_results
from vigil_core.services.workflows.commands import job_id_at


class RunOutputContext(ChangesRuns, UsesDependencies, UsesThreads, Protocol):
    """The run and job stores, and the results of jobs."""


MAX_RESULTS = 100
"""The number of jobs whose results an expression can use: the jobs that it names, otherwise the first jobs."""


def evaluate_output(ctx: RunOutputContext, run: WorkflowRun, run_state: RunState) -> JsonValue:
    """Return the output of a run, or None if it has none.

    Without an output expression, the output is the result of the only job without successors. An expression that
    cannot be evaluated gives an object with the reason.
    """
    graph = run_state.graph
    if run.output is None:
        sink_indexes = [index for index in range(run.total) if not graph.dependents[index]]
        results = _load_results(ctx, run, run_state, sink_indexes) if len(sink_indexes) == 1 else []
        return None if not results or results[0].result is None else loads(results[0].result)
    named_indexes = [graph.index_of[name] for name in field_names(run.output) if name in graph.index_of]
    results = _load_results(ctx, run, run_state, (named_indexes or list(range(run.total)))[:MAX_RESULTS])
    try:
        value: JsonValue = evaluate_expression(run.output, results)
        return value
    except ConditionError as error:
        return {"output_failed": str(error)}


def _load_results(
    ctx: RunOutputContext, run: WorkflowRun, run_state: RunState, indexes: list[int]
) -> list[DependencyResult]:
    return load_results(
        ctx, run.namespace, {job_id_at(ctx, run, index): run_state.graph.nodes[index].name for index in indexes}
    )
