"""Simulated runs of workflows, with crashes, repetitions and delays: each ends as the reference predicts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

import pytest
from moto import mock_aws

from tests.model.run_interleavings import InterleavedRun
from tests.model.run_plans import Plan, plan_of
from tests.model.run_reference import Reference
from tests.model.run_simulation import PlannedSimulation
from tests.model.seeds import RUNS, blocks, third
from tests.support.table import create_table
from vigil_core.domain.errors import InvalidTransition
from vigil_core.domain.workflows import graph as graphs
from vigil_core.domain.workflows import planning
from vigil_core.services.queues import claim as claim_jobs
from vigil_core.services.workflows import apply, node_states, parking
from vigil_core.services.workflows import create as create_run
from vigil_core.services.workflows import reconcile as look_after_run
from vigil_core.store.keys import Key
from vigil_core.store.table import Row, Update
from vigil_core.store.workflows.runs import RunStore

pytestmark = [pytest.mark.model, pytest.mark.timeout(900)]


@pytest.fixture(autouse=True)
def table() -> Iterator[None]:
    # Otherwise the fault is hidden by the other actions. `disable` also clears the levels that the loggers have cached.
    logging.disable(logging.CRITICAL)
    try:
        with mock_aws():
            create_table()
            yield
    finally:
        logging.disable(logging.NOTSET)


def simulate_as_planned(plan: Plan) -> None:
    """Simulate a run of the plan, and one for each retry; require the result of the reference."""
    told, life = Reference(plan), PlannedSimulation(plan)
    for number, its in enumerate(plan.generations):
        if number > 0:
            begins = told.retry(its.start)
            assert life.retry(its.start) == begins
            if not begins:
                return
        told.run_generation(its)
        life.run_generation(its)
        life.check(told)


def simulate_in_any_order(plan: Plan) -> None:
    """Simulate a run that operators and workers interrupt; require the invariants that hold in any order."""
    life = InterleavedRun(plan)
    for number, its in enumerate(plan.generations):
        if number > 0 and not life.retry(its.start):
            return
        life.run_actions(min(40, 3 * len(plan.jobs)))
        life.check()


def simulate_plans(lived: Callable[[Plan], None], seeds: Iterable[int]) -> None:
    """Simulate the runs of these seeds. The same seed always has the same plan."""
    for seed in seeds:
        plan = plan_of(seed, deterministic=lived is simulate_as_planned)
        with pytest.MonkeyPatch.context() as sizes:
            # With these sizes, small graphs take the paths of large ones.
            sizes.setattr(graphs, "BLOCK_SIZE", plan.chunk_jobs)
            sizes.setattr(create_run, "MAX_SYNCHRONOUS_JOBS", plan.at_once)
            sizes.setattr(apply, "MAX_INLINE_JOBS", plan.narrow)
            sizes.setattr(parking, "MAX_INLINE_RELEASES", plan.narrow)
            try:
                lived(plan)
            except BaseException as error:
                error.add_note(f"Seed {seed}: {plan}")
                raise


def _size(seed: int) -> int:
    """Return the number of jobs of a plan: the smallest plan that fails is the easiest to understand."""
    return len(plan_of(seed, deterministic=True).jobs)


@pytest.mark.parametrize("seeds", blocks(RUNS), ids=str)
def test_simulated_run_ends_as_the_reference_predicts(seeds: range) -> None:
    simulate_plans(simulate_as_planned, sorted(seeds, key=_size))


@pytest.mark.parametrize("seeds", blocks(third(RUNS)), ids=str)
def test_simulated_run_satisfies_every_invariant_in_any_order(seeds: range) -> None:
    simulate_plans(simulate_in_any_order, sorted(seeds, key=_size))


def _record_unconditionally(self: RunStore, key: Key, numbers: Mapping[int, int]) -> Row:
    """Remove the guard that ignores older state versions."""
    sets = "".join(f", j{place} = :j{place}" for place in numbers)
    return self._table.update(
        Update(
            key=key,
            expression=f"SET entity = :entity, schema_version = :one, recorded_at = :now, #ttl = :ttl{sets}",
            names={"#ttl": "ttl"},
            values={**{f":j{place}": number for place, number in numbers.items()}, **self._state_block_values()},
        )
    )


FAULTS: dict[str, tuple[Callable[[Plan], None], object, str, object]] = {
    "an earlier state record replaces a later one": (
        simulate_as_planned,
        RunStore,
        "_record_states",
        _record_unconditionally,
    ),
    "slots are not released": (simulate_in_any_order, RunStore, "release_slots", lambda *_: None),
    "max_concurrency is ignored": (simulate_in_any_order, RunStore, "acquire_slot", lambda *_: True),
    "a failed racer fails the run": (simulate_in_any_order, planning, "_race_is_winnable", lambda *_: False),
    "a paused run grants its jobs": (simulate_in_any_order, claim_jobs, "may_start", lambda *_: True),
    "failures are not recorded on the run": (
        simulate_as_planned,
        node_states,
        "_record_failure",
        lambda _ctx, run, *_, **__: run,
    ),
    "the sweeper starts no successor supervisor": (
        simulate_as_planned,
        look_after_run,
        "start_successor",
        lambda *_: None,
    ),
    "a run ends when all processed jobs have ended": (simulate_as_planned, node_states, "_all_ended", lambda *_: True),
}


@pytest.mark.fault
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lived, owner, name, fake = FAULTS[fault]
    monkeypatch.setattr(owner, name, fake)
    with pytest.raises((AssertionError, InvalidTransition)):
        simulate_plans(lived, range(300))
