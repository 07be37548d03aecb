"""Send the events of a batch to WebSockets, a namespace's share at once and the rest through `fan_out`.

The notifier serves all namespaces. In one batch it spends at most `INLINE_SEND_S` on the messages to the sockets of one
namespace. The rest goes to `fan_out`, as the events once and, for each connection, the numbers of its events.

Each connection receives its messages in order:

1. Before its first message to `fan_out`, the notifier stores a backlog mark of the namespace. While the mark is there,
   all messages of the namespace go to `fan_out`, whose lane processes them in order.
2. The mark names the last message that was sent. `fan_out` removes the mark after that message, unless the notifier has
   sent another one in the meantime.
3. If a process crashes, the mark expires. Until then, the messages only take the longer way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol, TypeAlias

from vigil_core.domain.events.event import Event
from vigil_core.domain.events.websocket_protocol import encode_server_message
from vigil_core.domain.exact_json import JsonValue, dumps
from vigil_core.runtime.failures import contain
from vigil_core.runtime.logging import logger
from vigil_core.services.context import UsesClock, UsesConnections, UsesIds, UsesMessageQueues, UsesThreads
from vigil_core.services.events.sockets import Sockets, close_socket, send_messages
from vigil_core.services.fair_shares import fan_out_group
from vigil_core.services.messages import SocketEvents
from vigil_core.services.ports import FanOutMessage


class OutboxContext(UsesConnections, UsesMessageQueues, UsesClock, UsesIds, UsesThreads, Protocol):
    """The connections, the queue of `fan_out`, the time, ids and threads."""


INLINE_SEND_S = 1.0
"""The time of all threads together that a batch spends on the sockets of one namespace."""
MAX_MESSAGE_BYTES = 200 * 1024
BACKLOG_TTL = timedelta(minutes=15)

Connection: TypeAlias = tuple[str, str]
"""A namespace and a connection id."""


@dataclass(frozen=True, kw_only=True)
class OutgoingEvent:
    """An event for one subscription, and the record from which it derives."""

    record: str
    position: int
    """The position of the event in the batch."""
    subscription_id: str
    event: Event

    @property
    def identity(self) -> tuple[str, str, str]:
        """What makes two of them the same message."""
        return self.record, self.subscription_id, self.event.event_id

    def text(self) -> str:
        """Return the message to the client."""
        return encode_server_message("event", self.subscription_id, self.event.envelope())


Outbox: TypeAlias = Mapping[Connection, Sequence[OutgoingEvent]]
"""The messages for each connection, in order."""


@dataclass(frozen=True, kw_only=True)
class _Unreachable:
    """A socket that could not receive its messages, for a transient reason."""

    connection: Connection
    records: Sequence[str]
    error: Exception


@dataclass(kw_only=True)
class BatchSender:
    """Sends the outboxes of one batch of stream records."""

    ctx: OutboxContext
    sockets: Sockets
    on_error: Callable[[Sequence[str], Exception], None]
    """Receives the records of messages that must be sent again, and the error."""
    monotonic: Callable[[], float] = time.monotonic
    _spent_s: dict[str, float] = field(default_factory=dict)
    _has_backlog: dict[str, bool] = field(default_factory=dict)
    _deferred: dict[Connection, list[OutgoingEvent]] = field(default_factory=dict)
    _unreachable: list[_Unreachable] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tasks(self, outbox: Outbox) -> list[Callable[[], None]]:
        """Return one task for each connection. They may run in parallel, but not with those of another outbox."""
        namespaces = {namespace for namespace, _ in outbox}
        self.ctx.in_parallel(self._read_backlog_mark, namespaces - self._has_backlog.keys())
        return [lambda connection=connection: self._send(connection, outbox[connection]) for connection in outbox]  # type: ignore[misc]

    def _read_backlog_mark(self, namespace: str) -> None:
        """Read whether earlier messages of a namespace are in `fan_out`. If that is unknown, later ones follow them."""
        try:
            self._has_backlog[namespace] = self.ctx.connections.has_socket_backlog(namespace, self.ctx.now())
        except Exception:
            fields = {"action": "notify", "namespace": namespace}
            logger.exception("The backlog mark cannot be read; messages go to fan_out", extra=fields)
            self._has_backlog[namespace] = True

    def send_deferred(self) -> None:
        """Send what exceeds the shares of the namespaces to `fan_out`."""
        by_namespace: dict[str, dict[str, list[OutgoingEvent]]] = {}
        for (namespace, connection_id), messages in self._deferred.items():
            by_namespace.setdefault(namespace, {})[connection_id] = messages
        for namespace, by_connection in by_namespace.items():
            records = list(dict.fromkeys(message.record for each in by_connection.values() for message in each))
            try:
                self._enqueue(namespace, by_connection)
            except Exception as error:
                self.on_error(records, error)

    def close_unreachable(self, succeeded: AbstractSet[str], *, is_retry: bool) -> None:
        """Close the sockets that could not be reached, if others could. Otherwise their records fail.

        A record that is sent again later would reach a socket after later messages. A client that connects again reads
        the current state instead.

        Args:
            succeeded: The records without another error.
            is_retry: True for a postponed record, which failed before while others succeeded.
        """
        affected = {record for socket in self._unreachable for record in socket.records}
        others_succeeded = is_retry or not succeeded <= affected
        for socket in self._unreachable:
            try:
                if not others_succeeded:
                    raise socket.error
                close_socket(self.ctx, self.sockets, *socket.connection)
            except Exception as error:
                self.on_error(socket.records, error)

    def _send(self, connection: Connection, messages: Sequence[OutgoingEvent]) -> None:
        """Send messages until the share of the namespace is used, and keep the rest for `fan_out`."""
        sent = 0

        def texts() -> Iterator[str]:
            nonlocal sent
            for message in messages:
                if not self._has_share(connection[0]):
                    return
                sent += 1
                started_at = self.monotonic()
                yield message.text()
                self._charge(connection[0], self.monotonic() - started_at)

        try:
            is_open = contain(
                lambda: send_messages(self.ctx, self.sockets, *connection, texts()),
                lambda _: close_socket(self.ctx, self.sockets, *connection),
            )
        except Exception as error:
            records = [message.record for message in messages]
            self._unreachable.append(_Unreachable(connection=connection, records=records, error=error))
            return
        if is_open and sent < len(messages):
            with self._lock:
                self._deferred.setdefault(connection, []).extend(messages[sent:])

    def _has_share(self, namespace: str) -> bool:
        return not self._has_backlog[namespace] and self._spent_s.get(namespace, 0.0) < INLINE_SEND_S

    def _charge(self, namespace: str, seconds: float) -> None:
        with self._lock:
            self._spent_s[namespace] = self._spent_s.get(namespace, 0.0) + seconds

    def _enqueue(self, namespace: str, by_connection: Mapping[str, Sequence[OutgoingEvent]]) -> None:
        """Store the backlog mark, then send the messages to `fan_out`: the last one removes the mark."""
        now, token = self.ctx.now(), self.ctx.new_id()
        self.ctx.connections.open_socket_backlog(namespace, token, until=now + BACKLOG_TTL)
        group = fan_out_group(namespace, "sockets")
        parts = list(_parts(by_connection))
        for number, (events, recipients) in enumerate(parts, start=1):
            message = SocketEvents(
                namespace=namespace,
                sent_at=token,
                part=number,
                token=token if number == len(parts) else None,
                events=events,
                recipients=recipients,
            )
            self.ctx.message_queues.send_fan_out([FanOutMessage(group=group, body=message.to_json())])


def _parts(
    by_connection: Mapping[str, Sequence[OutgoingEvent]],
) -> Iterator[tuple[list[JsonValue], list[list[JsonValue]]]]:
    """Yield envelopes, and for each recipient the numbers of its envelopes, in parts of a limited size.

    Each part has the next events in the order of the batch, so each connection receives its parts in order.
    """
    recipients_of: dict[str, list[tuple[str, str]]] = {}
    events: dict[str, Event] = {}
    positions: dict[str, int] = {}
    for connection_id, messages in by_connection.items():
        for message in messages:
            events[message.event.event_id] = message.event
            positions.setdefault(message.event.event_id, message.position)
            recipients_of.setdefault(message.event.event_id, []).append((connection_id, message.subscription_id))
    envelopes: list[JsonValue] = []
    numbers: dict[tuple[str, str], list[JsonValue]] = {}
    size = 0
    for event_id in sorted(events, key=positions.__getitem__):
        envelope = events[event_id].envelope()
        event_size = len(dumps(envelope).encode())
        if envelopes and size + event_size > MAX_MESSAGE_BYTES:
            yield envelopes, [[*recipient, own] for recipient, own in numbers.items()]
            envelopes, numbers, size = [], {}, 0
        envelopes.append(envelope)
        size += event_size
        for recipient in recipients_of[event_id]:
            recipient_size = 8 if recipient in numbers else 24 + sum(map(len, recipient))
            if numbers and size + recipient_size > MAX_MESSAGE_BYTES:
                yield envelopes, [[*each, own] for each, own in numbers.items()]
                envelopes, numbers, size = [envelope], {}, event_size
            numbers.setdefault(recipient, []).append(len(envelopes) - 1)
            size += recipient_size
    yield envelopes, [[*recipient, own] for recipient, own in numbers.items()]


def send_backlog(ctx: OutboxContext, sockets: Sockets, message: SocketEvents) -> None:
    """Send the events of a message to its connections, and remove the backlog mark if this is the last message.

    A repeated message sends the same events with the same ids again.
    """

    def send(recipient_events: tuple[str, Sequence[str]]) -> None:
        connection_id, texts = recipient_events
        contain(
            lambda: send_messages(ctx, sockets, message.namespace, connection_id, texts),
            lambda _: close_socket(ctx, sockets, message.namespace, connection_id),
        )

    numbered: dict[str, list[tuple[int, str]]] = {}
    for connection_id, subscription_id, numbers in message.recipients:
        texts = numbered.setdefault(str(connection_id), [])
        for number in numbers:  # type: ignore[union-attr]
            event = message.events[int(str(number))]
            texts.append((int(str(number)), encode_server_message("event", str(subscription_id), event)))
    ctx.in_parallel(send, [(each, [text for _, text in sorted(texts)]) for each, texts in numbered.items()])
    if message.token is not None:
        ctx.connections.close_socket_backlog(message.namespace, message.token)
