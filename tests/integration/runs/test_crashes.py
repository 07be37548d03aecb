"""Runs whose makers died on the way, on moto."""

from __future__ import annotations

from typing import Any

import pytest
import uuid6

from tests.support.runs import RunWorld
from tests.support.world import KEY, NAMESPACE
from vigil_core.api.workflow_wire import run_of_body
from vigil_core.domain.standings import Note
from vigil_core.services import create_run


def test_a_delayed_job_that_was_created_after_its_time_starts(world: RunWorld) -> None:
    body: Any = {"name": "test", "jobs": [{"name": "a", "start_delay": 5}, {"name": "b", "depends_on": ["a"]}]}
    run_id = str(uuid6.uuid7())
    new = run_of_body(NAMESPACE, body, run_id, now=world.time, find_types=world.ctx.job_types.find_many)
    world.pass_time(60)
    create_run.create_run(world.ctx, NAMESPACE, new, by=KEY)
    world.settle()
    world.sweep()
    assert world.work() == ["a", "b"]
    assert world.found(run_id).status == "completed"


def test_of_two_notes_on_one_moment_the_first_stands(world: RunWorld) -> None:
    run = world.found(world.run({"name": "a"}))
    note = world.ctx.runs.note
    for standing in ("failed", "undecided"):
        note(run.namespace, run.workflow_id, 0, {0: Note(standing=standing, moment=4)})
    assert world.standings(run.workflow_id).of(0) == "failed"
    note(run.namespace, run.workflow_id, 0, {0: Note(standing="pardoned", moment=5)})
    note(run.namespace, run.workflow_id, 0, {0: Note(standing="running", moment=3)})
    assert world.standings(run.workflow_id).of(0) == "pardoned"


def test_whoever_asks_again_finishes_what_an_earlier_try_left_undone(
    world: RunWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    body: Any = {"name": "test", "jobs": [{"name": "a"}, {"name": "b", "depends_on": ["a"]}]}
    run_id = str(uuid6.uuid7())
    new = run_of_body(NAMESPACE, body, run_id, now=world.time, find_types=world.ctx.job_types.find_many)
    with monkeypatch.context() as patched:
        patched.setattr(create_run, "prepare", lambda _, run: run)
        assert not create_run.create_run(world.ctx, NAMESPACE, new, by=KEY).sealed
    assert create_run.create_run(world.ctx, NAMESPACE, new, by=KEY, resumed=True).sealed
    assert world.work() == ["a", "b"]
    assert world.found(run_id).status == "completed"
