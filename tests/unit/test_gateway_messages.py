"""Every message to another service is ASCII JSON, whatever text it contains."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.scalars import HOSTILE_TEXTS
from vigil_core.domain.events.event import Event
from vigil_core.domain.exact_json import JsonValue, dumps, loads
from vigil_core.domain.text_rule import is_encodable
from vigil_core.gateways.eventbridge_scheduler import SchedulerTimers
from vigil_core.gateways.lambda_functions import LambdaExecutors, LambdaFunctions
from vigil_core.gateways.sns import SnsTopic
from vigil_core.gateways.sqs import SqsQueues
from vigil_core.gateways.step_functions import StepFunctionsSupervisors
from vigil_core.gateways.websocket import WebSockets
from vigil_core.services.messages import MAX_MATCH_BYTES, Match

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
TEXTS = [text for text in HOSTILE_TEXTS if is_encodable(text)]


class Recorder:
    """A client of AWS that records its requests."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.exceptions = SimpleNamespace(
            ClientError=KeyError, GoneException=KeyError, ConflictException=KeyError, ExecutionAlreadyExists=KeyError
        )

    def __getattr__(self, operation: str) -> Callable[..., dict[str, Any]]:
        def request(**members: Any) -> dict[str, Any]:
            self.requests.append(members)
            return {"Payload": BytesIO(b"{}")}

        return request


def send_everywhere(client: Any, text: str, event: Event) -> None:
    """Send the text through every gateway that carries messages between functions."""
    queues = SqsQueues(lambda: client, fan_out_url="f", sweeper_url="s", webhooks_url="w")
    queues.send_fan_out([SimpleNamespace(group="g", body=text)])
    queues.send_to_sweeper(text, 0)
    queues.send_deliveries([text])
    LambdaFunctions(client).invoke("f", text)
    LambdaExecutors(lambda: client, "executor").call_http(text)
    StepFunctionsSupervisors(lambda: client, "arn:stateMachine:x").start("name", text)
    WebSockets(client).post("connection", text)
    timers = SchedulerTimers(lambda: client, group="g", function_arn="f", role_arn="r", now=lambda: NOW)
    timers.start("name", NOW, text)
    SnsTopic(client, "arn").publish([event])


def messages_in(request: Any) -> list[str]:
    """Return the JSON texts in a request."""
    if isinstance(request, dict):
        names = ("MessageBody", "Message", "Payload", "input", "Data", "Input")
        texts = [request[name] for name in names if name in request]
        parts = [part for name, part in request.items() if name not in names]
        return [*(text if isinstance(text, str) else text.decode() for text in texts), *messages_in(parts)]
    return [text for part in request for text in messages_in(part)] if isinstance(request, list) else []


@given(st.text() | st.sampled_from(TEXTS), st.text(max_size=8))
def test_messages_to_every_service_are_ascii_and_lose_nothing(text: str, name: str) -> None:
    document = {"name": name, "text": [text]}
    event = Event(
        event_id="a.1", type="vigil.job.created", namespace="demo", subject="a", time=NOW, data=document,
        topics=("job:a",), audience="change", attributes={},
    )  # fmt: skip
    client = Recorder()
    send_everywhere(client, dumps(document), event)
    messages = messages_in(client.requests)
    assert len(messages) == len(client.requests) == 9
    for message in messages:
        assert message.isascii()
        assert not re.search("[\x00-\x1f]", message)
        received = loads(message)
        assert isinstance(received, dict)
        assert document in (received, received.get("data"))


@pytest.mark.parametrize("text", ["\U0001f680" * 30_000, "\uffff" * 60_000, "x" * 1_000])
def test_row_of_any_text_fits_in_a_message(text: str) -> None:
    rows: list[dict[str, JsonValue]] = [{"pk": "a", "version": 3, "tags": [text]}]
    ids = {"namespace": "demo", "job_id": "a"}
    client: Any = Recorder()
    body = Match.of_rows(ids, "now", rows).to_json()
    SqsQueues(lambda: client, fan_out_url="f", sweeper_url="s").send_fan_out([SimpleNamespace(group="g", body=body)])
    (message,) = messages_in(client.requests)
    assert len(message) < MAX_MATCH_BYTES + 1_000
    document = json.loads(message)
    assert Match.from_document(document).unpack_rows() == rows
