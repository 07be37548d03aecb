"""What runs of workflows may cost. `make bench` measures the same on the emulator, with larger runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from moto import mock_aws

from benchmarks import runs
from benchmarks.bill import HTTP, READ, TRANSITIONS
from benchmarks.lab import Lab, laboratory
from benchmarks.report import RUN_BAR, RUN_JOB_BAR

FEW, MANY = 10, 40


@pytest.fixture
def lab() -> Iterator[Lab]:
    with mock_aws(), laboratory() as made:
        runs.warm_up(made)
        yield made


def test_a_million_jobs_of_runs_take_at_most_12_dollars_and_a_run_three_hundredths_of_a_cent(lab: Lab) -> None:
    few, many = runs.run_life(lab, FEW), runs.run_life(lab, MANY)
    job = runs.more(few.total, many.total, MANY - FEW)
    run = few.total - runs.times(job, FEW)
    assert job.dollars() <= RUN_JOB_BAR
    assert run.dollars() / 1e6 <= RUN_BAR
    # Create 2, release 2, claim 3 and a worker's row in ten claims, complete 2 and a result, and a share of its notes.
    assert job.write_units < 10.5
    assert job[HTTP] == pytest.approx(1 + 1 / runs.CLAIMED_AT_ONCE, abs=0.05)


def test_a_run_has_as_many_transitions_as_any_other(lab: Lab) -> None:
    few, many = runs.run_life(lab, FEW), runs.run_life(lab, MANY)
    assert few.total[TRANSITIONS] == many.total[TRANSITIONS] == 9


def test_the_matcher_reads_nothing_of_jobs_for_which_nobody_waits(lab: Lab) -> None:
    few, many = runs.run_life(lab, FEW), runs.run_life(lab, MANY)
    matcher = runs.more(few.by_function["matcher"], many.by_function["matcher"], MANY - FEW)
    # The job before its release, which may have been cancelled in the meantime.
    assert matcher[READ] == pytest.approx(1, abs=0.2)


def test_a_payload_costs_a_job_its_row_and_how_long_that_is_kept(lab: Lab) -> None:
    without, paid = runs.run_life(lab, FEW), runs.run_life(lab, FEW, payloads=True)
    assert runs.more(without.total, paid.total, FEW).write_units == 2
