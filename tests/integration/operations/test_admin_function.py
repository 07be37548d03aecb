"""The admin function as Lambda invokes it: configured by its environment, with the sample payloads, on moto."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from moto import mock_aws

from functions.admin import handler as function
from tests.support.events import sample
from tests.support.table import TABLE_NAME, aws, create_table
from vigil_core import wiring
from vigil_core.domain.access import Access, Scope
from vigil_core.runtime.settings import MissingSetting
from vigil_core.services.auth.disconnect import disconnect_key
from vigil_core.store.connections import Connection, ConnectionStore
from vigil_core.store.table import DynamoTable

BUCKET = "dead-letters"


def clear_caches() -> None:
    """Clear the caches of a process, so that each test builds its own objects."""
    for built in (wiring.admin, wiring.context, wiring.api_keys, wiring.web_sockets):
        built.cache_clear()


class Context:
    """The parts of Lambda's context that the function reads."""

    def get_remaining_time_in_millis(self) -> int:
        return 300_000


class Sockets:
    """Open sockets by their connection ids. All other connections are gone."""

    def __init__(self, *open_: str) -> None:
        self.open = set(open_)

    def post(self, connection_id: str, text: str) -> bool:
        raise AssertionError("the test sends no message")

    def close(self, connection_id: str) -> bool:
        was_open = connection_id in self.open
        self.open.discard(connection_id)
        return was_open


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[DynamoTable]:
    with mock_aws():
        aws("s3").create_bucket(Bucket=BUCKET)
        sqs = aws("sqs")
        urls = {
            name: sqs.create_queue(QueueName=name.replace("_", "-"))["QueueUrl"]
            for name in (
                "fan_out_queue",
                "fan_out_dead_letter_queue",
                "sweeper_queue",
                "sweeper_dead_letter_queue",
                "webhooks_queue",
                "webhooks_dead_letter_queue",
            )
        }
        for name, url in urls.items():
            monkeypatch.setenv(f"{name.upper()}_URL", url)
        monkeypatch.setenv("TABLE_NAME", TABLE_NAME)
        monkeypatch.setenv("DEAD_LETTER_BUCKET", BUCKET)
        monkeypatch.setenv("PAYLOAD_BUCKET", BUCKET)
        monkeypatch.setenv("WEBSOCKET_ENDPOINT", "https://example.execute-api.us-east-1.amazonaws.com/live")
        for name in ("matcher", "notifier"):
            monkeypatch.setenv(
                f"{name.upper()}_FUNCTION", f"arn:aws:lambda:us-east-1:123456789012:function:vigil-{name}"
            )
        clear_caches()
        yield create_table()
    clear_caches()


def ask(request: object) -> dict[str, Any]:
    context: Any = Context()
    answer = function.handler(request, context)
    json.dumps(answer)
    return answer


def test_every_admin_sample_gets_a_response(table: DynamoTable) -> None:
    key = ask(sample("admin_create_key"))["key"]
    assert ask(sample("admin_list_keys"))["keys"] == [key]
    assert ask({**sample("admin_revoke_key"), "key_id": key["key_id"]})["disconnected"] == 0
    assert [limit["limit"] for limit in ask(sample("admin_list_limits"))["limits"]][1] == 100_000
    assert [limit["limit"] for limit in ask(sample("admin_set_limit"))["limits"]][1] == 500_000
    assert ask(sample("admin_suspend_namespace"))["state"] == "suspended"
    assert ask(sample("admin_resume_namespace"))["state"] == "active"
    assert ask(sample("admin_list_dead_letters"))["total"] == 0
    assert ask(sample("admin_redrive_dead_letters"))["batches"] == 0
    assert ask(sample("admin_doctor"))["findings"] == []
    assert ask(sample("admin_delete_namespace"))["wait_s"] > 0


def test_created_keys_are_unique(table: DynamoTable) -> None:
    assert len({ask(sample("admin_create_key"))["token"] for _ in range(5)}) == 5


def test_admin_log_contains_no_token(table: DynamoTable) -> None:
    handler = function.logger.registered_handler
    assert isinstance(handler, logging.StreamHandler)
    written = io.StringIO()
    before = handler.setStream(written)
    try:
        token = ask(sample("admin_create_key"))["token"]
        ask("nonsense")
    finally:
        handler.setStream(before)
    first, second = (json.loads(line) for line in written.getvalue().splitlines())
    assert (first["message"], first["requested"], second["message"]) == ("done", "create_key", "refused")
    assert token.rpartition("_")[2] not in written.getvalue()


def test_revoked_key_loses_only_its_own_sockets(table: DynamoTable) -> None:
    connections = ConnectionStore(table)
    for namespace, key_id, connection_id in (
        ("demo", "k1", "c1"),
        ("demo", "k1", "c2"),
        ("demo", "k1", "gone"),
        ("demo", "k2", "c3"),
        ("other", "k1", "c4"),
    ):
        access = Access(namespace=namespace, scopes=frozenset({Scope.READ}), key_id=key_id)
        connections.connect(Connection(connection_id=connection_id, access=access, connected_at=datetime.now(UTC)))
    sockets = Sockets("c1", "c2", "c3", "c4")
    disconnect = partial(disconnect_key, connections, sockets)
    assert disconnect("demo", "k1") == 2
    assert sockets.open == {"c3", "c4"}
    assert list(connections.connection_ids_of_key("demo", "k1")) == []
    assert disconnect("demo", "k1") == 0
    assert list(connections.connection_ids_of_key("demo", "k2")) == ["c3"]


@pytest.mark.parametrize("variable", ["TABLE_NAME", "WEBSOCKET_ENDPOINT", "SWEEPER_DEAD_LETTER_QUEUE_URL"])
def test_missing_environment_variable_is_named(
    table: DynamoTable, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "")
    with pytest.raises(MissingSetting, match=variable):
        ask(sample("admin_list_keys"))
