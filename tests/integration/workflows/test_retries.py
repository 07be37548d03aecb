"""Retries and ends of workflow runs, on moto."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.support.runs import RunWorld
from tests.support.world import KEY, NAMESPACE
from vigil_core.domain.exact_json import loads
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


@pytest.mark.parametrize("seed", range(4))
def test_retry_of_a_run_keeps_all_successful_work(world: RunWorld, seed: int) -> None:
    """Check every form of success: a large result, a join, a race, a fallback, and the items of a batch."""
    draw = random.Random(seed)
    large = {"rows": "x" * draw.choice([10, 400_000])}
    run = world.run(
        {"name": "large"},
        {"name": "fallback", "fallback": {}},
        {"name": "batch", "batch": list(range(4)), "queue": "items"},
        {"name": "join", "depends_on": ["large", "fallback"], "executor": "join"},
        {"name": "race", "depends_on": ["large", "fallback"], "executor": "join", "trigger_rule": "one_success"},
        {"name": "broken", "depends_on": ["join", "race"], "retry": {"max_attempts": 1}},
        {"name": "last", "depends_on": ["broken", "batch"], "retry": {"max_attempts": 3}},
        failure_policy="continue_on_failure",
    )
    failed_items = frozenset(draw.sample(range(4), 2))
    world.run_until_idle()
    for _ in range(4):
        item = world.claim("items")
        assert item is not None
        index = item.batch.index
        world.finish(item, Exception("NO") if index in failed_items else index)
        world.run_until_idle()
    world.work({"large": large, "fallback": Exception("NO"), "broken": Exception("NO")})
    kept = {name: world.at(run, name) for name in ("large", "fallback", "join", "race")}
    assert {name: job.status for name, job in kept.items()} == dict.fromkeys(kept, "completed")
    assert world.find_run(run).status == "failed"

    world.retry(run)
    world.run_until_idle()
    rerun_items = []
    while item := world.claim("items"):
        rerun_items.append(item.batch.index)
        world.finish(item, item.batch.index)
        world.run_until_idle()
    assert frozenset(rerun_items) == failed_items
    assert world.work({"last": large}) == ["broken", "last"]
    assert {name: world.at(run, name) for name in kept} == kept, "no version of a kept job is written"
    last = world.at(run, "last")
    assert last.max_attempts == last.attempt + 2
    batch = world.ctx.jobs.payloads(world.at(run, "batch")).result
    assert batch is not None
    entries: Any = loads(batch)
    assert [entry["result"] for entry in entries] == list(range(4))
    ended = world.find_run(run)
    text, url = world.ctx.runs.result(ended)
    text = text if url is None else world.objects.get(url.removeprefix("https://objects/"))
    assert (ended.status, text and loads(text)) == ("completed", large)
