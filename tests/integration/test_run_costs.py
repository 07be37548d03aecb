"""Cost limits of workflow runs. `make bench` measures the same costs on the emulator with larger runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from moto import mock_aws

from benchmarks import runs
from benchmarks.cost_model import HTTP, READ, TRANSITIONS
from benchmarks.harness import open_harness
from benchmarks.report import MAX_RUN_DOLLARS, MAX_RUN_JOB_DOLLARS
from benchmarks.runs import RunLife

FEW, MANY = 10, 40
# The first test simulates the runs for all tests, which takes minutes on a busy machine.
pytestmark = [pytest.mark.timeout(600), pytest.mark.thorough]


class RunCosts(NamedTuple):
    """The costs of a run with few jobs, of one with many jobs, and of one with few jobs that have payloads."""

    few: RunLife
    many: RunLife
    paid: RunLife


@pytest.fixture(scope="module")
def run_costs() -> Iterator[RunCosts]:
    with mock_aws(), open_harness() as lab:
        runs.warm_up(lab)
        yield RunCosts(runs.run_life(lab, FEW), runs.run_life(lab, MANY), runs.run_life(lab, FEW, payloads=True))


def test_million_run_jobs_cost_at_most_12_dollars_and_a_run_0_03_cents(run_costs: RunCosts) -> None:
    job = runs.extra_per_job(run_costs.few.total, run_costs.many.total, MANY - FEW)
    run = run_costs.few.total - runs.scaled(job, FEW)
    assert job.dollars() <= MAX_RUN_JOB_DOLLARS
    assert run.dollars() / 1e6 <= MAX_RUN_DOLLARS
    # Create 2, release 2, claim 3 and a tenth of a worker's row, complete 2 and a result, and a share of state blocks.
    assert job.write_units < 10.5
    assert job[HTTP] == pytest.approx(1 + 1 / runs.MAX_CLAIM_JOBS, abs=0.05)


def test_state_transitions_are_independent_of_the_run_size(run_costs: RunCosts) -> None:
    assert run_costs.few.total[TRANSITIONS] == run_costs.many.total[TRANSITIONS] == 6


def test_matcher_reads_one_unit_per_job_without_waits(run_costs: RunCosts) -> None:
    matcher = runs.extra_per_job(
        run_costs.few.by_function["matcher"], run_costs.many.by_function["matcher"], MANY - FEW
    )
    # The read of the job before its release, because it may have been cancelled in the meantime.
    assert matcher[READ] == pytest.approx(1, abs=0.2)


def test_payload_costs_a_job_two_write_units(run_costs: RunCosts) -> None:
    assert runs.extra_per_job(run_costs.few.total, run_costs.paid.total, FEW).write_units == 2
