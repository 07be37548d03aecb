"""Events of workflow runs and of their jobs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from moto import mock_aws

from tests.support.live import Live
from tests.support.state_machine import Machine
from tests.support.table import create_table
from tests.support.world import KEY, NAMESPACE, World
from vigil_core.services.workflows import commands as runs
from vigil_core.services.workflows.create import create_run


@pytest.fixture
def live() -> Iterator[Live]:
    with mock_aws():
        table = create_table()
        world = World(table)
        world.ctx = replace(world.ctx, supervisors=Machine(table=lambda _, __: {}, act=lambda _: {}))
        yield Live(world, table)


def create(live: Live) -> str:
    ctx = live.ctx
    body: Any = {"name": "w", "correlation_id": "c", "jobs": [{"name": "a"}]}
    new = ctx.parse_run(NAMESPACE, body, ctx.new_id(), ctx.now(), None)
    return create_run(ctx, NAMESPACE, new, actor=KEY).workflow_id


def types_and_subjects(live: Live, *frames: Any) -> list[tuple[str, str]]:
    return [(frame["data"]["type"], frame["data"]["subject"]) for frame in frames]


def test_workflow_topic_receives_events_of_the_run_and_its_jobs(live: Live) -> None:
    live.connect()
    run = create(live)
    live.subscribe(f"workflow:{run}")
    before = len(live.received())
    runs.request_cancel(live.ctx, NAMESPACE, run, actor=KEY)
    live.run_notifier()
    assert ("vigil.workflow.cancel_requested", run) in types_and_subjects(live, *live.received()[before:])
    kinds = [event.type for event in live.topic.events]
    assert "vigil.workflow.cancel_requested" not in kinds, "SNS receives only events of an end"


def test_subscription_with_since_replays_run_events(live: Live) -> None:
    live.connect()
    run = create(live)
    runs.request_cancel(live.ctx, NAMESPACE, run, actor=KEY)
    (event,) = live.subscribe(f"workflow:{run}", since=f"{run}.1")
    assert (event["data"]["type"], event["data"]["data"]["correlation_id"]) == ("vigil.workflow.cancel_requested", "c")


def test_subscription_to_an_unknown_run_is_refused(live: Live) -> None:
    live.connect()
    frame = {"action": "subscribe", "id": "s", "topics": [f"workflow:{live.ctx.new_id()}"]}
    (error,) = live.send(frame)
    assert error["data"]["error"] == "WORKFLOW_NOT_FOUND"
