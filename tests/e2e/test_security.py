"""Scopes and namespaces, through the deployed authorizer."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import uuid6

from tests.e2e.harness import Aws, Client, Key, body_of, eventually, problem, vigil
from tests.support.events import sample
from vigil.local import Stack


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer vgl_x", "Basic dGVzdDp0ZXN0"])
def test_requests_without_a_valid_key_are_refused(stack: Stack, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    with Client(stack, None) as nobody:
        for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("POST", "/scheduler/wait-jobs")):
            # API Gateway returns 401 without an identity, and 403 for an identity that the authorizer does not know.
            assert nobody.call(method, path, {"job_type": "test"}, **headers).status_code in {401, 403}
        assert nobody.get("/openapi.json")["openapi"].startswith("3.1")


def test_key_with_a_forged_secret_is_refused(stack: Stack, key: Key) -> None:
    last = key.token[-1]
    with Client(stack, key.token[:-1] + ("0" if last != "0" else "1")) as forger:
        assert forger.call("GET", "/v1/jobs").status_code == 403


def test_the_authorizer_refuses_a_revoked_key_at_once(aws: Aws, key: Key) -> None:
    """Note: HTTP caches the authorizer's result for up to 60 seconds (see test_recovery_time.py)."""
    event = sample("authorizer_http")
    event["headers"]["authorization"] = f"Bearer {key.token}"
    asked = {"isAuthorized": True, "context": {"namespace": key.namespace, "scopes": "admin", "key_id": key.key_id}}
    assert aws.invoke("authorizer", event) == asked
    aws.admin("revoke_key", namespace=key.namespace, key_id=key.key_id)
    assert aws.invoke("authorizer", event) == {"isAuthorized": False, "context": {}}


def test_ids_of_another_namespace_are_not_found(client: Client, other_tenant: Client) -> None:
    job_id = client.running()
    wait_id = client.wait({job_id: None})["wait_id"]
    for method, path in (
        ("GET", f"/v1/jobs/{job_id}"),
        ("GET", f"/v1/jobs/{job_id}/status"),
        ("GET", f"/v1/jobs/{job_id}/result"),
        ("GET", f"/v1/jobs/{job_id}/events"),
        ("GET", f"/v1/jobs/{job_id}/dependencies"),
        ("DELETE", f"/v1/jobs/{job_id}"),
        ("POST", f"/v1/jobs/{job_id}/complete"),
        ("POST", f"/v1/jobs/{job_id}/cancel"),
        ("POST", f"/v1/jobs/{job_id}/retry"),
    ):
        problem(other_tenant.call(method, path), 404, "JOB_NOT_FOUND")
    problem(other_tenant.call("PATCH", f"/v1/jobs/{job_id}", {"message": "mine now"}), 404, "JOB_NOT_FOUND")
    for method in ("GET", "DELETE"):
        problem(other_tenant.call(method, f"/v1/waits/{wait_id}"), 404, "WAIT_NOT_FOUND")
    problem(other_tenant.call("POST", "/v1/waits", {"wait_on": {job_id: None}}), 404, "JOB_NOT_FOUND")
    client.job()
    token = client.get("/v1/jobs?page_size=1")["next_page_token"]
    problem(other_tenant.call("GET", f"/v1/jobs?page_size=1&page_token={token}"), 422, "VALIDATION_FAILED")
    assert other_tenant.get("/v1/jobs")["jobs"] == []
    assert other_tenant.get("/v1/waits")["waits"] == []

    # A wait with allow_missing may name any id; it never sees the jobs of another namespace.
    waiting = other_tenant.wait({job_id: None}, allow_missing=True)
    client.complete(job_id)
    assert client.get(f"/v1/waits/{wait_id}", prefer="wait=20")["status"] == "met"
    assert other_tenant.get(f"/v1/waits/{waiting['wait_id']}")["status"] == "waiting"


@pytest.mark.smoke
def test_key_may_call_only_the_routes_of_its_scopes(stack: Stack, aws: Aws) -> None:
    """Check a sample of the matrix of route × scope, through the deployed authorizer."""
    namespace = f"scopes-{uuid6.uuid7().hex[-8:]}"
    keys = {scope: aws.key(scope, namespace=namespace).token for scope in ("read", "submit", "work", "admin")}
    with Client(stack, keys["submit"]) as submitter:
        job_id = submitter.job()
    calls = [
        ("GET", f"/v1/jobs/{job_id}", None, {"read", "submit", "work", "admin"}),
        ("POST", "/v1/waits", {"wait_on": {job_id: None}}, {"read", "submit", "work", "admin"}),
        ("POST", "/v1/jobs", {"job_type": "test"}, {"submit", "admin"}),
        ("POST", f"/v1/jobs/{uuid6.uuid7()}/cancel", {}, {"submit", "admin"}),
        ("PATCH", f"/v1/jobs/{job_id}", {"message": "hello"}, {"work", "admin"}),
        ("POST", f"/v1/jobs/{uuid6.uuid7()}/start", {}, {"work", "admin"}),
    ]
    for scope, token in keys.items():
        with Client(stack, token) as client:
            for method, path, body, allowed in calls:
                answer = client.call(method, path, body, prefer="wait=0")
                if scope in allowed:
                    assert answer.status_code in {200, 202, 404}, (scope, method, path, answer.text)
                else:
                    problem(answer, 403, "FORBIDDEN")


def test_key_commands_create_list_and_revoke_keys(stack: Stack, directory: Path) -> None:
    made = vigil(directory, "keys", "create", "--namespace", "operations", "--scopes", "read,submit", "--name", "cron")
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    with Client(stack, token) as client:
        client.job()
    key_id = token.split("_")[2]
    listed = vigil(directory, "keys", "list", "--namespace", "operations")
    assert key_id in listed.stdout
    assert token.split("_")[3] not in listed.stdout
    revoked = vigil(directory, "keys", "revoke", key_id, "--namespace", "operations")
    assert (revoked.returncode, revoked.stdout.split()[:2]) == (0, ["Revoked", key_id])
    refused = vigil(directory, "keys", "create", "--namespace", "UPPER", "--scopes", "read")
    assert refused.returncode == 1
    assert "namespace" in refused.stderr


def test_secrets_and_payloads_are_not_logged(stack: Stack, aws: Aws, client: Client, key: Key) -> None:
    # The emulator returns the first 10,000 log events of a group, without further pages.
    began_ms = int(1000 * (time.time() - 5))
    body_of(client.call("POST", "/v1/jobs", {"job_type": "test", "payload": {"password": "correct horse"}}), 202)
    client.complete(client.running(), result="battery staple")
    secret = key.token.split("_")[3]

    def logged(function: str) -> str:
        group = f"/aws/lambda/vigil-{function}"
        pages = aws.logs.get_paginator("filter_log_events").paginate(logGroupName=group, startTime=began_ms)
        return json.dumps([event["message"] for page in pages for event in page["events"]])

    eventually(lambda: key.key_id in logged("api"), every_s=1, what="the requests in the log")
    for function in ("authorizer", "api", "admin"):
        for kept_back in (secret, "correct horse", "battery staple"):
            assert kept_back not in logged(function), function
