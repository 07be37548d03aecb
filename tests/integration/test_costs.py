"""What jobs and waits may cost. `make bench` measures the same on the emulator and writes it down."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from moto import mock_aws

from benchmarks import costs
from benchmarks.bill import HTTP, INDEX_WRITE, READ, REQUESTS, WRITE
from benchmarks.lab import NAMESPACE, Lab, laboratory
from benchmarks.report import JOB_BAR, WAIT_BAR
from vigil_core.store import keys


@pytest.fixture
def lab() -> Iterator[Lab]:
    with mock_aws(), laboratory() as made:
        costs.warm_up(made)
        yield made


def test_a_tracked_job_with_five_reports_takes_at_most_12_write_units(lab: Lab) -> None:
    life = costs.job_life(lab)
    assert life.total.write_units <= JOB_BAR
    # One unit for each of eight versions, one for the list's index, payload and result a row each, and one for the
    # payload to expire with the job.
    assert (life.total[WRITE], life.total[INDEX_WRITE]) == (11, 1)
    assert life.by_function["matcher"].write_units == life.by_function["notifier"].write_units == 0
    assert life.total[HTTP] == len(costs.REPORTS) + 3


def test_a_registered_type_with_stages_of_its_own_costs_a_creation_no_more(lab: Lab) -> None:
    def created(job_type: str) -> dict[str, float]:
        with lab.billed() as billed:
            lab.call("POST", "/v1/jobs", {**costs.JOB, "job_type": job_type}).ok(202)
        return dict(billed(None).quantities)

    lab.call("PUT", "/v1/job-types/flash_test", {"stages": ["flash", "boot", "test", "reboot"]}).ok(201)
    usual = created("usual")
    assert usual[READ] == 1
    assert created("flash_test") == usual


def test_progress_reported_alone_takes_a_write_unit_and_wakes_no_matcher(lab: Lab) -> None:
    told, alone = costs.job_life(lab), costs.job_life(lab, costs.PROGRESS)
    assert alone.total.write_units == told.total.write_units
    assert alone.by_function["matcher"]["lambda.matcher"] == 3


def test_a_wait_on_it_takes_at_most_8_write_units(lab: Lab) -> None:
    wait = costs.wait_life(lab)
    assert wait.total.write_units <= WAIT_BAR
    assert wait.registered.write_units == 4
    assert wait.look.quantities == {REQUESTS: 1, READ: 1}


def test_a_match_costs_the_same_whoever_else_waits(lab: Lab) -> None:
    few, many = costs.match_among(lab, 10), costs.match_among(lab, 1_000)
    assert few == many


def test_a_job_of_a_queue_takes_a_write_unit_more_to_create_and_four_to_claim(lab: Lab) -> None:
    tracked, handed_out = costs.job_life(lab).by_step["create"], costs.worker_life(lab)
    assert handed_out["create"].write_units == tracked.write_units + 1
    # The state, the two places in the index that it leaves and enters, and the worker's row.
    assert handed_out["claim"].write_units == 4
    assert handed_out["heartbeat"].write_units == 1


def test_a_claim_costs_the_same_however_long_the_queue_is(lab: Lab) -> None:
    assert costs.claim_among(lab, 10) == costs.claim_among(lab, 300)


def test_an_idle_minute_takes_a_lock_and_a_look_for_each_shard_and_two_looks_for_each_queue(lab: Lab) -> None:
    minute = costs.idle_minute(lab)
    assert minute.write_units == 2 * keys.DUE_SHARDS
    queues = 2
    assert minute[READ] == 0.5 * keys.DUE_SHARDS + queues * 2 * 0.5


def test_the_meter_sees_writes_that_are_refused(lab: Lab) -> None:
    job_id = costs.create(lab)
    with lab.billed() as refused:
        lab.call("POST", "/v1/jobs", {**costs.JOB, "job_id": job_id}).problem(409, "JOB_CREATION_FAILED")
    # The payload that nothing will point to, and the row that stood in the way.
    assert (refused(None)[WRITE], refused(None)[INDEX_WRITE]) == (2, 0)
    assert lab.row(keys.job(NAMESPACE, job_id))["version"] == {"N": "1"}
