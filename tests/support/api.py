"""The HTTP API in process, on moto. Each call is an API Gateway event for the API's handler."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from json import dumps as json_text
from typing import Any
from unittest.mock import patch
from urllib.parse import urlencode, urlsplit

import pytest
from moto import mock_aws

from functions.api.handler import handler
from tests.support.table import TABLE_NAME, aws, create_table
from vigil_core import wiring
from vigil_core.domain.exact_json import dumps, loads

SOME_ID = "01980c4e-5a00-7c3b-9e21-3f6b0a1d2c4e"
KEY_ID = "00000000000000a1"
LAMBDA_RESPONSE_BYTES = 6 * 1024 * 1024
"""The response limit of Lambda, for JSON in ASCII as Lambda's Python 3.11 writes it."""
CACHED = (wiring.queues, wiring.timers, wiring.payload_bucket, wiring.context, wiring.http_api)
"""Cached objects that belong to one deployment.

The AWS clients below them serve every deployment, because their creation takes longer than most tests.
"""
TIMER_GROUP = "timers"
BODIES = "bodies"


class LambdaContext:
    """The parts of Lambda's context that the handler reads."""

    aws_request_id = "6bc28136-xmpl-4365-b021-0ce6b2e64ab0"

    def get_remaining_time_in_millis(self) -> int:
        return 30_000


@contextmanager
def deployed() -> Iterator[None]:
    """Create an empty table and empty queues, and connect the handler to them."""
    with mock_aws():
        create_table()
        queues = aws("sqs")
        fan_out_queue = queues.create_queue(QueueName="fan-out.fifo", Attributes={"FifoQueue": "true"})["QueueUrl"]
        sweeper_queue = queues.create_queue(QueueName="sweeper")["QueueUrl"]
        aws("s3").create_bucket(Bucket=BODIES)
        aws("scheduler").create_schedule_group(Name=TIMER_GROUP)
        machine = aws("stepfunctions").create_state_machine(
            name="vigil-supervisor", definition="{}", roleArn="arn:aws:iam::123456789012:role/supervisor"
        )
        variables = {
            "TABLE_NAME": TABLE_NAME,
            "SUPERVISOR_MACHINE": machine["stateMachineArn"],
            "FAN_OUT_QUEUE_URL": fan_out_queue,
            "SWEEPER_QUEUE_URL": sweeper_queue,
            "TIMER_GROUP": TIMER_GROUP,
            "PAYLOAD_BUCKET": BODIES,
            "TIMER_ROLE": "arn:aws:iam::123456789012:role/timer",
            "SWEEPER_FUNCTION": "arn:aws:lambda:us-east-1:123456789012:function:vigil-sweeper",
        }
        with patch.dict(os.environ, variables):
            for built in CACHED:
                built.cache_clear()
            yield
            for built in CACHED:
                built.cache_clear()


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A response of the API."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The parsed body with exact numbers."""
        return loads(self.text)

    def problem(self, status: int, error: str) -> Any:
        """Return the body, which must be a problem document with this status and error code."""
        assert self.headers["content-type"] == "application/problem+json", self
        assert (self.status, self.json["status"], self.json["error"]) == (status, status, error), self.text
        return self.json

    def pointers(self) -> list[str]:
        """Return the pointers of a validation problem."""
        return [error["pointer"] for error in self.problem(422, "VALIDATION_FAILED")["errors"]]

    def ok(self, status: int = 200) -> Any:
        """Return the body of a successful response."""
        assert self.status == status, self.text
        return self.json if self.text else None


@dataclass(frozen=True, kw_only=True)
class Client:
    """A client with an API key. Without scopes, its requests have no authorizer context."""

    namespace: str = "demo"
    scopes: str | None = "admin"
    headers: Mapping[str, str] = field(default_factory=dict)

    def call(
        self,
        method: str,
        target: str,
        json: object = None,
        *,
        body: str | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **query: object,
    ) -> Reply:
        """Send a request. `json` is the body as a value, `body` is the raw body."""
        request_body = dumps(json) if json is not None else body
        extra = urlencode(query, doseq=True)
        answered = handler(event(self, method, target, request_body, headers or {}, extra), LambdaContext())
        assert len(json_text(answered)) < LAMBDA_RESPONSE_BYTES
        text: str = answered["body"]
        return Reply(
            status=answered["statusCode"],
            headers={name.lower(): value for name, value in answered["headers"].items()},
            text=base64.b64decode(text).decode() if answered["isBase64Encoded"] else text,
        )

    def get(self, target: str, **more: Any) -> Reply:
        return self.call("GET", target, **more)

    def post(self, target: str, json: object = None, **more: Any) -> Reply:
        return self.call("POST", target, json, **more)

    def patch(self, target: str, json: object = None, **more: Any) -> Reply:
        return self.call("PATCH", target, json, **more)

    def delete(self, target: str, **more: Any) -> Reply:
        return self.call("DELETE", target, **more)

    def create(self, **members: object) -> Any:
        """Create a job."""
        return self.post("/v1/jobs", {"job_type": "boot_test", **members}).ok(202)

    def running(self, **members: object) -> Any:
        """Create and start a job."""
        job = self.create(**members)
        return self.post(f"/v1/jobs/{job['job_id']}/start").ok()

    def ended(self, **members: object) -> Any:
        """Create, start and complete a job."""
        job = self.running(**members)
        return self.post(f"/v1/jobs/{job['job_id']}/complete").ok()


def event(
    client: Client, method: str, target: str, body: str | bytes | None, headers: Mapping[str, str], query: str = ""
) -> dict[str, Any]:
    """Build a request in API Gateway's payload format 2.0."""
    url = urlsplit(target)
    context: dict[str, Any] = {
        "http": {"method": method, "path": url.path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1"},
        "requestId": "JKJaXmPLvHcESHA=",
        "stage": "$default",
    }
    if client.scopes is not None:
        lambda_context = {"namespace": client.namespace, "scopes": client.scopes, "key_id": KEY_ID}
        context["authorizer"] = {"lambda": lambda_context}
    request: dict[str, Any] = {
        "version": "2.0",
        "rawPath": url.path,
        "rawQueryString": url.query or query,
        "headers": {"content-type": "application/x-www-form-urlencoded", **client.headers, **headers},
        "requestContext": context,
        "isBase64Encoded": isinstance(body, bytes),
    }
    if body is not None:
        request["body"] = base64.b64encode(body).decode() if isinstance(body, bytes) else body
    return request


def pages(client: Client, target: str, **query: Any) -> list[Any]:
    """Return all pages of a listing."""
    responses = [client.get(target, **query).ok()]
    while (token := responses[-1]["next_page_token"]) is not None:
        assert token == "".join(filter(lambda c: c.isalnum() or c in "-_", token))
        responses.append(client.get(target, **query, page_token=token).ok())
    return responses


def run_at_each_pause(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[float], None]) -> None:
    """Call `meanwhile` instead of each pause between two reads of a long poll."""
    context = replace(wiring.context(), sleep=meanwhile)
    monkeypatch.setattr(wiring, "context", cache(lambda: context))
    wiring.http_api.cache_clear()
