"""Operators that decide about the same failure, on moto: the first decision counts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from typing import Any

import pytest

from tests.support.runs import RunWorld
from tests.support.world import KEY, NAMESPACE
from vigil_core.domain.errors import InvalidTransition
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.services.workflows import commands

ACTIONS: list[Any] = ["retry", "skip", "abort"]


def failed_run(world: RunWorld) -> str:
    run_id = world.run({"name": "a"}, {"name": "b", "depends_on": ["a"]}, failure_policy="manual")
    world.work({"a": Exception("NO")})
    return run_id


def decide(world: RunWorld, run_id: str, action: Any, decision_id: str) -> WorkflowRun:
    return commands.put_decision(
        world.ctx, NAMESPACE, run_id, "a", action, decision_id=decision_id, actor=KEY, comment=None
    )


@pytest.mark.parametrize("actions", list(permutations(ACTIONS)), ids="-".join)
def test_of_several_operators_the_first_decides(world: RunWorld, actions: tuple[Any, ...]) -> None:
    run_id = failed_run(world)
    decide(world, run_id, actions[0], "d0")
    for number, action in enumerate(actions):
        with pytest.raises(InvalidTransition, match="already has a decision"):
            decide(world, run_id, action, f"d{number + 1}")
    world.work({"a": 1})
    expected = {"retry": "completed", "skip": "completed", "abort": "failed"}
    assert world.find_run(run_id).status == expected[actions[0]]
    assert world.statuses(run_id)["a"] == ("completed" if actions[0] == "retry" else "failed")


def test_of_operators_at_the_same_moment_one_decides(world: RunWorld) -> None:
    run_id = failed_run(world)

    def is_accepted(number: int) -> bool:
        try:
            decide(world, run_id, ACTIONS[number % 3], f"d{number}")
        except InvalidTransition:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(is_accepted, range(6))) == 1


@pytest.mark.parametrize("repeats_own", [True, False], ids=["the same operator", "another operator"])
def test_decision_takes_effect_after_a_crash_before_its_signal(
    world: RunWorld, monkeypatch: pytest.MonkeyPatch, *, repeats_own: bool
) -> None:
    run_id = failed_run(world)

    def raise_crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(commands, "change_run", raise_crash)
        with pytest.raises(KeyboardInterrupt):
            decide(world, run_id, "skip", "d0")
    if repeats_own:
        decide(world, run_id, "skip", "d0")
    else:
        with pytest.raises(InvalidTransition, match="already has a decision: skip"):
            decide(world, run_id, "abort", "d1")
    world.work()
    assert world.find_run(run_id).status == "completed"


def test_decision_repeated_under_its_id_succeeds_after_it_was_applied(world: RunWorld) -> None:
    run_id = failed_run(world)
    decide(world, run_id, "skip", "d0")
    world.work()
    assert decide(world, run_id, "skip", "d0").status == "completed"
    with pytest.raises(InvalidTransition):
        decide(world, run_id, "skip", "d1")


def test_second_failure_of_a_job_accepts_another_decision(world: RunWorld) -> None:
    run_id = failed_run(world)
    decide(world, run_id, "retry", "d0")
    world.work({"a": Exception("NO")})
    decide(world, run_id, "skip", "d1")
    world.work()
    assert world.find_run(run_id).status == "completed"
