"""Retries and ends of workflow runs, on moto."""

from __future__ import annotations

import pytest

from tests.support.runs import RunWorld
from tests.support.world import KEY, NAMESPACE
from vigil_core.services.jobs import transitions
from vigil_core.services.workflows import commands as runs
from vigil_core.services.workflows import parking


def test_late_failure_record_frees_no_slot_of_the_next_generation(world: RunWorld) -> None:
    run = world.run({"name": "a", "priority": "high"}, {"name": "b"}, max_concurrency=1)
    world.work({"a": Exception("NO")})
    before = list(world.delivered)
    world.retry(run)
    world.run_until_idle()
    assert world.statuses(run) == {"a": "pending", "b": "waiting"}
    world.table.records += before
    world.run_until_idle()
    assert world.statuses(run) == {"a": "pending", "b": "waiting"}


def test_retry_frees_the_slot_of_a_waiting_job(world: RunWorld) -> None:
    run = world.run({"name": "a"}, {"name": "b", "depends_on": ["a"]}, max_concurrency=1)
    assert world.work({"b": Exception("NO")}) == ["a", "b"]
    stored_run = world.find_run(run)
    assert world.ctx.runs.acquire_slot(stored_run, 1), "as a matcher does that receives the record of the release late"
    world.retry(run, "a")
    assert world.work() == ["a", "b"]
    assert world.find_run(run).status == "completed"


def test_parked_entry_of_the_previous_generation_blocks_no_job(
    world: RunWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "PARKED_BATCH", 1)
    run = world.run(
        {"name": "a", "priority": "high"},
        {"name": "b", "priority": "low"},
        {"name": "c", "depends_on": ["b", "a"], "trigger_rule": "all_done"},
        max_concurrency=1,
    )
    world.run_until_idle()
    world.ctx.runs.park(NAMESPACE, run, "normal", 2)
    runs.request_cancel(world.ctx, NAMESPACE, run, actor=KEY)
    world.run_until_idle()
    world.retry(run)
    assert world.work() == ["a", "b", "c"]


def test_cancelled_job_without_decision_is_counted_as_cancelled(world: RunWorld) -> None:
    run = world.run({"name": "a"}, {"name": "b", "depends_on": ["a"]}, failure_policy="manual")
    world.run_until_idle()
    world.do(transitions.cancel, world.id_of(run, "a"))
    world.run_until_idle()
    assert world.find_run(run).status == "paused"
    runs.request_cancel(world.ctx, NAMESPACE, run, actor=KEY)
    world.run_until_idle()
    statistics = world.find_run(run).statistics
    assert statistics is not None
    assert (statistics["cancelled"], statistics["failed"]) == (2, 0)
