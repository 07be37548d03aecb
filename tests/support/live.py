"""Sockets and an SNS topic that record what they receive, and the table's stream as the notifier receives it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.support.table import TABLE_NAME, aws
from tests.support.world import KEY, NAMESPACE, World
from vigil_core.domain.access import Access, ApiKey, Scope
from vigil_core.domain.events.event import Event, PublishRejected
from vigil_core.domain.exact_json import dumps, loads
from vigil_core.services.events import subscriptions
from vigil_core.services.events.publish import PublishReport, notify
from vigil_core.services.events.subscriptions import Peer
from vigil_core.store.auth.api_keys import ApiKeyStore
from vigil_core.store.stream import StreamRecord, stream_records
from vigil_core.store.table import Table

ACCESS = Access(namespace=NAMESPACE, scopes=frozenset({Scope.READ}), key_id=KEY)


class AwsFault(ConnectionError):
    """Error that simulates a fault of AWS."""


@dataclass
class FakeSockets:
    """The frames that were posted to each connection, in order."""

    frames: dict[str, list[Any]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    closed: list[str] = field(default_factory=list)

    def post(self, connection_id: str, text: str) -> bool:
        if connection_id in self.failing:
            raise AwsFault(connection_id)
        if connection_id in self.gone:
            return False
        self.frames.setdefault(connection_id, []).append(loads(text))
        return True

    def close(self, connection_id: str) -> bool:
        self.closed.append(connection_id)
        return connection_id not in self.gone


@dataclass
class FakeTopic:
    """The events that were published to SNS."""

    events: list[Event] = field(default_factory=list)
    refused_ids: set[str] = field(default_factory=set)

    def publish(self, events: Sequence[Event]) -> dict[str, PublishRejected]:
        self.events += [event for event in events if event.event_id not in self.refused_ids]
        refused = [event.event_id for event in events if event.event_id in self.refused_ids]
        return {event_id: PublishRejected("refused", transient=True) for event_id in refused}


class Stream:
    """The table's stream. Each read continues after the last one."""

    def __init__(self) -> None:
        self._client: Any = aws("dynamodbstreams")
        arn = aws("dynamodb").describe_table(TableName=TABLE_NAME)["Table"]["LatestStreamArn"]
        (shard,) = self._client.describe_stream(StreamArn=arn)["StreamDescription"]["Shards"]
        self._iterator = self._client.get_shard_iterator(
            StreamArn=arn, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]

    def event(self) -> dict[str, Any]:
        """Return all records since the last call, as an event of Lambda."""
        records: list[Any] = []
        while True:
            answer = self._client.get_records(ShardIterator=self._iterator)
            self._iterator = answer["NextShardIterator"]
            if not answer["Records"]:
                return {"Records": records}
            records += answer["Records"]


class Live:
    """One namespace with its sockets. Changes stay in the stream until the test calls `run_notifier`."""

    def __init__(self, world: World, table: Table) -> None:
        self.world = world
        self.ctx = world.ctx
        self.sockets = FakeSockets()
        self.topic = FakeTopic()
        self.api_keys = ApiKeyStore(table)
        self.stream = Stream()
        self.api_keys.add(
            ApiKey(
                namespace=NAMESPACE,
                key_id=KEY,
                secret_hash="",
                scopes=ACCESS.scopes,
                name=None,
                created_at=datetime(2026, 1, 1, tzinfo=UTC),
            )
        )

    def connect(self, connection_id: str = "c1") -> str:
        assert subscriptions.connect(self.ctx, self.api_keys, ACCESS, connection_id)
        return connection_id

    def send(self, frame: Any, connection_id: str = "c1") -> list[Any]:
        """Send a message and return the immediate response frames. A text is sent unchanged, other values as JSON."""
        before = len(self.received(connection_id))
        peer = Peer(access=ACCESS, connection_id=connection_id, sockets=self.sockets)
        subscriptions.receive(self.ctx, peer, frame if isinstance(frame, str) else dumps(frame))
        return self.received(connection_id)[before:]

    def subscribe(self, *topics: str, connection_id: str = "c1", **rest: Any) -> list[Any]:
        """Subscribe with the id "s1" and return the frames after the acknowledgement."""
        frame = {"action": "subscribe", "id": "s1", "topics": list(topics), **rest}
        ack, *events = self.send(frame, connection_id)
        assert (ack["type"], ack["id"]) == ("ack", "s1"), ack
        return events

    def received(self, connection_id: str = "c1") -> list[Any]:
        return self.sockets.frames.get(connection_id, [])

    def records(self) -> list[StreamRecord]:
        """Return the stream records since the last call."""
        return stream_records(self.stream.event())

    def run_notifier(self, records: list[StreamRecord] | None = None, *, all_changes: bool = False) -> PublishReport:
        """Publish the events of these records, by default of all records since the last call."""
        batch = self.records() if records is None else records
        return notify(self.ctx, self.sockets, self.topic, batch, all_changes=all_changes)

    def new_frames(self, connection_id: str = "c1") -> list[Any]:
        """Publish everything since the last call and return the frames that one socket receives."""
        before = len(self.received(connection_id))
        assert not self.run_notifier().failed
        return self.received(connection_id)[before:]


def envelopes(frames: list[Any]) -> list[Any]:
    """Return the envelopes of frames that must all be events."""
    assert {frame["type"] for frame in frames} <= {"event"}, frames
    return [frame["data"] for frame in frames]


def types(frames: list[Any]) -> list[str]:
    """Return the event types of frames without their prefix: `job.completed`, `wait.met`."""
    return [envelope["type"].removeprefix("vigil.") for envelope in envelopes(frames)]


def stored(table: Table) -> Iterator[dict[str, Any]]:
    """Yield every row of the table."""
    del table
    pages = aws("dynamodb").get_paginator("scan").paginate(TableName=TABLE_NAME)
    for page in pages:
        yield from page["Items"]
