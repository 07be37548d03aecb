"""WebSocket connections, their API keys and their subscriptions to topics.

A subscription is written to the partition of its connection before it is written to the partition of a topic. The
process that finds a connection closed can therefore remove all of its rows. The TTL removes rows that no process
removed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from vigil_core.domain.access import Access, Scope, sort_scopes
from vigil_core.domain.timestamps import from_text, to_epoch_s, to_text
from vigil_core.store import keys
from vigil_core.store.table import (
    ConditionFailed,
    Delete,
    Put,
    Row,
    Table,
    Update,
    WriteCondition,
    query_all,
)

CONNECTION_TTL = timedelta(hours=3)
"""API Gateway closes a WebSocket after 2 hours."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """An open WebSocket and the access rights of the key that opened it."""

    connection_id: str
    access: Access
    connected_at: datetime


@dataclass(frozen=True, kw_only=True)
class Subscriber:
    """A subscription to a topic.

    Until `quiet_until` the acknowledgement of a quiet subscription may not have been sent. Events follow it.
    """

    connection_id: str
    subscription_id: str
    quiet_until: datetime | None = None

    def is_quiet(self, now: datetime) -> bool:
        """Return whether events must wait for the acknowledgement of the subscription."""
        return self.quiet_until is not None and now < self.quiet_until


class ConnectionStore:
    """The open connections of every namespace."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def connect(self, connection: Connection) -> None:
        """Store a new connection, and the row that finds it by its API key."""
        namespace, key_id = connection.access.namespace, connection.access.key_id
        ttl = to_epoch_s(connection.connected_at + CONNECTION_TTL)
        row = {
            **_head(keys.connection(namespace, connection.connection_id), "connection", ttl),
            "namespace": namespace,
            "connection_id": connection.connection_id,
            "key_id": key_id,
            "scopes": list(map(str, sort_scopes(connection.access.scopes))),
            "connected_at": to_text(connection.connected_at),
        }
        key_row = keys.connection_of_key(namespace, key_id, connection.connection_id)
        self._table.batch_write(puts=[row, _head(key_row, "key_connection", ttl)])

    def get(self, namespace: str, connection_id: str) -> Connection | None:
        """Read a connection that has not been removed; its socket may be closed already."""
        row = self._table.get(keys.connection(namespace, connection_id))
        return _connection(row) if row else None

    def has_socket_backlog(self, namespace: str, now: datetime) -> bool:
        """Return whether messages to the sockets of a namespace are in the queue of `fan_out`."""
        row = self._table.get(keys.socket_backlog(namespace))
        return row is not None and now < from_text(row["until"])

    def open_socket_backlog(self, namespace: str, token: str, *, until: datetime) -> None:
        """Store the backlog mark with the name of the last message. It replaces an earlier mark."""
        key = keys.socket_backlog(namespace)
        row = {
            "pk": key.pk,
            "sk": key.sk,
            "entity": "socket_backlog",
            "schema_version": 1,
            "token": token,
            "until": to_text(until),
            "ttl": to_epoch_s(until),
        }
        self._table.put(Put(row=row))

    def close_socket_backlog(self, namespace: str, token: str) -> None:
        """Remove the backlog mark, unless it names a later message."""
        is_last = WriteCondition(expression="#token = :token", names={"#token": "token"}, values={":token": token})
        try:
            self._table.delete(Delete(key=keys.socket_backlog(namespace), condition=is_last))
        except ConditionFailed:
            return

    def disconnect(self, namespace: str, connection_id: str) -> None:
        """Remove all rows of a connection.

        Its own row is the last one. If the process crashes before that, a repetition finds the remaining rows.
        """
        connection_key = keys.connection(namespace, connection_id)
        subscription_keys: list[keys.Key] = []
        connection_keys: list[keys.Key] = []
        for row in query_all(self._table, connection_key.pk):
            if row["sk"] == connection_key.sk:
                connection_keys = [connection_key, keys.connection_of_key(namespace, row["key_id"], connection_id)]
            else:
                subscription_keys += _subscription_keys(namespace, connection_id, _subscription_id(row), row["topics"])
        self._table.batch_write(deletes=subscription_keys)
        self._table.batch_write(deletes=connection_keys)

    def subscriptions(self, namespace: str, connection_id: str) -> Mapping[str, frozenset[str]]:
        """Read the topics of a connection by subscription id."""
        rows = query_all(self._table, keys.connection(namespace, connection_id).pk, begins="S#")
        return {_subscription_id(row): frozenset(row["topics"]) for row in rows}

    def register_topics(
        self, namespace: str, connection_id: str, subscription_id: str, topics: Iterable[str], *, now: datetime
    ) -> None:
        """Add topics to the row of a subscription, before the notifier can find the subscription by them."""
        self._table.update(
            Update(
                key=keys.subscription_of_connection(namespace, connection_id, subscription_id),
                expression="ADD topics :topics SET entity = :entity, schema_version = :one, #ttl = :ttl",
                names={"#ttl": "ttl"},
                values={
                    ":topics": set(topics),
                    ":entity": "connection",
                    ":one": 1,
                    ":ttl": to_epoch_s(now + CONNECTION_TTL),
                },
            )
        )

    def subscribe(
        self,
        namespace: str,
        connection_id: str,
        subscription_id: str,
        topics: Iterable[str],
        *,
        now: datetime,
        quiet_until: datetime | None = None,
    ) -> None:
        """Write the rows by which the notifier finds a registered subscription.

        Args:
            namespace: The namespace of the connection.
            connection_id: The id that API Gateway gave to the connection.
            subscription_id: The id that the client gave to the subscription.
            topics: The registered topics.
            now: The current time.
            quiet_until: The end of the quiet period; None for an active subscription.
        """
        ttl = to_epoch_s(now + CONNECTION_TTL)
        quiet = quiet_until and to_text(quiet_until)
        rows: list[Row] = []
        for topic in topics:
            key = keys.subscription_to_topic(namespace, topic, connection_id, subscription_id)
            rows.append({**_head(key, "subscription", ttl), "quiet_until": quiet})
        self._table.batch_write(puts=rows)

    def unsubscribe(self, namespace: str, connection_id: str, subscription_id: str) -> frozenset[str]:
        """Remove a subscription and return its topics; an unknown subscription has none."""
        row = self._table.get(keys.subscription_of_connection(namespace, connection_id, subscription_id))
        if row is None:
            return frozenset()
        self._table.batch_write(deletes=_subscription_keys(namespace, connection_id, subscription_id, row["topics"]))
        return frozenset(row["topics"])

    def subscribers(self, namespace: str, topic: str) -> Iterator[Subscriber]:
        """Yield the subscribers of a topic, with strongly consistent reads."""
        for row in query_all(self._table, keys.subscribers(namespace, topic)):
            connection_id, subscription_id = row["sk"].split("#", 1)
            yield Subscriber(
                connection_id=connection_id,
                subscription_id=subscription_id,
                quiet_until=from_text(row["quiet_until"]) if "quiet_until" in row else None,
            )

    def connection_ids_of_key(self, namespace: str, key_id: str) -> Iterator[str]:
        """Yield the ids of the connections opened with an API key."""
        prefix = keys.connection_of_key(namespace, key_id, "").sk
        for row in query_all(self._table, keys.connections(namespace), begins=prefix):
            yield row["sk"].removeprefix(prefix)

    def open_by_key(self, namespace: str, now: datetime) -> Counter[str]:
        """Count the connections of a namespace by the API key that opened them."""
        rows = query_all(self._table, keys.connections(namespace))
        return Counter(row["sk"].split("#", 1)[0] for row in rows if row["ttl"] > to_epoch_s(now))

    def all_connection_ids(self, namespace: str) -> list[str]:
        """Return the ids of all connections of a namespace."""
        return [row["sk"].split("#", 1)[1] for row in query_all(self._table, keys.connections(namespace))]


def _subscription_keys(
    namespace: str, connection_id: str, subscription_id: str, topics: Iterable[str]
) -> list[keys.Key]:
    """Return the keys of all rows of a subscription; the row that lists the topics is the last one."""
    topic_keys = [
        keys.subscription_to_topic(namespace, topic, connection_id, subscription_id) for topic in sorted(topics)
    ]
    return [*topic_keys, keys.subscription_of_connection(namespace, connection_id, subscription_id)]


def _subscription_id(row: Row) -> str:
    return str(row["sk"]).removeprefix("S#")


def _connection(row: Row) -> Connection:
    scopes = frozenset(map(Scope, row["scopes"]))
    return Connection(
        connection_id=row["connection_id"],
        access=Access(namespace=row["namespace"], scopes=scopes, key_id=row["key_id"]),
        connected_at=from_text(row["connected_at"]),
    )


def _head(key: keys.Key, entity: str, ttl: int) -> Row:
    return {"pk": key.pk, "sk": key.sk, "entity": entity, "schema_version": 1, "ttl": ttl}
