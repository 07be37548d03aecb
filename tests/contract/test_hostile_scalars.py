"""Hostile scalars at every position of every request, frame, report and response: no 5xx, and nothing half-written.

A number or text that breaks its rule is refused with a pointer to it. After each test, everything that was stored is
processed to its end, and the doctor finds nothing.
"""

from __future__ import annotations

import json
import os
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import islice
from typing import Any
from urllib.parse import quote

import pytest
from moto import mock_aws

from tests.model.moto_table import empty_table, row_count
from tests.support.api import Client, LambdaContext, Reply, event
from tests.support.live import FakeSockets, FakeTopic
from tests.support.positions import PLACEHOLDER, Position, body_positions, minimal, parameters, place
from tests.support.runs import RunWorld
from tests.support.scalars import HOSTILE_NUMBERS, HOSTILE_TEXTS
from tests.support.table import create_table
from tests.support.world import KEY, NAMESPACE
from vigil_core.api.app import HttpApi
from vigil_core.api.routes import OPERATIONS, openapi
from vigil_core.api.routing import Operation, Services
from vigil_core.domain.access import Access, Scope
from vigil_core.domain.errors import MalformedRequest, ValidationFailed, escape_pointer_token
from vigil_core.domain.exact_json import dumps, loads
from vigil_core.domain.text_rule import obeys_name_rule
from vigil_core.gateways.outbound_http import HttpResponse
from vigil_core.schemas.validation import message_pointers
from vigil_core.services.background.sweeper import on_message
from vigil_core.services.events.publish import notify
from vigil_core.services.events.subscriptions import Peer, receive
from vigil_core.services.executors.call_http import call_target
from vigil_core.services.jobs import dependency_results
from vigil_core.services.operations import doctor
from vigil_core.services.page_tokens import PageTokens
from vigil_core.store.signing_keys import SigningKeyStore

pytestmark = [pytest.mark.generated, pytest.mark.timeout(1_200), pytest.mark.thorough]
THOROUGH = "VIGIL_THOROUGH" in os.environ
"""Whether to send every scalar at every position: `make test-all` does. Otherwise each position gets some of them."""
NUMBERS_PER_POSITION, TEXTS_PER_POSITION = (len(HOSTILE_NUMBERS), len(HOSTILE_TEXTS)) if THOROUGH else (1, 2)
ALL_SCALARS = (*map(json.dumps, HOSTILE_TEXTS), *HOSTILE_NUMBERS)
DOCUMENT = openapi()
COMPONENTS = DOCUMENT["components"]["schemas"]
TARGETS = (
    {"executor": "lambda", "target": {"function": "f"}},
    {"executor": "http", "target": {"url": "https://a.example/"}},
)
BASES: Mapping[str, tuple[dict[str, Any], ...]] = {
    "/v1/job-types/{job_type}": ({"executor": "worker"}, *TARGETS),
    "/v1/schedules/{schedule}": (
        {"cron": "0 0 1 1 *", "job": {"job_type": "a"}},
        {"rate": "9 days", "workflow": {"name": "w", "jobs": [{"name": "a"}]}},
    ),
    "/v1/webhooks/{webhook}": ({"url": "https://hooks.example.com/", "events": ["*"]},),
    "/v1/workflows": ({"name": "w", "jobs": [{"name": "a"}, {"name": "b", "depends_on": ["a"]}], "output": "a"},),
    "/v1/workflows/validate": ({"name": "w", "jobs": [{"name": "a"}]},),
    "/v1/jobs/bulk": ({"jobs": [{"job_type": "a"}]},),
}
"""Valid bodies that the schema alone does not give."""


class Stack:
    """The HTTP API and the WebSocket protocol on one namespace, with matcher, fan-out, sweeper and supervisor."""

    def __init__(self) -> None:
        table = empty_table()
        self.world = RunWorld(table)
        ctx = self.world.ctx
        tokens = PageTokens(signing_keys=SigningKeyStore(table), random_bytes=lambda count: b"k" * count)
        assert tokens.sign(NAMESPACE, "x", list_identity="")  # Stores the key that signs page tokens.
        unused: Any = None
        self.api = HttpApi(Services(context=ctx, page_tokens=tokens, tickets=unused), OPERATIONS)
        self.sockets = FakeSockets()
        self.client = Client(namespace=NAMESPACE)
        self.turn = 0
        self.ids = {
            "job_id": self.world.running(),
            "wait_id": self.world.wait({self.world.job(): None})["wait_id"],
            "queue": "default",
            "job_type": "nightly",
            "webhook": "ci",
            "delivery_id": "1769850043000_x_3",
            "schedule": "nightly",
            "workflow_id": self.world.run({"name": "a"}, failure_policy="manual"),
        }

    def ids_for(self, path: str) -> dict[str, str]:
        """Return values of path parameters. A job of a transition is new and running."""
        changes_job = path.startswith("/v1/jobs/{job_id}")
        return self.ids | ({"job_id": self.world.running()} if changes_job else {})

    def call(
        self, method: str, path: str, body: str | None = None, query: str = "", headers: Mapping[str, str] | None = None
    ) -> Reply:
        self.world.pass_time(0.1)
        request = event(self.client, method, "/", body, {"prefer": "wait=0", **(headers or {})}, query)
        request["rawPath"] = path
        request["requestContext"]["http"]["path"] = path
        answered = self.api.handle(request, LambdaContext())
        json.dumps(answered)
        headers = {name.lower(): value for name, value in answered["headers"].items()}
        text = answered["body"] or ""
        text = b64decode(text).decode() if answered["isBase64Encoded"] else text
        return Reply(status=answered["statusCode"], headers=headers, text=text)

    def checked(self, *args: Any, **kwargs: Any) -> Reply:
        """Send a request that must be no fault, and that must store nothing if it is refused."""
        before = row_count()
        reply = self.call(*args, **kwargs)
        assert reply.status < 500, (args, kwargs, reply.text)
        if reply.status >= 400:
            assert row_count() == before, (args, kwargs, reply.text)
            assert is_encodable_json(reply.text)
        return reply

    def settle(self) -> None:
        """Process everything that was stored until nothing is left, then let the doctor examine it."""
        world = self.world
        for _ in range(4):
            self.drain()
            world.pass_time(600)
            world.sweep()
        self.drain()
        checkup = doctor.examine(world.ctx, None, world.time + timedelta(minutes=3))  # type: ignore[arg-type]
        assert checkup.findings == []
        topic = FakeTopic()
        report = notify(world.ctx, self.sockets, topic, world.delivered, all_changes=True)
        assert not report.failed
        for path in ("jobs", "waits", "workflows", "schedules", "webhooks", "job-types", "queues"):
            assert self.call("GET", f"/v1/{path}", query="" if path == "webhooks" else "page_size=200").status == 200

    def drain(self) -> None:
        queues = self.world.queues
        self.world.run_until_idle()
        while queues.sweeper_messages:
            on_message(self.world.ctx, loads(queues.sweeper_messages.pop(0)[0]))
            self.world.run_until_idle()


@dataclass
class RespondingTarget:
    """A target that returns one response."""

    response: HttpResponse

    def request(self, *_: object, **__: object) -> HttpResponse:
        return self.response


@pytest.fixture(scope="module")
def mocked() -> Iterator[None]:
    with mock_aws(), pytest.MonkeyPatch.context() as patches:
        create_table()
        patches.setattr(doctor, "_check_dead_letters", lambda _: None)
        yield


@pytest.fixture
def stack(mocked: None) -> Stack:
    return Stack()


def is_encodable_json(text: str) -> bool:
    """Return whether a response has no half of a surrogate pair, also not as an escape."""
    text.encode()
    return not re.search(r"\\ud[89ab][0-9a-f]{2}(?!\\ud[c-f])", text, re.IGNORECASE)


def scalars(position: int) -> list[str]:
    """Return JSON texts of scalars for a position. All positions together get all of them."""
    numbers = [HOSTILE_NUMBERS[(position * 5 + n) % len(HOSTILE_NUMBERS)] for n in range(NUMBERS_PER_POSITION)]
    texts = [HOSTILE_TEXTS[(position * 7 + n * 11) % len(HOSTILE_TEXTS)] for n in range(TEXTS_PER_POSITION)]
    return [*numbers, *(json.dumps(text) for text in dict.fromkeys(texts))]


@cache
def breaks_rule(scalar: str) -> bool:
    """Return whether a scalar is refused at every position that is no message."""
    try:
        loads(scalar)
    except ValidationFailed:
        return True
    except MalformedRequest:
        raise AssertionError(scalar) from None
    return False


def pointer_of(position: Position, scalar: str) -> str:
    steps: tuple[str | int, ...] = position.path
    if position.is_key:
        steps = (*steps[:-1], "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in json.loads(scalar)))
    return "".join(f"/{escape_pointer_token(str(step))}" for step in steps)


def operation_document(operation: Operation) -> Any:
    return DOCUMENT["paths"][operation.path][operation.method.lower()]


WITH_BODY = [operation for operation in OPERATIONS if operation.takes_body]


@pytest.mark.parametrize("operation", WITH_BODY, ids=lambda operation: operation.name)
def test_scalar_in_a_body_is_no_fault(stack: Stack, operation: Operation) -> None:
    schema = operation_document(operation)["requestBody"]["content"]["application/json"]["schema"]
    positions = body_positions(schema, COMPONENTS)
    messages = message_pointers(operation.body or operation.documented_body)
    bases = list(BASES.get(operation.path, (minimal(schema, COMPONENTS) or {},)))
    if operation.path in ("/v1/waits", "/scheduler/wait-jobs"):
        bases = [{"wait_on": {stack.ids["job_id"]: {"job_stage": "boot"}}}]
    for base in bases:
        for number, position in enumerate(positions):
            for scalar in scalars(number + len(operation.path)):
                if position.is_key and not scalar.startswith('"'):
                    continue
                ids = stack.ids_for(operation.path)
                body = json.dumps(place(base, position)).replace(json.dumps(PLACEHOLDER), scalar)
                reply = stack.checked(operation.method, operation.path.format(**ids), body)
                is_message = "".join(f"/{step}" for step in position.path) in messages
                if breaks_rule(scalar) and not (is_message and scalar.startswith('"')):
                    assert pointer_of(position, scalar) in reply.pointers(), (position, scalar[:40])
                elif position.is_name and scalar.startswith('"') and not obeys_name_rule(json.loads(scalar)):
                    assert reply.status == 422 or "VALIDATION_FAILED" in reply.text, (position, scalar[:40])
    stack.settle()


def test_scalar_in_a_parameter_is_no_fault(stack: Stack) -> None:
    for turn, operation in enumerate(OPERATIONS):
        if operation.path == "/v1/tickets":
            continue
        document = operation_document(operation)
        schema = document.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        base = BASES.get(operation.path, (minimal(schema, COMPONENTS) if schema else None,))[0]
        body = None if base is None else json.dumps(base)
        texts = [*HOSTILE_TEXTS, *HOSTILE_NUMBERS]
        chosen = texts if THOROUGH else [texts[(turn * 7 + n * 13) % len(texts)] for n in range(4)]
        for text in chosen:
            for name in parameters(document, "path"):
                path = operation.path.format(**stack.ids_for(operation.path) | {name: text})
                stack.checked(operation.method, path, body)
            path = operation.path.format(**stack.ids)
            for name in parameters(document, "query"):
                query = f"{quote(name)}={quote(text, errors='surrogatepass')}"
                stack.checked(operation.method, path, body, query)
            for name in parameters(document, "header"):
                stack.checked(operation.method, path, body, headers={name.lower(): text})
    stack.settle()


@pytest.mark.parametrize("status", [200, 404, 503])
def test_scalar_in_the_response_of_a_target_ends_the_attempt(stack: Stack, status: int) -> None:
    body = {"executor": "http", "target": {"url": "https://a.example/{{payload.x?}}", "body": "{{payload}}"}}
    assert stack.call("PUT", "/v1/job-types/call", json.dumps(body)).status == 201
    for turn, scalar in enumerate(ALL_SCALARS[status % 3 :: 1 if THOROUGH else 3]):
        template = ("%s", '{"n": [%s]}', "[%s", '{%s: {"a": 1}}')[turn % 4] if scalar[0] == '"' else '{"n": [0, %s]}'
        response = template % scalar
        created = stack.call("POST", "/v1/jobs", '{"job_type": "call", "payload": {"x": "y"}}')
        stack.drain()
        headers = {"content-type": "application/json", "etag": json.loads(scalar) if scalar[0] == '"' else scalar}
        target = RespondingTarget(HttpResponse(status=status, headers=headers, body=response.encode()))
        secrets: Any = None
        call_target(stack.world.ctx, target, secrets, stack.world.executors.calls.pop())
        job = stack.call("GET", f"/v1/jobs/{created.json['job_id']}").ok()
        assert job["status"] in ("completed", "failed")
        if status == 200 and breaks_rule(scalar) and "e" in scalar and scalar[0] != '"':
            assert job["error"]["code"] == "RESPONSE_INVALID"
    stack.settle()


def test_scalar_in_a_result_reaches_conditions_outputs_and_joins(stack: Stack) -> None:
    accepted = [scalar for scalar in ALL_SCALARS if not breaks_rule(scalar)]
    for scalar in accepted[:: 1 if THOROUGH else 4]:
        jobs = [
            {"name": "a"}, {"name": "b", "depends_on": ["a"], "condition": "x == y || to_number(x) > `1`"},
            {"name": "j", "executor": "join", "depends_on": ["a"]},
            {"name": "c", "depends_on": ["a"], "condition": "x"},
        ]  # fmt: skip
        output = "{a: a.result, n: to_number(a.result.x), s: to_string(a.result), j: j.result}"
        body = json.dumps({"name": "w", "jobs": jobs, "output": output})
        run_id = stack.call("POST", "/v1/workflows", body).json["workflow_id"]
        stack.drain()
        claimed = stack.call("POST", "/v1/queues/default/claim", '{"max": 10}').json["jobs"]
        for job in claimed:
            report = f'{{"lease_token": "{job["lease_token"]}", "result": {{"x": {scalar}, "y": [{scalar}]}}}}'
            assert stack.call("POST", f"/v1/jobs/{job['job_id']}/complete", report).status == 200
        stack.drain()
        for job in stack.call("POST", "/v1/queues/default/claim", '{"max": 10}').json["jobs"]:
            report = f'{{"lease_token": "{job["lease_token"]}", "result": {scalar}}}'
            assert stack.call("POST", f"/v1/jobs/{job['job_id']}/complete", report).status == 200
        stack.drain()
        run = stack.call("GET", f"/v1/workflows/{run_id}").ok()
        assert run["status"] in ("completed", "failed"), (scalar[:40], run)
        for form in ("svg", "dot", "mermaid", "json"):
            assert stack.call("GET", f"/v1/workflows/{run_id}/graph", query=f"format={form}").status == 200
    stack.settle()


@pytest.mark.parametrize("key", [None, "bulk"])
def test_deepest_payload_is_read_back_in_every_answer(stack: Stack, key: str | None) -> None:
    headers = {"idempotency-key": key} if key else {}
    deep = "[" * 97 + "]" * 97
    job = f'{{"job_type": "a", "payload": {deep}}}'
    for path, body in ("jobs/bulk", f'{{"jobs": [{job}]}}'), ("jobs", job):
        for _ in range(2):
            assert stack.call("POST", f"/v1/{path}", body, headers=headers).status in (200, 202)
    for shown in stack.call("GET", "/v1/jobs").json["jobs"]:
        assert stack.call("GET", f"/v1/jobs/{shown['job_id']}").status == 200
    stack.settle()


def test_chain_of_joins_is_readable_or_fails_by_the_limit_of_levels(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dependency_results, "MAX_STORED_DEPTH", 110)
    joins = [{"name": f"j{n}", "executor": "join", "depends_on": [f"j{n - 1}" if n else "a"]} for n in range(15)]
    body = json.dumps({"name": "w", "jobs": [{"name": "a", "queue": "deep"}, *joins]})
    run_id = stack.call("POST", "/v1/workflows", body).json["workflow_id"]
    stack.drain()
    (job,) = stack.call("POST", "/v1/queues/deep/claim", "{}").json["jobs"]
    report = f'{{"lease_token": "{job["lease_token"]}", "result": {"[" * 98}{"]" * 98}}}'
    assert stack.call("POST", f"/v1/jobs/{job['job_id']}/complete", report).status == 200
    stack.drain()
    run = stack.call("GET", f"/v1/workflows/{run_id}", query="page_size=200").ok()
    jobs = [json.loads(stack.call("GET", f"/v1/jobs/{job['job_id']}").text) for job in run["jobs"]]
    failed = [job for job in jobs if job["status"] == "failed"]
    assert [job["name"] for job in failed] == ["j12"]
    assert failed[0]["error"]["code"] == "RESULT_TOO_LARGE"
    assert "result_levels" in failed[0]["error"]["message"]
    assert run["status"] == "failed"
    stack.settle()


FRAMES: tuple[dict[str, Any], ...] = (
    {"action": "ping", "id": "p"},
    {"action": "subscribe", "id": "s", "topics": ["queue:default", "namespace"]},
    {"action": "subscribe", "id": "s", "topics": ["job:{job_id}"], "since": {"job:{job_id}": "{job_id}.1"}},
    {"action": "subscribe", "id": "s", "topics": ["job:{job_id}"], "since": "{job_id}.1"},
    {"action": "unsubscribe", "id": "s"},
    {"action": "wait", "id": "w", "wait_on": {"{job_id}": {"job_stage": "boot", "x": 1}},
     "wait_options": {"get_fields": ["x"], "expires_in": 60, "mode": {"at_least": 1}}},
)  # fmt: skip


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[Position]:
    """Yield every position of an example."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield Position((*path, name), is_key=True)
            yield from leaves(item, (*path, name))
    elif isinstance(value, list):
        yield from leaves(value[0], (*path, 0))
    if path:
        yield Position(path)


@pytest.mark.parametrize("number", range(len(FRAMES)))
def test_scalar_in_a_websocket_message_gets_an_answer(stack: Stack, number: int) -> None:
    peer = Peer(
        access=Access(namespace=NAMESPACE, scopes=frozenset({Scope.READ}), key_id=KEY),
        connection_id="c",
        sockets=stack.sockets,
    )
    frame = json.loads(json.dumps(FRAMES[number]).replace("{job_id}", stack.ids["job_id"]))
    for turn, position in enumerate(leaves(frame)):
        for scalar in islice(ALL_SCALARS, turn % 2, None, 1 if THOROUGH else 2):
            if position.is_key and not scalar.startswith('"'):
                continue
            before = len(stack.sockets.frames.get("c", []))
            text = json.dumps(place(frame, position)).replace(json.dumps(PLACEHOLDER), scalar)
            stack.world.pass_time(0.1)
            receive(stack.world.ctx, peer, text)
            answers = stack.sockets.frames["c"][before:]
            assert answers, (position, scalar)
            assert is_encodable_json(dumps(answers))
            if breaks_rule(scalar):
                assert answers[0]["type"] == "error"
                assert pointer_of(position, scalar) in [problem["pointer"] for problem in answers[0]["data"]["errors"]]
    stack.settle()
