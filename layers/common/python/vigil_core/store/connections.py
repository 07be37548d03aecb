"""Open sockets: who is connected, by which key, and who hears of which topic.

What belongs to a connection is listed in its own partition before it is written anywhere else, so that whoever finds
the connection gone can remove all of it. Whatever nobody removed goes by TTL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from vigil_core.domain.access import Access, Scope, sort_scopes
from vigil_core.domain.timestamps import from_text, to_epoch_s, to_text
from vigil_core.store import keys
from vigil_core.store.table import Row, Table, Update, query_all

CONNECTION_TTL = timedelta(hours=3)
"""API Gateway closes a WebSocket after 2 hours."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """An open socket and the rights it was opened with."""

    connection_id: str
    access: Access
    connected_at: datetime


@dataclass(frozen=True, kw_only=True)
class Subscriber:
    """Who hears of a topic. Until `quiet_until` its acknowledgement may still be on its way, and events come after."""

    connection_id: str
    subscription_id: str
    quiet_until: datetime | None = None

    def is_quiet(self, now: datetime) -> bool:
        """Whether its acknowledgement has to be waited for."""
        return self.quiet_until is not None and now < self.quiet_until


class ConnectionStore:
    """The open sockets of every namespace."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def connect(self, connection: Connection) -> None:
        """Store a new connection, findable by its key."""
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
        """A connection that has not been removed; its socket may be gone all the same."""
        row = self._table.get(keys.connection(namespace, connection_id))
        return _connection(row) if row else None

    def disconnect(self, namespace: str, connection_id: str) -> None:
        """Remove everything of a connection, its own row last, so that a repeat finds what is left."""
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
        """The topics of each subscription of a connection, by the subscription's id."""
        rows = query_all(self._table, keys.connection(namespace, connection_id).pk, begins="S#")
        return {_subscription_id(row): frozenset(row["topics"]) for row in rows}

    def register_topics(
        self, namespace: str, connection_id: str, subscription_id: str, topics: Iterable[str], *, now: datetime
    ) -> None:
        """List topics under a connection's subscription, before anybody finds it by them: what was listed stays."""
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
        """Let a noted subscription be found by its topics, loud or still quiet."""
        ttl = to_epoch_s(now + CONNECTION_TTL)
        quiet = quiet_until and to_text(quiet_until)
        rows: list[Row] = []
        for topic in topics:
            key = keys.subscription_to_topic(namespace, topic, connection_id, subscription_id)
            rows.append({**_head(key, "subscription", ttl), "quiet_until": quiet})
        self._table.batch_write(puts=rows)

    def unsubscribe(self, namespace: str, connection_id: str, subscription_id: str) -> frozenset[str]:
        """Remove a subscription and return its topics; none when there is no such subscription."""
        row = self._table.get(keys.subscription_of_connection(namespace, connection_id, subscription_id))
        if row is None:
            return frozenset()
        self._table.batch_write(deletes=_subscription_keys(namespace, connection_id, subscription_id, row["topics"]))
        return frozenset(row["topics"])

    def subscribers(self, namespace: str, topic: str) -> Iterator[Subscriber]:
        """Everybody who hears of a topic, consistently."""
        for row in query_all(self._table, keys.subscribers(namespace, topic)):
            connection_id, subscription_id = row["sk"].split("#", 1)
            yield Subscriber(
                connection_id=connection_id,
                subscription_id=subscription_id,
                quiet_until=from_text(row["quiet_until"]) if "quiet_until" in row else None,
            )

    def connection_ids_of_key(self, namespace: str, key_id: str) -> Iterator[str]:
        """The ids of the connections opened with a key."""
        for row in query_all(self._table, keys.connection_of_key(namespace, key_id, "").pk):
            yield row["sk"]


def _subscription_keys(
    namespace: str, connection_id: str, subscription_id: str, topics: Iterable[str]
) -> list[keys.Key]:
    """Every row of a subscription; the one that lists the topics comes last."""
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
