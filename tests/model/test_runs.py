"""Generated runs of workflows, lived through with deaths, repetitions and delays: each ends as the reference says."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

import pytest
from moto import mock_aws

from tests.model.run_lives import RunLife
from tests.model.run_reference import PREDICATES, Planned
from tests.support.table import create_table
from vigil_core.domain import graphs, standings
from vigil_core.domain.standings import Standings
from vigil_core.services import claim_jobs, create_run, follow_run, look_after_run
from vigil_core.store.keys import Key
from vigil_core.store.runs import RunStore
from vigil_core.store.table import Row, Update

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


def _note_whatever_is_noted(self: RunStore, key: Key, numbers: Mapping[int, int]) -> Row:
    """Without the guard that a later moment counts."""
    sets = "".join(f", j{place} = :j{place}" for place in numbers)
    return self._table.update(
        Update(
            key=key,
            expression=f"SET entity = :entity, schema_version = :one, noted_at = :now, #ttl = :ttl{sets}",
            names={"#ttl": "ttl"},
            values={**{f":j{place}": number for place, number in numbers.items()}, **self._noted_now()},
        )
    )


def _as_the_join_is(standings: Standings, join: int) -> bool:
    return standings.of(join) != "skipped_by_failure"


FAULTS: dict[str, tuple[int, object, str, object]] = {
    "an earlier note replaces a later one": (7, RunStore, "_note", _note_whatever_is_noted),
    "places are not given back": (10, RunStore, "free_slots", lambda *_: None),
    "as many run as want to": (10, RunStore, "take_slot", lambda *_: True),
    "a race is as its join is": (13, standings, "_may_be_won", _as_the_join_is),
    "a paused run hands out its jobs": (16, claim_jobs, "may_begin", lambda *_: True),
    "failures do not reach the run": (5, follow_run, "_note_failures", lambda _ctx, run, *_: run),
    "the clock replaces no supervisor": (18, look_after_run, "replace_supervisor", lambda *_: None),
    "a run is over when what was heard of is": (2, follow_run, "_all_over", lambda *_: True),
}
"""With the first run, from 0 on, that finds it."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, owner, name, fake = FAULTS[fault]
    monkeypatch.setattr(owner, name, fake)
    with pytest.raises(AssertionError):
        _live_many(range(first, first + 100), monkeypatch)


def _live_many(numbers: range, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in numbers:
        with monkeypatch.context() as sizes:
            live(number, sizes)


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
