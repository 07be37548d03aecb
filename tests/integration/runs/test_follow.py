"""Runs of workflows, from their creation to their end, on moto."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from moto import mock_aws

from tests.model.moto_table import empty_table
from tests.support.runs import RunWorld
from tests.support.table import create_table
from tests.support.world import KEY, NAMESPACE
from vigil_core.services import create_run, runs


@pytest.fixture(scope="module", autouse=True)
def aws() -> Iterator[None]:
    with mock_aws():
        create_table()
        yield


@pytest.fixture
def world() -> RunWorld:
    return RunWorld(empty_table())


def test_a_chain_runs_one_after_another(world: RunWorld) -> None:
    run = world.run({"name": "a"}, {"name": "b", "depends_on": ["a"]}, {"name": "c", "depends_on": ["b"]})
    assert world.work({"c": {"rows": 3}}) == ["a", "b", "c"]
    assert world.found(run).status == "completed"
    assert world.statuses(run) == {"a": "completed", "b": "completed", "c": "completed"}


def test_fail_fast_cancels_what_is_left(world: RunWorld) -> None:
    run = world.run(
        {"name": "a", "priority": "high"},
        {"name": "b", "depends_on": ["a"]},
        {"name": "c"},
        {"name": "d", "depends_on": ["c"]},
    )
    assert world.work({"a": Exception("NO")}) == ["a"]
    assert world.found(run).status == "failed"
    assert world.statuses(run) == {"a": "failed", "b": "cancelled", "c": "cancelled", "d": "cancelled"}


def test_continue_on_failure(world: RunWorld) -> None:
    run = world.run(
        {"name": "a", "priority": "high"},
        {"name": "b", "depends_on": ["a"]},
        {"name": "c"},
        {"name": "d", "depends_on": ["c"]},
        failure_policy="continue_on_failure",
    )
    assert world.work({"a": Exception("NO")}) == ["a", "c", "d"]
    assert world.found(run).status == "failed"
    assert world.statuses(run) == {"a": "failed", "b": "skipped", "c": "completed", "d": "completed"}


@pytest.mark.parametrize("heard_before_it_begins", [True, False])
def test_what_comes_after_a_job_that_is_kept_runs_again(world: RunWorld, heard_before_it_begins: bool) -> None:
    run = world.run(
        {"name": "a"},
        {"name": "b", "depends_on": ["a"]},
        {"name": "c", "depends_on": ["b"]},
        failure_policy="continue_on_failure",
    )
    assert world.work({"b": Exception("NO")}) == ["a", "b"]
    create_run.prepare(world.ctx, runs.retry(world.ctx, NAMESPACE, run, start=None, by=KEY))
    while heard_before_it_begins and world.table.records:
        world.carry_stream()
    assert world.work() == ["b", "c"]
    assert world.found(run).status == "completed"
