"""Generated histories of deliveries: lost and duplicated messages, crashed processes, failing receivers, replays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto import mock_aws

from tests.integration.webhooks.test_webhooks import (
    ProcessCrashed,
    Receiver,
    Reply,
    crash_at_write,
    deliveries,
    put,
    restore_table,
    run_deliveries,
)
from tests.support.live import Live
from tests.support.table import create_table
from tests.support.world import NAMESPACE, World
from vigil_core.domain.webhooks import MAX_ATTEMPTS
from vigil_core.services.background.sweep import SweepFailed
from vigil_core.services.webhooks import manage as manage_webhooks
from vigil_core.store.table import DynamoTable


class History:
    """One webhook, jobs that complete, and faults in the deliveries of their events."""

    def __init__(self, table: DynamoTable) -> None:
        self.table = table
        self.live = Live(World(table), table)
        self.world = self.live.world
        self.receiver = Receiver()
        self.taken: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.jobs = 0
        put(self.world)

    def accept(self) -> Reply:
        self.taken[self.receiver.posts[-1][1]["webhook-id"]] += 1
        return Reply(200)

    def reject(self) -> Reply:
        self.refused[self.receiver.posts[-1][1]["webhook-id"]] += 1
        return Reply(500)

    def do(self, action: str) -> None:
        queued = self.world.queues.webhook_messages
        match action:
            case "a job completes":
                self.jobs += 1
                self.world.complete(self.world.running())
                records = self.live.records()
                self.live.run_notifier(records)
            case "the notifier crashes":
                self.jobs += 1
                self.world.complete(self.world.running())
                records = self.live.records()
                self.with_crash(lambda: self.live.run_notifier(records))
                assert not self.live.run_notifier(records).failed
            case "messages are lost":
                queued.clear()
            case "messages are duplicated":
                queued.extend(list(queued))
            case "the receiver accepts":
                self.receiver.answer = self.accept
                run_deliveries(self.world, self.receiver)
            case "the receiver rejects":
                self.receiver.answer = self.reject
                run_deliveries(self.world, self.receiver)
            case "a delivery crashes":
                self.receiver.answer = self.accept
                messages = list(queued)
                self.with_crash(lambda: run_deliveries(self.world, self.receiver))
                self.world.queues.webhook_messages = messages
            case "the sweeper crashes":
                self.with_crash(self.world.sweep)
            case "the sweeper sweeps":
                self.world.sweep()
            case "an hour passes":
                self.world.pass_time(3_600)
            case "the last delivery is replayed":
                for each in deliveries(self.world)[:1]:
                    manage_webhooks.replay_delivery(self.world.ctx, NAMESPACE, "ci", each.delivery_id)

    def with_crash(self, work: Callable[[], Any]) -> None:
        crash_at_write(self.live, self.table, 1, after=len(self.receiver.posts) % 2 == 0)
        try:
            work()
        except (ProcessCrashed, SweepFailed):
            pass
        finally:
            restore_table(self.live, self.table)

    def drain(self) -> None:
        """Deliver everything without further faults."""
        self.receiver.answer = self.accept
        for _ in range(40):
            run_deliveries(self.world, self.receiver)
            if all(each.status != "pending" for each in deliveries(self.world)):
                return
            self.world.pass_time(100_000)
            self.world.sweep()
        raise AssertionError([each for each in deliveries(self.world) if each.status == "pending"])


ACTIONS = [
    "a job completes", "the notifier crashes", "messages are lost", "messages are duplicated", "the receiver accepts",
    "the receiver rejects", "a delivery crashes", "the sweeper crashes", "the sweeper sweeps", "an hour passes",
    "the last delivery is replayed",
]  # fmt: skip


@given(st.lists(st.sampled_from(ACTIONS), max_size=40))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_event_is_delivered_or_abandoned_after_ten_attempts(actions: list[str]) -> None:
    with mock_aws():
        history = History(create_table())
        for action in ["a job completes", *actions]:
            history.do(action)
        history.drain()
        stored = deliveries(history.world)
        assert len(stored) == history.jobs, "each event has exactly one delivery"
        for each in stored:
            if each.status == "delivered":
                assert history.taken[each.delivery_id] > 0
            else:
                assert history.refused[each.delivery_id] >= MAX_ATTEMPTS
            received = {
                body["id"] for _, headers, body in history.receiver.posts if headers["webhook-id"] == each.delivery_id
            }
            assert received <= {each.event_id}
        assert history.world.sweep() == 0, "the due index is empty"
