"""Races in runs, on moto."""

from __future__ import annotations

from tests.support.runs import RunWorld
from tests.support.world import KEY, NAMESPACE
from vigil_core.services.workflows import commands as runs

RACE = [{"name": "a", "priority": "high"}, {"name": "b"}]
JOIN = {"name": "join", "depends_on": ["a", "b"], "trigger_rule": "one_success", "cancel_losers": True}


def test_the_last_racer_that_fails_is_to_be_decided_about(world: RunWorld) -> None:
    run = world.run(*RACE, JOIN, failure_policy="manual")
    world.work({"a": Exception("NO"), "b": Exception("NO")})
    assert world.found(run).status == "paused"
    runs.put_decision(world.ctx, NAMESPACE, run, "b", "skip", by=KEY, note=None)
    assert world.work() == ["join"]
    assert world.found(run).status == "completed"


def test_a_retry_of_a_cancelled_race_runs_it_again(world: RunWorld) -> None:
    run = world.run(*RACE, JOIN)
    runs.request_cancel(world.ctx, NAMESPACE, run, by=KEY)
    world.settle()
    assert set(world.statuses(run).values()) == {"cancelled"}
    world.retry(run)
    assert world.work() == ["a", "join"]
    assert world.statuses(run) == {"a": "completed", "b": "cancelled", "join": "completed"}
    assert world.found(run).status == "completed"


def test_who_has_lost_a_race_may_fail_the_next(world: RunWorld) -> None:
    run = world.run({"name": "first"}, *({**job, "depends_on": ["first"]} for job in RACE), JOIN)
    assert world.work() == ["first", "a", "join"]
    world.retry(run, "first")
    world.work({"a": Exception("NO"), "b": Exception("NO")})
    assert world.statuses(run) == {"first": "completed", "a": "failed", "b": "failed", "join": "cancelled"}
    standings = world.standings(run)
    assert [standings.ending(standings.graph.place_of[name]) for name in "ab"] == ["failed", "failed"]


def test_a_late_record_of_the_life_before_a_retry_ends_no_race(world: RunWorld) -> None:
    run = world.run(*RACE, JOIN)
    assert world.work() == ["a", "join"]
    before = list(world.carried)
    world.retry(run, "a")
    world.settle()
    world.table.records += before
    assert world.work() == ["a", "join"]
    assert world.statuses(run) == {"a": "completed", "b": "cancelled", "join": "completed"}


def test_a_race_that_is_lost_by_skips_that_the_fan_out_carries_out_fails_the_run(world: RunWorld) -> None:
    """The only racer left is skipped among very many: the failure of the other counts from then on."""
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
    assert world.found(run).status == "failed"
    assert world.at(run, "other").status == "cancelled"
