"""WebSocket connections are limited for a namespace and for a key."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.support.world import NAMESPACE, World
from vigil_core.domain.access import Access, ApiKey, Scope
from vigil_core.domain.errors import LimitExceeded
from vigil_core.domain.limits import LimitName
from vigil_core.services.events.subscriptions import connect, disconnect
from vigil_core.store.auth.api_keys import ApiKeyStore
from vigil_core.store.connections import CONNECTION_TTL
from vigil_core.store.table import DynamoTable

READ = frozenset({Scope.READ})


@pytest.fixture
def api_keys(table: DynamoTable) -> ApiKeyStore:
    store = ApiKeyStore(table)
    for number in range(8):
        store.add(
            ApiKey(
                namespace=NAMESPACE,
                key_id=f"k{number}",
                secret_hash="x",
                scopes=READ,
                name=None,
                created_at=datetime(2026, 1, 1, tzinfo=UTC),
            )
        )
    return store


def access(key: int) -> Access:
    return Access(namespace=NAMESPACE, scopes=READ, key_id=f"k{key}")


@pytest.mark.parametrize("name", ["websocket_connections", "websocket_connections_per_key"])
def test_connection_over_the_limit_is_refused_until_another_closes(
    world: World, api_keys: ApiKeyStore, name: LimitName
) -> None:
    world.ctx.limits.namespaces.set_limit(NAMESPACE, name, 3)
    keys = [0, 1, 2, 3] if name == "websocket_connections" else [0, 0, 0, 0]
    for number in range(3):
        assert connect(world.ctx, api_keys, access(keys[number]), f"c{number}")
    for _ in range(2):
        with pytest.raises(LimitExceeded) as refusal:
            connect(world.ctx, api_keys, access(keys[3]), "c3")
        assert refusal.value.limit == name
    assert world.ctx.connections.open_by_key(NAMESPACE, world.time).total() == 3
    if name == "websocket_connections_per_key":
        assert connect(world.ctx, api_keys, access(5), "other key")
    disconnect(world.ctx, access(keys[0]), "c0")
    if name == "websocket_connections_per_key":
        disconnect(world.ctx, access(5), "other key")
    assert connect(world.ctx, api_keys, access(keys[3]), "c3")


def test_default_is_20_for_a_key_and_100_for_a_namespace(world: World, api_keys: ApiKeyStore) -> None:
    refused = []
    for number in range(8 * 21):
        try:
            connect(world.ctx, api_keys, access(number % 8), f"c{number}")
        except LimitExceeded as refusal:
            refused.append(refusal.limit)
    assert world.ctx.connections.open_by_key(NAMESPACE, world.time).total() == 100
    assert set(refused) == {"websocket_connections"}


def test_connection_that_was_never_closed_stops_counting(world: World, api_keys: ApiKeyStore) -> None:
    world.ctx.limits.namespaces.set_limit(NAMESPACE, "websocket_connections", 1)
    assert connect(world.ctx, api_keys, access(0), "lost")
    world.pass_time(CONNECTION_TTL.total_seconds() + 1)
    assert connect(world.ctx, api_keys, access(0), "new")
