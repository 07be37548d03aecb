"""Claims of jobs that belong to workflow runs, on moto."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.support.runs import RunWorld
from tests.support.world import KEY, NAMESPACE
from vigil_core.services.jobs import transitions
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


@pytest.mark.parametrize("resumed", [False, True])
def test_attempt_that_becomes_due_in_a_paused_run_is_parked(world: RunWorld, *, resumed: bool) -> None:
    retry = {"max_attempts": 2, "initial_delay": 10, "jitter": False}
    run = world.run({"name": "a", "retry": retry}, max_concurrency=1)
    world.run_until_idle()
    job = world.claim()
    assert job is not None
    world.finish(job, Exception("NO"))
    world.run_until_idle()
    runs.pause(world.ctx, NAMESPACE, run, actor=KEY)
    world.run_until_idle()
    world.pass_time(10)
    transitions.apply_timers(world.ctx, NAMESPACE, job.job_id)
    if resumed:  # Before the stream delivers the pending job.
        runs.resume(world.ctx, NAMESPACE, run, actor=KEY)
    world.run_until_idle()
    parked = world.at(run, "a")
    assert (parked.status, parked.workflow.parked) == (("pending", False) if resumed else ("waiting", True))
    assert world.claim() is None or resumed
    if not resumed:
        runs.resume(world.ctx, NAMESPACE, run, actor=KEY)
        assert world.work() == ["a"]
        assert world.at(run, "a").attempt == 2
        assert world.find_run(run).status == "completed"


def test_jobs_that_become_ready_together_enter_a_mutex_queue_in_the_order_of_the_graph(world: RunWorld) -> None:
    mutex = {"key": "tape", "on_conflict": "queue"}
    names = [f"j{number}" for number in range(12)]
    run = world.run({"name": "first"}, *({"name": name, "depends_on": ["first"], "mutex": mutex} for name in names))
    world.run_until_idle()
    job = world.claim()
    assert job is not None
    # The order of threads is undefined, so let the later ones come first.
    in_reverse: Any = lambda work, items: [work(item) for item in reversed([*items])][::-1]  # noqa: E731
    world.ctx = replace(world.ctx, in_parallel=in_reverse)
    world.finish(job)
    assert world.work() == names
    assert world.find_run(run).status == "completed"
