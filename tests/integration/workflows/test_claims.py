"""Claims of jobs that belong to workflow runs, on moto."""

from __future__ import annotations

import pytest

from tests.support.runs import RunWorld
from tests.support.world import KEY, NAMESPACE
from vigil_core.services.queues.claim import ClaimRequest, claim_jobs
from vigil_core.services.workflows import commands as runs


@pytest.mark.timeout(30)
def test_claim_skips_jobs_of_a_run_that_is_being_cancelled(world: RunWorld) -> None:
    run = world.run({"name": "a"}, {"name": "b"})
    world.run_until_idle()
    runs.request_cancel(world.ctx, NAMESPACE, run, actor=KEY)
    other = world.job(queue="default")
    request = ClaimRequest(queue="default", worker="w", limit=1, lease_s=60, claim_id="c1")
    granted = claim_jobs(world.ctx, NAMESPACE, request, actor=KEY, until=world.time)
    assert [job.job_id for job in granted] == [other]
    repeated = claim_jobs(world.ctx, NAMESPACE, request, actor=KEY, until=world.time)
    assert [job.job_id for job in repeated] == [other]


def test_job_parked_with_its_slot_is_released_before_jobs_without_slot(world: RunWorld) -> None:
    run = world.run(
        {"name": "low", "priority": "low"},
        {"name": "a", "start_delay": 5, "priority": "high"},
        max_concurrency=1,
    )
    world.run_until_idle()
    runs.pause(world.ctx, NAMESPACE, run, actor=KEY)
    assert world.claim() is None, "a job of a paused run is parked"
    world.pass_time(61)
    world.sweep()
    world.run_until_idle()
    runs.resume(world.ctx, NAMESPACE, run, actor=KEY)
    assert sorted(world.work()) == ["a", "low"]
    assert world.find_run(run).status == "completed"


def test_newly_ready_job_starts_in_priority_order(world: RunWorld) -> None:
    run = world.run(
        {"name": "first", "priority": "critical"},
        {"name": "high", "priority": "high"},
        {"name": "low", "priority": "low", "depends_on": ["first"]},
        {"name": "critical", "priority": "critical", "depends_on": ["first"]},
        max_concurrency=1,
    )
    assert world.work() == ["first", "critical", "high", "low"]
    assert world.find_run(run).status == "completed"
