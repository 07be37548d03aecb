"""Cost limits of jobs and waits. `make bench` measures the same costs on the emulator and records them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from moto import mock_aws

from benchmarks import costs
from benchmarks.cost_model import HTTP, INDEX_WRITE, READ, REQUESTS, WRITE
from benchmarks.harness import NAMESPACE, Harness, open_harness
from benchmarks.report import MAX_JOB_WRITE_UNITS, MAX_WAIT_WRITE_UNITS
from vigil_core import wiring
from vigil_core.domain.exact_json import loads
from vigil_core.gateways.lambda_functions import LambdaExecutors
from vigil_core.gateways.outbound_http import HttpResponse
from vigil_core.services.executors.call_http import call_target
from vigil_core.store import keys


@pytest.fixture
def harness() -> Iterator[Harness]:
    with mock_aws(), open_harness() as harness:
        costs.warm_up(harness)
        yield harness


def test_tracked_job_with_five_reports_takes_at_most_14_write_units(harness: Harness) -> None:
    life = costs.job_life(harness)
    assert life.total.write_units <= MAX_JOB_WRITE_UNITS
    # Eight versions cost one unit each. So do the index entry of the list, the payload row, the result row, and the TTL
    # of the payload. The counters of the namespace take two more: one at the creation, one at the end.
    assert (life.total[WRITE], life.total[INDEX_WRITE]) == (13, 1)
    assert (life.by_function["matcher"].write_units, life.by_function["notifier"].write_units) == (0, 1)
    assert life.total[HTTP] == len(costs.REPORTS) + 3


def test_creation_with_a_registered_type_costs_the_same(harness: Harness) -> None:
    def created(job_type: str) -> dict[str, float]:
        with harness.billed() as billed:
            harness.call("POST", "/v1/jobs", {**costs.JOB, "job_type": job_type}).ok(202)
        return dict(billed(None).quantities)

    harness.call("PUT", "/v1/job-types/flash_test", {"stages": ["flash", "boot", "test", "reboot"]}).ok(201)
    usual = created("usual")
    assert usual[READ] == 1
    assert created("flash_test") == usual


def test_report_of_progress_alone_takes_one_write_unit(harness: Harness) -> None:
    life, alone = costs.job_life(harness), costs.job_life(harness, costs.PROGRESS)
    assert alone.total.write_units == life.total.write_units


def test_job_without_waits_does_not_invoke_the_matcher(harness: Harness) -> None:
    assert costs.job_life(harness).total["lambda.matcher"] == 0


def test_wait_on_a_job_takes_at_most_10_write_units(harness: Harness) -> None:
    wait = costs.wait_life(harness)
    assert wait.total.write_units <= MAX_WAIT_WRITE_UNITS
    # The wait entry, the wait, its two index entries, the waiter mark on a job that had no waits before, the counter.
    assert wait.registered.write_units == 6
    assert wait.poll.quantities == {REQUESTS: 1, READ: 1}


def test_match_costs_the_same_for_any_number_of_waits(harness: Harness) -> None:
    few, many = costs.match_among(harness, 10), costs.match_among(harness, 1_000)
    assert few == many


def test_queue_job_takes_one_more_write_unit_to_create_and_four_to_claim(harness: Harness) -> None:
    tracked, claimed = costs.job_life(harness).by_step["create"], costs.worker_life(harness)
    assert claimed["create"].write_units == tracked.write_units + 1
    # The state row, its old and its new index entry, and the worker's row.
    assert claimed["claim"].write_units == 4
    assert claimed["heartbeat"].write_units == 1


def test_executor_job_costs_a_worker_job_and_its_slot(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    invocations: list[str] = []
    monkeypatch.setattr(LambdaExecutors, "call_http", lambda _, event: invocations.append(event))
    target = {"url": "https://a.example/{{payload.image}}", "body": "{{payload}}"}
    harness.call("PUT", "/v1/job-types/post", {"executor": "http", "target": target}).ok(201)
    # The first job of a target in a process extends the TTL of the target.
    harness.call("POST", "/v1/jobs", {**costs.WORKER_JOB, "job_type": "post"}).ok(202)
    harness.skip_stream()
    with harness.billed() as creating:
        harness.call("POST", "/v1/jobs", {**costs.WORKER_JOB, "job_type": "post"}).ok(202)
    with harness.billed() as dispatching:
        harness.deliver()
    with harness.billed() as calling:
        call_event: Any = loads(invocations.pop())
        assert call_target(wiring.context(), AnsweringTarget(), NoSecrets(), call_event) == "completed"
    created, dispatched, called = creating("api"), dispatching("matcher"), calling(None)
    harness.deliver()
    worker = costs.worker_life(harness)
    assert created.write_units == worker["create"].write_units
    # The slot of the call; the state row, and its old and its new index entry.
    assert (dispatched.write_units, dispatched[INDEX_WRITE]) == (4, 2)
    # The heartbeat; then the result, the state row, its index entry, the TTL of the payload, and the slot.
    assert called.write_units == 6
    assert called[READ] == 5
    assert not invocations


class AnsweringTarget:
    """HTTP target that answers every request."""

    def request(self, *_: object, **__: object) -> HttpResponse:
        return HttpResponse(status=200, headers={"content-type": "application/json"}, body=b'{"id": 1}')


class NoSecrets:
    def value(self, *_: object) -> str:
        raise AssertionError("the target contains no secret")


def test_claim_costs_the_same_for_any_queue_length(harness: Harness) -> None:
    assert costs.claim_among(harness, 10) == costs.claim_among(harness, 300)


def test_idle_minute_costs_a_lease_and_two_reads_per_partition_and_three_per_queue(harness: Harness) -> None:
    minute = costs.idle_minute(harness)
    assert minute.write_units == 2 * keys.DUE_PARTITIONS
    queues = 2
    # Of each partition, one query of the due rows and one of the queues.
    assert minute[READ] == 2 * 0.5 * keys.DUE_PARTITIONS + queues * 3 * 0.5


def test_request_counter_includes_refused_writes(harness: Harness) -> None:
    job_id = costs.create(harness)
    with harness.billed() as refused:
        harness.call("POST", "/v1/jobs", {**costs.JOB, "job_id": job_id}).problem(409, "JOB_CREATION_FAILED")
    # The payload row, which stays without a job, and the refused write of the existing row.
    assert (refused(None)[WRITE], refused(None)[INDEX_WRITE]) == (2, 0)
    assert harness.row(keys.job(NAMESPACE, job_id))["version"] == {"N": "1"}
