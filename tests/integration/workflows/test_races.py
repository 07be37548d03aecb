"""Races in workflow runs, on moto."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from tests.support.runs import RunWorld
from tests.support.world import KEY, NAMESPACE
from vigil_core.domain.errors import InvalidTransition
from vigil_core.domain.exact_json import loads
from vigil_core.domain.jobs.job import Job
from vigil_core.services.jobs import transitions
from vigil_core.services.workflows import advance, cancellation
from vigil_core.services.workflows import commands as runs
from vigil_core.store.workflows.runs import RunStore

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


def claim_both(world: RunWorld) -> tuple[Job, Job]:
    """Claim the two racers, the first one first."""
    world.run_until_idle()
    winner, loser = world.claim(), world.claim()
    assert winner is not None
    assert loser is not None
    return winner, loser


def report_of(world: RunWorld, run: str) -> tuple[Any, ...]:
    """Return everything of a run that a late report could change."""
    found = world.find_run(run)
    return found.status, found.version, found.statistics, world.ctx.runs.result(found), found.log


def test_won_race_completes_its_run_while_the_loser_still_runs(world: RunWorld) -> None:
    run = world.run(*RACE, {**JOIN, "executor": "join"}, max_concurrency=3)
    winner, loser = claim_both(world)
    world.finish(winner, {"from": "a"})
    world.run_until_idle()
    assert world.statuses(run) == {"a": "completed", "b": "running", "join": "completed"}
    ended = world.find_run(run)
    assert ended.status == "completed"
    assert {status: count for status, count in (ended.statistics or {}).items() if count} == {
        "completed": 2, "cancelled": 1,
    }  # fmt: skip
    before = report_of(world, run)
    assert world.at(run, "b").cancel_requested_at is not None
    with pytest.raises(InvalidTransition, match="b lost a race and has not stopped yet"):
        runs.retry(world.ctx, NAMESPACE, run, from_job="a", actor=KEY)
    world.finish(loser, {"from": "b"})
    world.run_until_idle()
    assert world.at(run, "b").status == "completed"
    assert report_of(world, run) == before
    text, _ = world.ctx.runs.result(world.find_run(run))
    assert loads(text or "") == {"from": "a"}
    world.retry(run, "a")
    assert world.ctx.runs.slot_owners(world.find_run(run)) == set()
    assert world.work() == ["a"]
    assert world.find_run(run).status == "completed"


def test_running_loser_keeps_its_lease_and_its_mutex_until_it_is_forced(world: RunWorld) -> None:
    run = world.run(RACE[0], {**RACE[1], "mutex": {"key": "tape", "on_conflict": "queue"}}, JOIN)
    winner, loser = claim_both(world)
    world.finish(winner)
    assert world.work() == ["join"]
    assert world.find_run(run).status == "completed"
    assert loser.lease is not None
    transitions.heartbeat(world.ctx, NAMESPACE, loser.job_id, lease_token=loser.lease.token, lease_s=3_600)
    after = world.run({"name": "c", "mutex": {"key": "tape", "on_conflict": "queue"}})
    world.run_until_idle()
    assert world.statuses(after) == {"c": "waiting"}
    world.pass_time(61)
    transitions.apply_timers(world.ctx, NAMESPACE, loser.job_id)
    world.run_until_idle()
    assert world.at(run, "b").status == "cancelled"
    assert world.statuses(after) == {"c": "pending"}


def test_successor_of_a_running_loser_is_released_with_the_end_of_the_race(world: RunWorld) -> None:
    run = world.run(*RACE, JOIN, {"name": "report", "depends_on": ["b"], "trigger_rule": "all_done"})
    winner, _ = claim_both(world)
    world.finish(winner)
    assert sorted(world.work()) == ["join", "report"]
    assert world.statuses(run)["b"] == "running"
    assert world.find_run(run).status == "completed"


def test_losers_are_cancelled_although_the_run_has_ended_since_the_crash(
    world: RunWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that records the losers crashes before it cancels them, and another one ends the run."""
    run = world.run(*RACE, {**JOIN, "executor": "join"})
    winner, _ = claim_both(world)
    with monkeypatch.context() as patch:
        patch.setattr(cancellation, "cancel", lambda *_, **__: None)
        world.finish(winner)
        world.run_until_idle()
    assert world.find_run(run).status == "completed"
    assert world.at(run, "b").cancel_requested_at is None
    world.table.records += world.delivered
    world.run_until_idle()
    assert world.at(run, "b").cancel_requested_at is not None


def test_racer_whose_end_is_recorded_first_is_no_loser(world: RunWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second success is recorded between the read of the states and the record of the losers."""
    run = world.run(*RACE, JOIN)
    winner, second = claim_both(world)
    record_race_losers = RunStore.record_race_losers

    def end_first(store: RunStore, *args: Any) -> Any:
        if world.at(run, "b").status == "running":
            world.finish(second)
            advance.on_jobs_changed(world.ctx, NAMESPACE, run, [world.at(run, "b")])
        return record_race_losers(store, *args)

    monkeypatch.setattr(RunStore, "record_race_losers", end_first)
    world.finish(winner)
    assert world.work() == ["join"]
    run_state = world.run_state(run)
    assert not run_state.lost_race(run_state.graph.index_of["b"])
    assert (world.find_run(run).statistics or {})["completed"] == 3


@pytest.mark.parametrize("seed", range(12))
def test_generated_races_end_their_run_without_waiting_for_a_loser(world: RunWorld, seed: int) -> None:
    """The losers run, or are pending, scheduled or waiting. One winner for each join ends the run."""
    chance = Random(seed)
    names = [f"r{number}" for number in range(chance.randint(3, 7))]
    starts = {name: chance.choice(["running", "running", "pending", "scheduled", "waiting"]) for name in names}
    starts[names[0]] = "running"
    racers: list[dict[str, Any]] = [{"name": "never", "queue": "never"}]
    for name in names:
        racers.append({"name": name, "queue": name})
        if starts[name] == "scheduled":
            racers[-1]["start_delay"] = 3_600
        elif starts[name] == "waiting":
            racers[-1]["depends_on"] = ["never"]
    fields = [
        names[1:],
        *(chance.sample(names[1:], chance.randint(1, len(names) - 1)) for _ in range(chance.randint(0, 2))),
    ]
    joins = [
        {"name": f"join{number}", "executor": "join", "depends_on": [names[0], *others],
         "trigger_rule": "one_success", "cancel_losers": True}
        for number, others in enumerate(fields)
    ]  # fmt: skip
    joins.append({**joins[0], "name": "all", "depends_on": [names[0], "never"]})
    run = world.run(*chance.sample([*racers, *joins], len(racers) + len(joins)))
    world.run_until_idle()
    claimed = {name: world.claim(name) for name in names if starts[name] == "running"}
    winner = claimed[names[0]]
    assert winner is not None
    world.finish(winner, {"winner": True})
    world.run_until_idle()
    ended = world.find_run(run)
    assert ended.status == "completed", world.statuses(run)
    assert {status: count for status, count in (ended.statistics or {}).items() if count} == {
        "completed": 1 + len(joins), "cancelled": len(names),
    }  # fmt: skip
    for name in (*names[1:], "never"):
        job = world.at(run, name)
        assert job.cancel_requested_at is not None if starts.get(name) == "running" else job.status == "cancelled"
