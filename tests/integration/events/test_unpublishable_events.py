"""An event that cannot be published affects no other event, and its own work ends with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.live import FakeSockets, FakeTopic, Live, types
from tests.support.world import NAMESPACE, FakeQueues, World
from vigil_core.domain.errors import InvalidTransition
from vigil_core.domain.events.event import Event, PublishRejected
from vigil_core.domain.webhooks import Delivery, Webhook
from vigil_core.gateways.sqs import NotSent
from vigil_core.services.webhooks.manage import replay_delivery
from vigil_core.store.table import DynamoTable
from vigil_core.store.webhooks import WebhookStore


class Ends:
    """The ends of two jobs in one batch of records. The event of one of them is poisoned."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.poisoned, self.other = live.world.running(), live.world.running()
        now = live.world.ctx.now()
        hook = Webhook(
            namespace=NAMESPACE, name="hook", url="https://receiver.example/", events=("vigil.job.completed",),
            enabled=True, disabled_reason=None, description=None, secret="", created_at=now, updated_at=now,
        )  # fmt: skip
        live.ctx.webhooks.save(None, hook)
        live.connect("bad")
        live.connect("good")
        live.run_notifier()
        live.subscribe(f"job:{self.poisoned}", connection_id="bad")
        live.subscribe("namespace", connection_id="good")
        live.world.complete(self.poisoned)
        live.world.complete(self.other)

    def failed_jobs(self) -> list[str]:
        """Publish everything, and return the jobs whose records failed."""
        records = self.live.records()
        failed = self.live.run_notifier(records).failed
        return [record.key.pk.rsplit("#", 1)[1] for record in records if record.sequence_number in failed]

    def published(self) -> list[str]:
        """Return the jobs whose events SNS received."""
        return [event.subject for event in self.live.topic.events]

    def deliveries(self) -> dict[str, tuple[str, str | None]]:
        """Return the status and the error of each delivery, by its job."""
        stored = self.live.ctx.webhooks.deliveries(NAMESPACE, "hook", before_id=None, limit=10)
        return {delivery.event_id.split(".")[0]: (delivery.status, delivery.error) for delivery in stored}

    def enqueued(self) -> list[bool]:
        """Return for each job whether its delivery is enqueued."""
        messages = "".join(self.live.world.queues.webhook_messages)
        return [f"_{job_id}_" in messages for job_id in (self.poisoned, self.other)]


@pytest.fixture
def ends(world: World, table: DynamoTable) -> Ends:
    return Ends(Live(world, table))


def test_socket_that_cannot_receive_a_message_is_closed(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    post = FakeSockets.post

    def refuse(sockets: FakeSockets, connection_id: str, text: str) -> bool:
        if connection_id == "bad":
            raise ValueError(text)
        return post(sockets, connection_id, text)

    monkeypatch.setattr(FakeSockets, "post", refuse)
    assert ends.failed_jobs() == []
    assert ends.live.sockets.closed == ["bad"]
    assert not list(ends.live.ctx.connections.subscribers(NAMESPACE, f"job:{ends.poisoned}"))
    assert types(ends.live.received("good")[1:]) == ["job.completed", "job.completed"]


def test_event_that_prevents_the_whole_request_to_sns_fails_alone(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = FakeTopic.publish

    def refuse(topic: FakeTopic, events: Sequence[Event]) -> dict[str, PublishRejected]:
        if any(event.subject == ends.poisoned for event in events):
            raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")
        return publish(topic, events)

    monkeypatch.setattr(FakeTopic, "publish", refuse)
    assert ends.failed_jobs() == [ends.poisoned]
    assert ends.published() == [ends.other]
    assert ends.enqueued() == [True, True]


def test_delivery_whose_event_cannot_be_stored_is_abandoned(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    add = WebhookStore.add_delivery

    def refuse(store: WebhookStore, delivery: Delivery) -> Delivery:
        if delivery.body and ends.poisoned in delivery.event_id:
            raise ValueError(delivery.body)
        return add(store, delivery)

    monkeypatch.setattr(WebhookStore, "add_delivery", refuse)
    assert ends.failed_jobs() == []
    assert ends.deliveries() == {
        ends.poisoned: ("failed", "The event cannot be stored: ValueError"),
        ends.other: ("pending", None),
    }
    assert ends.enqueued() == [False, True]
    (delivery,) = [
        delivery
        for delivery in ends.live.ctx.webhooks.deliveries(NAMESPACE, "hook", before_id=None, limit=10)
        if delivery.status == "failed"
    ]
    with pytest.raises(InvalidTransition, match="could not be stored"):
        replay_delivery(ends.live.ctx, NAMESPACE, "hook", delivery.delivery_id)


def test_delivery_that_cannot_be_enqueued_is_abandoned(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    send = FakeQueues.send_deliveries

    def refuse(queues: FakeQueues, messages: Sequence[str]) -> None:
        if any(ends.poisoned in message for message in messages):
            raise NotSent("refused", transient=False)
        send(queues, messages)

    monkeypatch.setattr(FakeQueues, "send_deliveries", refuse)
    assert ends.failed_jobs() == []
    assert ends.deliveries() == {
        ends.poisoned: ("failed", "The delivery cannot be enqueued: NOT_SENT"),
        ends.other: ("pending", None),
    }
    assert ends.enqueued() == [False, True]


def test_ended_wait_whose_answer_cannot_be_built_is_announced_without_it(
    world: World, table: DynamoTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Live(world, table)
    job_id = world.running()
    world.wait({job_id: None})
    world.complete(job_id)
    world.run_matcher()

    def refuse(*_: Any) -> Any:
        raise RecursionError

    monkeypatch.setattr("vigil_core.services.events.publish.wait_answer", refuse)
    assert not live.run_notifier().failed
    assert "vigil.wait.met" in [event.type for event in live.topic.events]
