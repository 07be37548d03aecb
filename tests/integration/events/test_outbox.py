"""Messages to WebSockets over the share of a namespace: they go through `fan_out`, completely and in order."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from tests.support.live import Live
from tests.support.world import NAMESPACE, World
from vigil_core.domain.errors import StoreConflict
from vigil_core.domain.events.event import Event
from vigil_core.domain.exact_json import dumps, loads
from vigil_core.services.background.fan_out import fan_out
from vigil_core.services.events import outbox
from vigil_core.store import keys
from vigil_core.store.table import DynamoTable

CONNECTIONS = ["c1", "c2", "c3"]


@pytest.fixture
def live(world: World, table: DynamoTable) -> Live:
    live = Live(world, table)
    for connection_id in CONNECTIONS:
        live.connect(connection_id)
        live.subscribe("namespace", connection_id=connection_id)
    return live


def run_fan_out(live: Live, *, limit: int | None = None) -> int:
    """Process the messages to `fan_out` in order, at most `limit` of them, and return their number."""
    messages = live.world.queues.fan_out_messages
    count = 0
    while messages and (limit is None or count < limit):
        document = loads(messages.pop(0).body)
        assert fan_out(live.ctx, document, has_time_left=lambda: True, sockets=lambda: live.sockets)
        count += 1
    return count


def event_ids(live: Live, connection_id: str) -> list[str]:
    return [frame["data"]["id"] for frame in live.received(connection_id) if frame["type"] == "event"]


def end_job(live: Live) -> list[str]:
    job = live.world.running()
    live.world.complete(job)
    return [f"{job}.{version}" for version in (1, 2, 3)]


def test_events_within_the_share_are_sent_at_once(live: Live, table: DynamoTable) -> None:
    expected = end_job(live)
    live.run_notifier()
    assert all(event_ids(live, connection_id) == expected for connection_id in CONNECTIONS)
    assert not live.world.queues.fan_out_messages
    assert table.get(keys.socket_backlog(NAMESPACE)) is None


def test_events_over_the_share_are_sent_by_fan_out(
    live: Live, table: DynamoTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "INLINE_SEND_S", 0)
    expected = end_job(live)
    report = live.run_notifier()
    assert report.messages == 9
    assert not event_ids(live, "c1")
    assert table.get(keys.socket_backlog(NAMESPACE)) is not None
    run_fan_out(live)
    assert all(event_ids(live, connection_id) == expected for connection_id in CONNECTIONS)
    assert table.get(keys.socket_backlog(NAMESPACE)) is None


@pytest.mark.parametrize("seed", range(12))
def test_each_connection_receives_all_events_in_order(
    live: Live, table: DynamoTable, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Use up the share at any message, let `fan_out` process any number of messages between two batches, and repeat."""
    choose = random.Random(seed)
    monkeypatch.setattr(outbox, "MAX_MESSAGE_BYTES", choose.choice([500, 2_000, 200_000]))
    charge = outbox.BatchSender._charge
    monkeypatch.setattr(outbox.BatchSender, "_charge", lambda sender, namespace, _: charge(sender, namespace, 0.1))
    live.subscribe("queue:default", connection_id="c3")
    expected: list[str] = []
    for _ in range(5):
        monkeypatch.setattr(outbox, "INLINE_SEND_S", choose.choice([0, 0.3, 0.7, 1.5, 100]))
        for _ in range(choose.randint(1, 3)):
            expected += end_job(live)
        assert not live.run_notifier().failed
        run_fan_out(live, limit=choose.randint(0, 4))
    run_fan_out(live)
    for connection_id in CONNECTIONS:
        assert list(dict.fromkeys(event_ids(live, connection_id))) == expected
    assert table.get(keys.socket_backlog(NAMESPACE)) is None
    live.run_notifier()


def test_other_namespace_is_sent_at_once_while_one_has_a_backlog(live: Live) -> None:
    now = live.ctx.now()
    live.ctx.connections.open_socket_backlog("other", "token", until=now + outbox.BACKLOG_TTL)
    expected = end_job(live)
    live.run_notifier()
    assert event_ids(live, "c1") == expected


def test_backlog_mark_of_a_crashed_process_expires(live: Live) -> None:
    now = live.ctx.now()
    live.ctx.connections.open_socket_backlog(NAMESPACE, "token", until=now + outbox.BACKLOG_TTL)
    live.world.pass_time(outbox.BACKLOG_TTL.total_seconds() + 1)
    expected = end_job(live)
    live.run_notifier()
    assert event_ids(live, "c1") == expected


def test_closed_socket_is_removed_by_fan_out(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "INLINE_SEND_S", 0)
    end_job(live)
    live.run_notifier()
    live.sockets.gone.add("c1")
    run_fan_out(live)
    subscribers: Any = live.ctx.connections.subscribers(NAMESPACE, "namespace")
    assert {subscriber.connection_id for subscriber in subscribers} == {"c2", "c3"}


@pytest.mark.parametrize("seed", range(10))
def test_messages_to_fan_out_stay_below_their_limit(seed: int) -> None:
    """One event may have very many recipients, and one recipient very many events."""
    chance = random.Random(seed)
    events = [some_event(number, chance.randrange(1, 20_000)) for number in range(chance.choice([1, 5, 50]))]
    subscriptions = [f"{number:0128}" for number in range(chance.choice([1, 30, 1_000]))]
    by_connection = {
        f"connection{number}": [
            outbox.OutgoingEvent(record="r", position=position, subscription_id=subscription, event=event)
            for position, event in enumerate(events)
            for subscription in chance.sample(subscriptions, chance.randrange(len(subscriptions)) + 1)
        ]
        for number in range(chance.choice([1, 10]))
    }
    parts = list(outbox._parts(by_connection))
    assert max(len(dumps([*part])) for part in parts) <= 256 * 1024
    sent = [
        (connection_id, subscription_id, envelopes[number]["id"])
        for envelopes, recipients in cast("Any", parts)
        for connection_id, subscription_id, numbers in recipients
        for number in numbers
    ]
    expected = [
        (connection_id, message.subscription_id, message.event.event_id)
        for connection_id, messages in by_connection.items()
        for message in messages
    ]
    assert sorted(sent) == sorted(expected)


def some_event(number: int, size: int) -> Event:
    return Event(
        event_id=f"e{number}",
        type="vigil.job.updated",
        namespace=NAMESPACE,
        subject="j",
        time=datetime(2026, 1, 31, tzinfo=UTC),
        data={"text": "x" * size},
        topics=("job:j",),
        audience="change",
    )


def test_unreadable_backlog_mark_delays_no_other_namespace(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """The messages of the namespace go through `fan_out`, and the notification of the batch succeeds."""

    def refuse(*_: object) -> bool:
        raise StoreConflict("throttled")

    monkeypatch.setattr(type(live.ctx.connections), "has_socket_backlog", refuse)
    expected = end_job(live)
    live.run_notifier()
    assert event_ids(live, "c1") == []
    run_fan_out(live)
    assert event_ids(live, "c1") == expected
