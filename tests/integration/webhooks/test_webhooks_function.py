"""The webhook function, invoked with SQS messages on moto, and a local receiver."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from functions.webhooks import handler as function
from tests.support.api import LambdaContext, deployed
from tests.support.events import sample
from tests.support.receiver import Receiver
from vigil_core import wiring
from vigil_core.domain.webhooks import Delivery, Webhook, new_secret

SECRET = new_secret(b"0123456789abcdef0123456789abcdef")
MESSAGE = json.loads(sample("webhooks_deliver")["Records"][0]["body"])


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """Store the webhook and the delivery of the sample, and run the webhook's receiver."""
    monkeypatch.setenv("ALLOWED_PRIVATE_HOSTS", "127.0.0.1")
    receiver = Receiver()
    now = datetime.now(UTC)
    with deployed():
        wiring.outbound_http.cache_clear()
        store = wiring.context().webhooks
        hook = Webhook(
            namespace=MESSAGE["namespace"],
            name=MESSAGE["webhook"],
            url=receiver.url,
            events=("*",),
            enabled=True,
            disabled_reason=None,
            description=None,
            secret=SECRET,
            created_at=now,
            updated_at=now,
        )
        store.save(None, hook)
        delivery = Delivery(
            namespace=hook.namespace,
            webhook=hook.name,
            delivery_id=MESSAGE["delivery"],
            event_id="019bf000-0000-7000-8000-000000000014.3",
            event_type="vigil.job.completed",
            url=None,
            body='{"type":"vigil.job.completed"}',
            status="pending",
            next_attempt_at=now,
            created_at=now,
        )
        store.add_delivery(delivery)
        yield receiver
        wiring.outbound_http.cache_clear()
    receiver.close()


def stored() -> Delivery:
    delivery = wiring.context().webhooks.find_delivery(MESSAGE["namespace"], MESSAGE["webhook"], MESSAGE["delivery"])
    assert delivery is not None
    return delivery


def run(event: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """Invoke the function and return its response and its log lines."""
    handler = function.logger.registered_handler
    assert isinstance(handler, logging.StreamHandler)
    written = io.StringIO()
    before = handler.setStream(written)
    try:
        answer = function.handler(event, LambdaContext())
    finally:
        handler.setStream(before)
    assert SECRET.removeprefix("whsec_") not in written.getvalue()
    assert "vigil.job.completed" not in written.getvalue(), "the log must not contain the event"
    return answer, [json.loads(line) for line in written.getvalue().splitlines()]


def test_sample_message_delivers_a_signed_event(receiver: Receiver) -> None:
    answer, (line,) = run(sample("webhooks_deliver"))
    assert answer == {"batchItemFailures": []}
    assert (line["action"], line["outcome"]) == ("webhook", "delivered")
    assert {name: line[name] for name in MESSAGE} == MESSAGE, "the log line identifies the delivery"
    (post,) = receiver.posts
    assert post.verifies(SECRET)
    assert post.body == b'{"type":"vigil.job.completed"}'
    assert stored().status == "delivered"


def test_failed_attempt_is_not_a_failed_message(receiver: Receiver) -> None:
    receiver.statuses.append(503)
    answer, (line,) = run(sample("webhooks_deliver"))
    assert (answer, line["outcome"]) == ({"batchItemFailures": []}, "pending")
    assert [tried.status for tried in stored().attempts] == [503]


def test_failed_message_does_not_block_other_deliveries(receiver: Receiver) -> None:
    event = sample("webhooks_deliver")
    broken = deepcopy(event["Records"][0])
    broken["messageId"], broken["body"] = "broken", "{}"
    answer, lines = run({"Records": [broken, *event["Records"]]})
    assert answer == {"batchItemFailures": [{"itemIdentifier": "broken"}]}
    assert {line["level"] for line in lines} == {"ERROR", "INFO"}
    assert stored().status == "delivered"


def test_host_outside_the_allowed_private_hosts_is_not_called(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALLOWED_PRIVATE_HOSTS", "")
    wiring.outbound_http.cache_clear()
    store = wiring.context().webhooks
    hook = store.find("demo", "ci")
    assert hook is not None
    store.save(hook, replace(hook, url=receiver.url.replace("http:", "https:"), version=2))
    run(sample("webhooks_deliver"))
    assert receiver.posts == []
    assert "an address that is not public" in str(stored().attempts[0].error)
