"""Races in workflow runs, on moto."""

from __future__ import annotations

from tests.support.runs import RunWorld
from tests.support.world import KEY, NAMESPACE
from vigil_core.services.workflows import commands as runs

RACE = [{"name": "a", "priority": "high"}, {"name": "b"}]
JOIN = {"name": "join", "depends_on": ["a", "b"], "trigger_rule": "one_success", "cancel_losers": True}


def test_failure_of_the_last_racer_requires_a_decision(world: RunWorld) -> None:
    run = world.run(*RACE, JOIN, failure_policy="manual")
    world.work({"a": Exception("NO"), "b": Exception("NO")})
    assert world.find_run(run).status == "paused"
    runs.put_decision(world.ctx, NAMESPACE, run, "b", "skip", decision_id="d1", actor=KEY, comment=None)
    assert world.work() == ["join"]
    assert world.find_run(run).status == "completed"


def test_retry_of_a_cancelled_race_runs_it_again(world: RunWorld) -> None:
    run = world.run(*RACE, JOIN)
    runs.request_cancel(world.ctx, NAMESPACE, run, actor=KEY)
    world.run_until_idle()
    assert set(world.statuses(run).values()) == {"cancelled"}
    world.retry(run)
    assert world.work() == ["a", "join"]
    assert world.statuses(run) == {"a": "completed", "b": "cancelled", "join": "completed"}
    assert world.find_run(run).status == "completed"


def test_former_race_loser_counts_as_failed_in_the_next_generation(world: RunWorld) -> None:
    run = world.run({"name": "first"}, *({**job, "depends_on": ["first"]} for job in RACE), JOIN)
    assert world.work() == ["first", "a", "join"]
    world.retry(run, "first")
    world.work({"a": Exception("NO"), "b": Exception("NO")})
    assert world.statuses(run) == {"first": "completed", "a": "failed", "b": "failed", "join": "cancelled"}
    run_state = world.run_state(run)
    assert [run_state.end_state(run_state.graph.index_of[name]) for name in "ab"] == ["failed", "failed"]


def test_late_record_of_the_previous_generation_ends_no_race(world: RunWorld) -> None:
    run = world.run(*RACE, JOIN)
    assert world.work() == ["a", "join"]
    before = list(world.delivered)
    world.retry(run, "a")
    world.run_until_idle()
    world.table.records += before
    assert world.work() == ["a", "join"]
    assert world.statuses(run) == {"a": "completed", "b": "cancelled", "join": "completed"}


def test_race_lost_through_fan_out_skips_fails_the_run(world: RunWorld) -> None:
    """Skip the last open racer together with many other jobs: from then on, the failure of the other racer counts."""
    run = world.run(
        {"name": "a", "priority": "critical"},
        {"name": "start", "priority": "high"},
        {"name": "gate", "depends_on": ["start"], "condition": "open"},
        *({"name": f"skipped-{number}", "depends_on": ["gate"]} for number in range(250)),
        {"name": "b", "depends_on": ["gate"]},
        {"name": "won", "depends_on": ["a", "b"], "trigger_rule": "one_success", "cancel_losers": True},
        {"name": "other", "priority": "low"},
    )
    assert world.work({"a": Exception("NO"), "start": {"open": False}}) == ["a", "start"]
    assert world.find_run(run).status == "failed"
    assert world.at(run, "other").status == "cancelled"
