"""A namespace that sends too many requests gets 429, and other namespaces do not notice."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support.api import Client
from tests.support.world import NAMESPACE, World
from vigil_core import wiring
from vigil_core.domain.access import Access, Scope
from vigil_core.domain.token_bucket import WINDOW_S
from vigil_core.runtime.logging import logger
from vigil_core.services.events.subscriptions import Peer, receive
from vigil_core.store import keys
from vigil_core.store.limits import RequestRateStore
from vigil_core.store.table import DynamoTable

RATE = 2


def test_flood_of_requests_gets_429_with_the_name_of_the_limit(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger.name)
    wiring.context().limits.namespaces.set_limit(client.namespace, "requests_per_second", RATE)
    replies = [client.get("/v1/usage") for _ in range(12 * RATE * WINDOW_S)]
    refused = [reply for reply in replies if reply.status == 429]
    assert refused
    problem = refused[-1].problem(429, "LIMIT_EXCEEDED")
    assert problem["limit"] == "requests_per_second"
    line = vars(caplog.records[-1])
    assert (line["namespace"], line["error"], line["limit"]) == (client.namespace, problem["error"], problem["limit"])
    assert 1 <= int(refused[-1].headers["retry-after"]) <= WINDOW_S
    assert Client(namespace="other").get("/v1/usage").status == 200


def test_request_without_an_override_is_admitted(client: Client) -> None:
    assert all(client.get("/v1/usage").status == 200 for _ in range(20))


def test_processes_share_the_row_of_the_window(world: World, table: DynamoTable) -> None:
    stores = [RequestRateStore(table, now=lambda: world.time, concurrency=10) for _ in range(10)]
    admitted = 0
    for _ in range(3 * WINDOW_S):
        for store in stores:
            admitted += sum(store.try_request(NAMESPACE, 10) is None for _ in range(10))
        world.pass_time(1 / 3)
    assert 10 * WINDOW_S <= admitted <= 2 * 2 * 10 * WINDOW_S, "at most two windows, and twice the rate in each"
    window = int((world.time - timedelta(seconds=1)).timestamp() // WINDOW_S)
    row = table.get(keys.request_window(NAMESPACE, window))
    assert row
    assert row["leased"] <= 1.5 * 10 * WINDOW_S
    assert row["ttl"] > world.time.timestamp()


@pytest.mark.parametrize("rate", [0, 1])
def test_messages_of_a_websocket_count_too(world: World, rate: int) -> None:
    world.ctx.limits.namespaces.set_limit(NAMESPACE, "requests_per_second", rate)
    sent: list[str] = []

    class Sockets:
        def post(self, connection_id: str, text: str) -> bool:
            sent.append(text)
            return True

        def close(self, connection_id: str) -> bool:
            return True

    access = Access(namespace=NAMESPACE, scopes=frozenset({Scope.READ}), key_id="k")
    peer = Peer(access=access, connection_id="c", sockets=Sockets())
    outcomes = [receive(world.ctx, peer, '{"action": "ping", "id": "1"}') for _ in range(30)]
    assert outcomes[-1] == "LIMIT_EXCEEDED"
    assert "requests_per_second" in sent[-1]
    assert outcomes.count("ping") <= 2 * rate * WINDOW_S
