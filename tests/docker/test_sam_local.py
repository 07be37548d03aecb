"""Invoke each function in a container with its sample payload, and request every HTTP route through the authorizer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import uuid6

from tests.docker.conftest import SamLocal
from tests.e2e.harness import Aws, Client, body_of, eventually, problem
from tests.support.events import sample
from tests.support.template import resources
from vigil.local import Stack
from vigil_core.domain.access import ApiKey, Scope, TokenKind, parse_token
from vigil_core.store.auth.api_keys import ApiKeyStore
from vigil_core.store.table import DynamoTable

FUNCTIONS = resources("AWS::Serverless::Function")
ROUTES = {
    f"{event['Properties']['Method']} {event['Properties']['Path']}": event["Properties"]["Path"]
    for event in FUNCTIONS["ApiFunction"]["Events"].values()
    if "Path" in event["Properties"]
}
ALL_DONE: dict[str, Any] = {"batchItemFailures": []}


@pytest.fixture(scope="module")
def known_key(aws: Aws) -> str:
    """Store the key of the samples; return its id."""
    bearer = sample("authorizer_http")["headers"]["authorization"]
    token = parse_token(bearer.removeprefix("Bearer "), TokenKind.API_KEY)
    assert token is not None
    ApiKeyStore(DynamoTable(aws.dynamodb, aws.stack.table_name)).add(
        ApiKey(
            namespace=token.namespace,
            key_id=token.id,
            secret_hash=token.secret_hash(),
            scopes=frozenset({Scope.ADMIN}),
            name="samples",
            created_at=datetime.now(UTC),
        )
    )
    return token.id


CASES: dict[str, tuple[str, Any]] = {
    "AuthorizerFunction": (
        "authorizer_http",
        {"isAuthorized": True, "context": {"namespace": "demo", "scopes": "admin", "key_id": "00000000000000a1"}},
    ),
    "ApiFunction": ("api_create_job", None),
    "WebsocketFunction": ("websocket_connect", {"statusCode": 200}),
    "MatcherFunction": ("matcher_job_changed", ALL_DONE),
    "NotifierFunction": ("notifier_job_completed", ALL_DONE),
    "FanOutFunction": ("fan_out_register", None),
    "SweeperFunction": ("sweeper_tick", {}),
    "HttpExecutorFunction": ("http_executor_call", None),
    "WebhooksFunction": ("webhooks_deliver", ALL_DONE),
    "SupervisorFunction": ("supervisor_start", {}),
    "AdminFunction": ("admin_list_keys", None),
}


def test_every_deployed_function_has_a_container_case() -> None:
    assert CASES.keys() == FUNCTIONS.keys()


@pytest.mark.parametrize("function", CASES)
def test_function_handles_its_sample_event_in_a_container(
    function: str, sam_local: SamLocal, stack: Stack, aws: Aws, known_key: str
) -> None:
    name, expected = CASES[function]
    answer = sam_local.invoke(function, sample(name))
    match function:
        case "ApiFunction":
            assert answer["statusCode"] == 202, answer
            assert answer["headers"]["location"].startswith("/v1/jobs/")
        case "AdminFunction":
            assert known_key in {key["key_id"] for key in answer["keys"]}
        case _:
            assert answer == expected


class Recorder(httpx.BaseTransport):
    """Record which routes were requested."""

    def __init__(self) -> None:
        self.routes: set[str] = set()
        self._transport = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for route, path in ROUTES.items():
            pattern = re.sub(r"{\w+}", "[^/]+", path)
            if route.startswith(f"{request.method} ") and re.fullmatch(pattern, request.url.path):
                self.routes.add(route)
        return self._transport.handle_request(request)

    def close(self) -> None:
        self._transport.close()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def client(stack: Stack, aws: Aws, local_api: str, recorder: Recorder) -> Iterator[Client]:
    """Return a client of `sam local start-api`."""
    with Client(replace(stack, api_url=local_api), aws.key().token, recorder) as made:
        yield made


def test_every_route_responds_from_containers(client: Client, local_api: str, stack: Stack, recorder: Recorder) -> None:
    with Client(replace(stack, api_url=local_api), "vgl_nobody_knows_this") as nobody:
        assert nobody.call("GET", "/v1/jobs").status_code in {401, 403}
    assert client.get("/openapi.json")["openapi"].startswith("3.1")
    assert client.call("GET", "/nowhere").status_code == 404
    first, second = client.jobs(2)
    third = client.job(payload={"n": 1})
    assert {job["job_id"] for job in client.get("/v1/jobs")["jobs"]} == {first, second, third}
    client.start(first)
    waiting = client.post("/scheduler/wait-jobs", {"wait_on": {first: None}}, prefer="wait=0")
    client.report(first, job_stage="boot")
    assert client.complete(first, result={"rows": 3})["status"] == "completed"
    client.start(second)
    client.fail(second)
    client.post(f"/v1/jobs/{second}/retry")
    client.post(f"/v1/jobs/{third}/cancel")
    assert client.get(f"/v1/jobs/{third}")["payload"] == {"n": 1}
    assert client.get(f"/v1/jobs/{first}/status")["job_stage"] == "complete"
    assert client.get(f"/v1/jobs/{first}/result")["result"] == {"rows": 3}
    assert len(client.get(f"/v1/jobs/{first}/events")["events"]) == 4
    assert client.get(f"/v1/jobs/{first}/dependencies")["depends_on"] == []
    assert client.get(f"/v1/jobs/{first}/dependencies/results")["dependencies"] == []
    # The matcher does not run in a container: it serves the emulator's stream, and the long poll sees its result.
    assert client.ended(waiting)["waited_jobs"] == {first: {"job_stage": "complete"}}
    assert client.get(f"/v1/waits/{waiting['wait_id']}")["status"] == "met"
    assert client.get(f"/v1/waits/{waiting['wait_id']}/jobs")["jobs"] == [
        {"job_id": first, "met": True, "values": {"job_stage": "complete"}}
    ]
    open_ = client.wait({str(uuid6.uuid7()): None}, allow_missing=True)
    assert body_of(client.call("DELETE", f"/v1/waits/{open_['wait_id']}"))["status"] == "cancelled"
    assert len(client.get("/v1/waits")["waits"]) == 2
    body_of(client.call("DELETE", f"/v1/jobs/{first}"), 204)
    assert client.post("/v1/uploads", {"size": 3_000_000}, status=201)["size"] == 3_000_000
    assert client.post("/v1/tickets", status=201)["ticket"].startswith("vgt_")
    body_of(client.call("PUT", "/v1/job-types/thumbnail", {"queue": "images", "stages": ["fetch", "shrink"]}), 201)
    assert client.get("/v1/job-types/thumbnail")["queue"] == "images"
    assert [each["name"] for each in client.get("/v1/job-types")["job_types"]] == ["thumbnail"]
    handed_out = client.job(job_type="thumbnail")
    assert client.post("/v1/queues/images/pause")["paused"]
    assert not client.post("/v1/queues/images/resume")["paused"]
    (job,) = client.post("/v1/queues/images/claim", {}, prefer="wait=5")["jobs"]
    lease = {"lease_token": job["lease_token"]}
    assert client.post(f"/v1/jobs/{handed_out}/heartbeat", lease)["status"] == "running"
    assert client.post(f"/v1/jobs/{handed_out}/release", lease)["status"] == "pending"
    assert client.get("/v1/queues/images")["queue"] == "images"
    assert client.get("/v1/usage")["limits"]
    assert {"queue": "images", "paused": False} in client.get("/v1/queues")["queues"]
    body_of(client.call("DELETE", "/v1/job-types/thumbnail"), 204)
    hook = {"url": "https://hooks.example.com/", "events": ["vigil.job.failed"]}
    assert body_of(client.call("PUT", "/v1/webhooks/ci", hook), 201)["secret"].startswith("whsec_")
    assert client.get("/v1/webhooks/ci")["secret"] is None
    assert [each["name"] for each in client.get("/v1/webhooks")["webhooks"]] == ["ci"]
    assert client.post("/v1/webhooks/ci/rotate-secret", {})["secret"].startswith("whsec_")
    assert client.get("/v1/webhooks/ci/deliveries")["deliveries"] == []
    assert client.call("POST", "/v1/webhooks/ci/deliveries/1_x_1/replay").status_code == 404
    body_of(client.call("DELETE", "/v1/webhooks/ci"), 204)
    body_of(client.call("PUT", "/v1/schedules/monthly", {"rate": "30 days", "job": {"job_type": "report"}}), 201)
    assert not client.post("/v1/schedules/monthly/pause")["enabled"]
    assert client.post("/v1/schedules/monthly/resume")["enabled"]
    assert client.get("/v1/schedules/monthly")["rate"] == "30 days"
    assert [each["name"] for each in client.get("/v1/schedules")["schedules"]] == ["monthly"]
    body_of(client.call("DELETE", "/v1/schedules/monthly"), 204)
    workflow = {"name": "w", "jobs": [{"name": "a", "queue": "nobody's"}]}
    assert client.post("/v1/workflows/validate", workflow)["jobs"] == 1
    run = client.post("/v1/workflows", workflow, status=202)["workflow_id"]
    eventually(lambda: client.get(f"/v1/workflows/{run}")["status"] == "running")
    assert client.get("/v1/workflows", prefer="wait=0")["workflows"][0]["workflow_id"] == run
    assert client.get(f"/v1/workflows/{run}/stats")["total"] == 1
    assert [job["name"] for job in client.get(f"/v1/workflows/{run}/graph")["jobs"]] == ["a"]
    assert client.post(f"/v1/workflows/{run}/pause")["status"] == "paused"
    problem(
        client.call("POST", f"/v1/workflows/{run}/decisions", {"job": "a", "action": "skip"}), 409, "INVALID_TRANSITION"
    )
    assert client.post(f"/v1/workflows/{run}/resume")["status"] == "running"
    assert client.call("POST", f"/v1/workflows/{run}/cancel").status_code in (200, 202)
    eventually(lambda: client.get(f"/v1/workflows/{run}")["status"] == "cancelled")
    assert client.post("/v1/workflows/cancel", {"name": "w"})["cancelled"] == []
    assert client.post(f"/v1/workflows/{run}/retry")["generation"] == 2
    assert recorder.routes == ROUTES.keys()
