"""What runs of workflows may cost. `make bench` measures the same on the emulator, with larger runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from moto import mock_aws

from benchmarks import runs
from benchmarks.cost_model import HTTP, READ, TRANSITIONS
from benchmarks.harness import laboratory
from benchmarks.report import RUN_BAR, RUN_JOB_BAR
from benchmarks.runs import RunLife

FEW, MANY = 10, 40
# The runs of all tests are told at once, by whichever comes first: on a busy machine that takes minutes.
pytestmark = pytest.mark.timeout(600)


class Lives(NamedTuple):
    """What a run of few jobs and one of many take, and one of few with payloads."""

    few: RunLife
    many: RunLife
    paid: RunLife


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    with mock_aws(), laboratory() as lab:
        runs.warm_up(lab)
        yield Lives(runs.run_life(lab, FEW), runs.run_life(lab, MANY), runs.run_life(lab, FEW, payloads=True))


def test_a_million_jobs_of_runs_take_at_most_12_dollars_and_a_run_three_hundredths_of_a_cent(lives: Lives) -> None:
    job = runs.more(lives.few.total, lives.many.total, MANY - FEW)
    run = lives.few.total - runs.times(job, FEW)
    assert job.dollars() <= RUN_JOB_BAR
    assert run.dollars() / 1e6 <= RUN_BAR
    # Create 2, release 2, claim 3 and a worker's row in ten claims, complete 2 and a result, and a share of its notes.
    assert job.write_units < 10.5
    assert job[HTTP] == pytest.approx(1 + 1 / runs.CLAIMED_AT_ONCE, abs=0.05)


def test_a_run_has_as_many_transitions_as_any_other(lives: Lives) -> None:
    assert lives.few.total[TRANSITIONS] == lives.many.total[TRANSITIONS] == 6


def test_the_matcher_reads_nothing_of_jobs_for_which_nobody_waits(lives: Lives) -> None:
    matcher = runs.more(lives.few.by_function["matcher"], lives.many.by_function["matcher"], MANY - FEW)
    # The job before its release, which may have been cancelled in the meantime.
    assert matcher[READ] == pytest.approx(1, abs=0.2)


def test_a_payload_costs_a_job_its_row_and_how_long_that_is_kept(lives: Lives) -> None:
    assert runs.more(lives.few.total, lives.paid.total, FEW).write_units == 2
