"""Runs whose makers died on the way, on moto."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import uuid6
from moto import mock_aws

from tests.model.moto_table import empty_table
from tests.support.runs import RunWorld
from tests.support.table import create_table
from tests.support.world import KEY, NAMESPACE
from vigil_core.api.workflow_wire import run_of_body
from vigil_core.services import create_run


@pytest.fixture
def world() -> Iterator[RunWorld]:
    with mock_aws():
        create_table()
        yield RunWorld(empty_table())


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
