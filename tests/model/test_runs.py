"""Generated runs of workflows, lived through with deaths, repetitions and delays: each ends as the reference says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from moto import mock_aws

from tests.model.run_lives import RunLife
from tests.model.run_reference import PREDICATES, Planned
from tests.support.table import create_table
from vigil_core.domain import graphs
from vigil_core.services import create_run, follow_run

RUNS = int(os.environ.get("VIGIL_RUNS", "300"))
FIRST_SEED = int(os.environ.get("VIGIL_SEED", "0"))
PART = 50
RULES = ["all_success"] * 6 + [*PREDICATES, "always"]
pytestmark = [pytest.mark.model, pytest.mark.timeout(900)]


@pytest.fixture(autouse=True)
def table() -> Iterator[None]:
    with mock_aws():
        create_table()
        yield


@pytest.mark.parametrize("part", range(FIRST_SEED, FIRST_SEED + RUNS, PART))
def test_every_run_ends_as_the_reference_says(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = 0
    for number in range(part, min(part + PART, FIRST_SEED + RUNS)):
        try:
            exact += live(number, monkeypatch)
        except BaseException as error:
            error.add_note(f"in run {number}: VIGIL_SEED={number} VIGIL_RUNS=1")
            raise
    assert exact >= (RUNS >= PART) * PART // 3, "most can be told exactly"


def live(number: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    chance = Random(number)
    large = chance.random() < 0.015
    # Small graphs are as wide, to Vigil, as large ones are at its own sizes.
    monkeypatch.setattr(graphs, "CHUNK_JOBS", 16 if large else chance.choice([2, 4, 64]))
    monkeypatch.setattr(create_run, "AT_ONCE", chance.choice([3, 256]))
    monkeypatch.setattr(follow_run, "NARROW", chance.choice([1, 3, 200]))
    monkeypatch.setattr(follow_run, "HELD_AT_ONCE", chance.choice([1, 2, 25]))
    jobs = planned(chance, 60 if large else chance.randint(1, 12))
    rest: dict[str, Any] = {"failure_policy": chance.choice(["fail_fast", "continue_on_failure", "manual"])}
    if chance.random() < 0.4:
        rest["max_concurrency"] = chance.randint(1, 3)
    if chance.random() < 0.08:
        rest["timeout"] = 300
    life = RunLife(chance, jobs, orderly=chance.random() < 0.6, **rest)
    exact = _lived(life, chance.randint(0, min(40, 3 * len(jobs))))
    for _ in range(chance.choice([0, 0, 1, 2])):
        if life.retry():
            exact = _lived(life, chance.randint(0, len(jobs)))
    return exact


def planned(chance: Random, total: int) -> list[Planned]:
    """Jobs of a graph without circles, in any order."""
    names = [f"j{number}" for number in range(total)]
    jobs: list[Planned] = []
    for number, name in enumerate(names):
        most = min(number, chance.choice([0, 1, 1, 2, 2, 3, 5, 20]))
        after = chance.sample(names[max(0, number - 25) : number], min(most, number, 25))
        race = len(after) > 1 and chance.random() < 0.12
        rule = "one_success" if race else chance.choice(RULES) if after else "all_success"
        join = chance.random() < 0.1
        condition: Any = None
        if chance.random() < 0.15:
            condition = chance.choice(["true", "false", "broken"])
        elif after and rule == "all_success" and chance.random() < 0.15:
            condition = (after[0], chance.randint(0, 1))
        failures = 0.25 if total < 20 else 0.05
        jobs.append(
            Planned(
                name=name,
                after=after,
                rule=rule,
                race=race,
                join=join,
                condition=condition,
                attempts=1 if join else chance.choice([1, 1, 1, 2, 3]),
                fallback=-1 if not join and chance.random() < 0.1 else None,
                delayed=chance.random() < 0.08,
                outcomes=[None if chance.random() < failures else chance.randint(0, 1) for _ in range(3)],
            )
        )
    chance.shuffle(jobs)
    return jobs


def _lived(life: RunLife, acts: int) -> bool:
    for _ in range(acts):
        if life.world.found(life.run_id).ended:
            break
        if life.orderly:
            life.quiet()
        else:
            for _ in range(life.chance.randint(0, 4)):
                life.go_on(0.08)
                life.look()
        life.act()
    life.come_to_end()
    return life.check_end()
