"""What a key may do with the waits, claims, uploads and targets of others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest
from moto import mock_aws

from tests.support import api
from tests.support.api import BODIES, Client, deployed
from tests.support.table import aws, create_table
from tests.support.world import NAMESPACE, World
from vigil_core.domain.errors import InvalidTransition
from vigil_core.domain.executors.targets import is_own_function
from vigil_core.domain.jobs.job import NewJob
from vigil_core.domain.webhooks import MAX_PREVIOUS_SECRETS, SECRET_OVERLAP, Webhook
from vigil_core.services.jobs.submit import submit
from vigil_core.services.queues.claim import ClaimRequest, claim_jobs

STACK = "vigil"
OWNER, OTHER = "00000000000000b1", "00000000000000b2"
SCOPES = ("read", "work", "submit", "admin", "read,work", "work,submit")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv("STACK_NAME", STACK)
    with deployed():
        yield Client()


def with_key(monkeypatch: pytest.MonkeyPatch, key_id: str, scopes: str) -> Client:
    """Return a client whose requests have this key."""
    monkeypatch.setattr(api, "KEY_ID", key_id)
    return Client(scopes=scopes)


# Waits


@pytest.mark.parametrize(("scopes", "key_id"), list(product(SCOPES, (OWNER, OTHER))))
def test_key_cancels_its_own_waits_and_with_submit_or_admin_all(
    client: Client, monkeypatch: pytest.MonkeyPatch, scopes: str, key_id: str
) -> None:
    job_id = client.create()["job_id"]
    owner = with_key(monkeypatch, OWNER, "read")
    wait_id = owner.post("/v1/waits", {"wait_on": {job_id: None}}, headers={"prefer": "wait=0"}).ok()["wait_id"]
    reply = with_key(monkeypatch, key_id, scopes).delete(f"/v1/waits/{wait_id}")
    may_cancel = key_id == OWNER or "submit" in scopes or "admin" in scopes
    if may_cancel:
        assert reply.ok()["status"] == "cancelled"
    else:
        reply.problem(403, "FORBIDDEN")
        assert client.get(f"/v1/waits/{wait_id}").ok()["status"] == "waiting"


def test_unknown_wait_is_not_found_for_every_scope(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for scopes in SCOPES:
        with_key(monkeypatch, OTHER, scopes).delete(f"/v1/waits/{api.SOME_ID}").problem(404, "WAIT_NOT_FOUND")


# Claims


@pytest.fixture
def world() -> Iterator[World]:
    with mock_aws():
        yield World(create_table())


def test_claim_id_of_another_key_is_another_claim(world: World) -> None:
    def claim(key_id: str) -> list[str]:
        request = ClaimRequest(queue="default", worker="w", limit=1, lease_s=60, claim_id="c")
        jobs = claim_jobs(world.ctx, NAMESPACE, request, actor=key_id, until=world.time)
        return [job.lease.token for job in jobs if job.lease is not None]

    world.job()
    first = claim(OWNER)
    assert len(first) == 1
    assert claim(OTHER) == [], "the job is claimed"
    assert claim(OWNER) == first, "the same claim"
    world.job()
    second = claim(OTHER)
    assert len(second) == 1
    assert second != first


# Uploads


def upload(client: Client, size: int = 10) -> str:
    """Create an upload, put its content into the bucket, and return its reference."""
    reference: str = client.post("/v1/uploads", {"size": size}).ok(201)["reference"]
    aws("s3").put_object(Bucket=BODIES, Key=f"uploads/demo/{reference}", Body=b"x" * size)
    return reference


def test_upload_belongs_to_the_first_job_that_names_it(client: Client) -> None:
    reference = upload(client)
    first = client.create(payload_ref=reference)["job_id"]
    for _ in range(2):
        refused = client.post("/v1/jobs", {"job_type": "t", "payload_ref": reference})
        assert refused.pointers() == ["/payload_ref"]
        assert first in refused.json["errors"][0]["detail"]
    running = client.running()["job_id"]
    refused = client.post(f"/v1/jobs/{running}/complete", {"result_ref": reference})
    assert refused.pointers() == ["/result_ref"]


def test_repeated_request_may_name_its_upload_again(client: Client) -> None:
    reference = upload(client)
    body, headers = {"job_type": "t", "payload_ref": reference}, {"idempotency-key": "once"}
    first = client.post("/v1/jobs", body, headers=headers).ok(202)
    assert client.post("/v1/jobs", body, headers=headers).ok(202)["job_id"] == first["job_id"]
    result = upload(client)
    job_id = client.running()["job_id"]
    client.post(f"/v1/jobs/{job_id}/complete", {"result_ref": result, "lease_token": "wrong"}).problem(
        409, "LEASE_LOST"
    )
    client.post(f"/v1/jobs/{job_id}/complete", {"result_ref": result}).ok()


# Targets

OWN = ("api", "matcher", "AuthorizerFunction-1AB2C3", "http-executor", "admin", "sweeper", "anything")
FOREIGN = ("other-admin", "vigil-task-thumbnails", "thumbnails", "vigiladmin", "my-vigil-admin")
ARN = "arn:aws:lambda:eu-west-1:123456789012:function:"


def test_functions_of_the_stack_are_recognised_in_every_spelling() -> None:
    for name, prefix, suffix in product(OWN, ("", ARN), ("", ":live", ":$LATEST", ":7")):
        assert is_own_function(f"{prefix}{STACK}-{name}{suffix}", STACK)
        assert is_own_function(f"{prefix}VIGIL-{name}{suffix}", STACK)
    for name, prefix, suffix in product(FOREIGN, ("", ARN), ("", ":live")):
        assert not is_own_function(f"{prefix}{name}{suffix}", STACK)


@pytest.mark.parametrize("function", ["vigil-admin", f"{ARN}vigil-sweeper:live"])
def test_definition_of_a_job_type_refuses_functions_of_vigil(client: Client, function: str) -> None:
    body = {"executor": "lambda", "target": {"function": function}}
    assert client.call("PUT", "/v1/job-types/t", body).pointers() == ["/target/function"]
    body["target"] = {"function": "vigil-task-ok"}
    client.call("PUT", "/v1/job-types/t", body).ok(201)


def test_dispatch_refuses_functions_of_vigil(world: World) -> None:
    from tests.integration.executors.test_dispatch import store_target

    target_ref = store_target(world, "lambda", function="vigil-admin")
    new = NewJob(job_id=world.ctx.new_id(), job_type="t", executor="lambda", target_ref=target_ref)
    job_id = submit(world.ctx, NAMESPACE, new, actor="key1").job.job_id
    world.ctx = replace(world.ctx, stack_name=STACK)
    world.run_matcher()
    job = world.ctx.jobs.find(NAMESPACE, job_id)
    assert job is not None
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "FUNCTION_NOT_INVOCABLE")
    assert world.executors.invocations == []


UNREACHABLE = (
    "http://example.com/", "http://example.com/{{payload.x}}", "https://169.254.169.254/latest", "https://127.0.0.1/",
    "https://10.0.0.5:8080/{{payload.x}}", "https://[::1]/", "https://[fd00:ec2::254]/x", "https://192.168.1.1/?a=1",
)  # fmt: skip


@pytest.mark.parametrize("url", UNREACHABLE)
def test_definition_of_a_job_type_refuses_addresses_that_no_job_may_call(client: Client, url: str) -> None:
    refused = client.call("PUT", "/v1/job-types/t", {"executor": "http", "target": {"url": url}})
    assert refused.pointers() == ["/target/url"]
    (problem,) = refused.json["errors"]
    assert problem["code"] == "TARGET_REFUSED"
    assert "AllowedPrivateHosts" in problem["detail"]


@pytest.mark.parametrize(
    "url", ["https://example.com/", "https://93.184.215.14/{{payload.x}}", "https://a.example:8443/"]
)
def test_definition_of_a_job_type_accepts_public_addresses(client: Client, url: str) -> None:
    client.call("PUT", "/v1/job-types/t", {"executor": "http", "target": {"url": url}}).ok(201)


# Webhook secrets


def hook(secret: str) -> Webhook:
    now = datetime(2026, 1, 31, tzinfo=UTC)
    fields: dict[str, Any] = {"disabled_reason": None, "description": None, "created_at": now, "updated_at": now}
    return Webhook(
        namespace="n", name="ci", url="https://a.example/", events=("*",), enabled=True, secret=secret, **fields
    )


def test_each_replaced_secret_signs_for_its_whole_day() -> None:
    now = datetime(2026, 1, 31, tzinfo=UTC)
    current, replaced_at = hook("s0"), {}
    for number in range(1, MAX_PREVIOUS_SECRETS + 1):
        now += timedelta(hours=1)
        replaced_at[f"s{number - 1}"] = now
        current = replace(current, secret=f"s{number}").as_next_version(current, now)
    for hours in range(40):
        later = now + timedelta(hours=hours)
        valid = {secret for secret, at in replaced_at.items() if later < at + SECRET_OVERLAP}
        assert set(current.signing_secrets(later)) == {current.secret} | valid
    with pytest.raises(InvalidTransition):
        replace(current, secret="one more").as_next_version(current, now)
    oldest_over = replaced_at["s0"] + SECRET_OVERLAP
    after = replace(current, secret="one more").as_next_version(current, oldest_over)
    assert len(after.previous_secrets) == MAX_PREVIOUS_SECRETS


def test_rotation_beyond_the_limit_is_a_conflict(client: Client) -> None:
    body = {"url": "https://hooks.example.com/", "events": ["*"]}
    client.call("PUT", "/v1/webhooks/ci", body).ok(201)
    for _ in range(MAX_PREVIOUS_SECRETS):
        client.post("/v1/webhooks/ci/rotate-secret", {}).ok()
    client.post("/v1/webhooks/ci/rotate-secret", {}).problem(409, "INVALID_TRANSITION")
    client.call("PUT", "/v1/webhooks/ci", body).ok()
