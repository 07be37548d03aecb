"""What a run comes to: an expression over the results of its jobs, or the result of its only job that none follows."""

from __future__ import annotations

from vigil_core.domain.exact_json import JsonValue, loads
from vigil_core.domain.jobs.conditions import ConditionError, Input, names_in, search
from vigil_core.domain.workflows.run import Run
from vigil_core.domain.workflows.run_state import Standings
from vigil_core.services.context import Context
from vigil_core.services.jobs.dependencies import inputs_from
from vigil_core.services.workflows.commands import id_at

MOST_READ = 100
"""Jobs whose results an expression sees: those that it names, or else the first."""


def output_of(ctx: Context, run: Run, standings: Standings) -> JsonValue:
    """What the run came to; None where that cannot be told. An expression that cannot be evaluated gives its reason."""
    graph = standings.graph
    if run.output is None:
        sinks = [place for place in range(run.total) if not graph.dependents[place]]
        inputs = _read(ctx, run, standings, sinks) if len(sinks) == 1 else []
        return None if not inputs or inputs[0].result is None else loads(inputs[0].result)
    named = [graph.place_of[name] for name in names_in(run.output) if name in graph.place_of]
    inputs = _read(ctx, run, standings, (named or list(range(run.total)))[:MOST_READ])
    try:
        found: JsonValue = search(run.output, inputs)
        return found
    except ConditionError as error:
        return {"output_failed": str(error)}


def _read(ctx: Context, run: Run, standings: Standings, places: list[int]) -> list[Input]:
    return inputs_from(
        ctx, run.namespace, {id_at(ctx, run, place): standings.graph.nodes[place].name for place in places}
    )
