"""Behaviour that all routes have in common."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from botocore.exceptions import ClientError

from functions.api.handler import handler
from tests.support.api import Client, LambdaContext, event
from vigil_core.domain.errors import StoreConflict
from vigil_core.runtime.logging import logger
from vigil_core.store.jobs.jobs import JobStore


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """Capture the log output."""
    output = StringIO()
    monkeypatch.setattr(logger.registered_handler, "stream", output)
    return output


PROBLEM_KEYS = {
    "type", "title", "status", "detail", "instance", "error", "message", "timestamp", "request_id",
}  # fmt: skip


def test_problem_response_has_every_documented_key(client: Client) -> None:
    problem = client.get("/v1/jobs/absent").problem(404, "JOB_NOT_FOUND")
    assert problem.keys() == PROBLEM_KEYS | {"hint"}
    assert "UUIDv7" in problem["hint"]
    assert problem["instance"] == "/v1/jobs/absent"
    assert problem["request_id"] == "JKJaXmPLvHcESHA="
    assert problem["detail"] == problem["message"]
    assert client.post("/v1/jobs", {}).problem(422, "VALIDATION_FAILED").keys() == PROBLEM_KEYS | {"errors"}


@pytest.mark.parametrize("content_type", ["text/plain", "application/json", "multipart/form-data", "nonsense", None])
def test_body_is_parsed_as_json_for_any_content_type(client: Client, content_type: str | None) -> None:
    request = event(client, "POST", "/v1/jobs", '{"job_type": "t", "payload": [1]}', {})
    request["headers"] = {} if content_type is None else {"Content-Type": content_type}
    answered = handler(request, LambdaContext())
    assert answered["statusCode"] == 202
    assert json.loads(answered["body"])["payload"] == [1]


def test_base64_encoded_body_is_decoded(client: Client) -> None:
    assert client.post("/v1/jobs", body='{"job_type": "größe"}'.encode()).ok(202)["job_type"] == "größe"


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/"), ("GET", "/v1"), ("GET", "/v1/nothing"), ("PUT", "/v1/jobs"), ("OPTIONS", "/v1/jobs"),
        ("HEAD", "/v1/jobs"), ("GET", "/v1/jobs/"), ("GET", "/v1/jobs/a/neighbours"), ("GET", "//v1/jobs"),
        ("POST", "/openapi.json"), ("GET", "/v1/jobs/a/b/c"),
    ],
)  # fmt: skip
def test_unknown_method_or_path_returns_404(client: Client, method: str, target: str) -> None:
    assert client.call(method, target).problem(404, "NOT_FOUND").keys() == PROBLEM_KEYS


def test_without_authorizer_context_only_the_openapi_document_is_served(client: Client) -> None:
    anonymous = Client(scopes=None)
    anonymous.get("/v1/jobs").problem(401, "UNAUTHORIZED")
    anonymous.post("/v1/jobs", {"job_type": "t"}).problem(401, "UNAUTHORIZED")
    assert anonymous.get("/openapi.json").ok()["openapi"] == "3.1.0"
    anonymous.get("/nothing").problem(404, "NOT_FOUND")


def test_missing_scope_is_reported_before_a_malformed_body(client: Client) -> None:
    reader = Client(scopes="read")
    assert "submit" in reader.post("/v1/jobs", body="{").problem(403, "FORBIDDEN")["message"]
    client.get("/v1/jobs").ok()


def throttled(code: str, **more: Any) -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": "slow down"}, **more}
    return ClientError(response, "Query")


@pytest.mark.parametrize(
    "fault",
    [
        throttled("ProvisionedThroughputExceededException"),
        throttled("ThrottlingException"),
        throttled("RequestLimitExceeded"),
        throttled("TransactionCanceledException", CancellationReasons=[{"Code": "None"}, {"Code": "ThrottlingError"}]),
        StoreConflict("lost"),
    ],
    ids=str,
)
def test_throttled_table_returns_429_with_retry_after(
    client: Client, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    monkeypatch.setattr(JobStore, "find", raising(fault))
    reply = client.get("/v1/jobs/01980c4e-5a00-7c3b-9e21-3f6b0a1d2c4e")
    reply.problem(429, "TOO_MANY_REQUESTS")
    assert reply.headers["retry-after"] == "1"


def test_internal_error_is_logged_and_hidden_from_the_client(
    client: Client, monkeypatch: pytest.MonkeyPatch, log: StringIO
) -> None:
    monkeypatch.setattr(JobStore, "find", raising(RuntimeError("the secret cause")))
    reply = client.get("/v1/jobs/01980c4e-5a00-7c3b-9e21-3f6b0a1d2c4e")
    assert "secret" not in reply.text
    assert reply.problem(500, "INTERNAL_ERROR")["request_id"] == "JKJaXmPLvHcESHA="
    fault, line = map(json.loads, log.getvalue().splitlines())
    assert (fault["level"], "the secret cause" in fault["exception"]) == ("ERROR", True)
    assert (line["action"], line["status"], line["error"]) == ("get_job", 500, "INTERNAL_ERROR")
    assert line["request_id"] == fault["request_id"] == "JKJaXmPLvHcESHA="


def raising(fault: Exception) -> Any:
    def act(*_: Any) -> None:
        raise fault

    return act


def test_each_request_logs_one_line_with_ids_and_without_payload(client: Client, log: StringIO) -> None:
    headers = {"authorization": "Bearer vgl_secret"}
    job = client.post(
        "/v1/jobs",
        {
            "job_type": "t",
            "payload": "classified",
            "fields": {"f": "classified"},
            "correlation_id": "c",
            "trace_id": "x",
        },
        headers=headers,
    )
    client.post("/v1/tickets")
    created, ticket = map(json.loads, (log_text := log.getvalue()).splitlines())
    assert "classified" not in log_text
    assert "vgl_" not in log_text
    assert "vgt_" not in log_text
    expected = {
        "level": "INFO",
        "action": "create_job",
        "job_id": job.json["job_id"],
        "status": 202,
        "namespace": "demo",
    }
    expected |= {"correlation_id": "c", "trace_id": "x"}
    assert {name: created[name] for name in expected} == expected
    assert ticket["action"] == "create_ticket"


def test_ticket_is_created_with_token_and_expiry(client: Client) -> None:
    ticket = client.post("/v1/tickets", body="").ok(201)
    assert ticket.keys() == {"ticket", "expires_at"}
    assert ticket["ticket"].startswith("vgt_demo_")
    assert Client(scopes="read").post("/v1/tickets", {}).ok(201)["ticket"] != ticket["ticket"]
