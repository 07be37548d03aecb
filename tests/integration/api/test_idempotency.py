"""Requests with the header Idempotency-Key."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.support.api import Client
from vigil_core import wiring
from vigil_core.services import idempotency
from vigil_core.store.jobs.jobs import JobStore

KEYED = {"Idempotency-Key": "k-1"}
NEW_JOB = {"job_type": "t", "payload": {"a": 1}}


def count(client: Client) -> int:
    return len(client.get("/v1/jobs").ok()["jobs"])


def move_clock(monkeypatch: pytest.MonkeyPatch, delta: timedelta) -> None:
    """Move the clock forward."""
    object.__setattr__(wiring.context(), "clock", lambda: wiring.now() + delta)


def test_repeated_request_with_one_key_returns_the_first_response(client: Client) -> None:
    first = client.post("/v1/jobs", NEW_JOB, headers=KEYED)
    client.post(f"/v1/jobs/{first.ok(202)['job_id']}/start").ok()
    repeated = client.post("/v1/jobs", {"payload": {"a": 1}, "job_type": "t", "name": None}, headers=KEYED)
    assert (repeated.status, repeated.text, repeated.headers) == (202, first.text, first.headers)
    assert count(client) == 1


@pytest.mark.parametrize("spelling", ['"k-1"', " k-1 ", "k-1"])
def test_quoted_and_unquoted_key_are_equal(client: Client, spelling: str) -> None:
    first = client.post("/v1/jobs", NEW_JOB, headers=KEYED)
    assert client.post("/v1/jobs", NEW_JOB, headers={"idempotency-key": spelling}).text == first.text


def test_same_key_with_another_body_is_refused(client: Client) -> None:
    client.post("/v1/jobs", NEW_JOB, headers=KEYED).ok(202)
    client.post("/v1/jobs", {**NEW_JOB, "payload": 2}, headers=KEYED).problem(422, "IDEMPOTENCY_KEY_REUSED")
    assert count(client) == 1


def test_same_key_is_independent_per_route_and_namespace(client: Client) -> None:
    client.post("/v1/jobs", NEW_JOB, headers=KEYED).ok(202)
    client.post("/v1/jobs/bulk", {"jobs": [NEW_JOB]}, headers=KEYED).ok()
    Client(namespace="other").post("/v1/jobs", NEW_JOB, headers=KEYED).ok(202)
    assert count(client) == 2


def test_failed_response_is_not_stored_for_the_key(client: Client) -> None:
    first = client.create(mutex={"key": "m"})
    body = {"job_type": "t", "mutex": {"key": "m"}}
    client.post("/v1/jobs", body, headers=KEYED).problem(409, "JOB_CREATION_FAILED")
    client.post("/v1/jobs", {"job_type": 5}, headers=KEYED).problem(422, "VALIDATION_FAILED")
    client.post(f"/v1/jobs/{first['job_id']}/cancel").ok()
    client.post("/v1/jobs", body, headers=KEYED).ok(202)


def test_key_can_be_used_again_after_a_day(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.post("/v1/jobs", NEW_JOB, headers=KEYED).ok(202)
    move_clock(monkeypatch, timedelta(hours=24, seconds=2))
    client.post("/v1/jobs", {**NEW_JOB, "payload": 2}, headers=KEYED).ok(202)


@pytest.mark.parametrize("key", ["", '""', "x" * 129, "a\tb", "a\x00b"])
def test_invalid_idempotency_key_is_refused(client: Client, key: str) -> None:
    assert client.post("/v1/jobs", NEW_JOB, headers={"Idempotency-Key": key}).pointers() == ["Idempotency-Key"]
    assert count(client) == 0


def test_retry_after_a_crash_returns_the_job_created_before(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a crash after the job is stored and before the response is sent."""

    def raise_server_error(*_: Any, **__: Any) -> None:
        raise ClientError({"Error": {"Code": "InternalServerError"}}, "PutItem")

    with monkeypatch.context() as patched:
        patched.setattr(idempotency, "dumps", raise_server_error)
        client.post("/v1/jobs", NEW_JOB, headers=KEYED).problem(500, "INTERNAL_ERROR")
    assert count(client) == 1
    early = client.post("/v1/jobs", NEW_JOB, headers=KEYED)
    early.problem(409, "IDEMPOTENCY_IN_PROGRESS")
    assert 1 <= int(early.headers["retry-after"]) <= 60
    client.post("/v1/jobs", {**NEW_JOB, "payload": 2}, headers=KEYED).problem(422, "IDEMPOTENCY_KEY_REUSED")
    move_clock(monkeypatch, timedelta(seconds=61))
    resumed = client.post("/v1/jobs", NEW_JOB, headers=KEYED).ok(202)
    assert [job["job_id"] for job in client.get("/v1/jobs").ok()["jobs"]] == [resumed["job_id"]]


def test_retry_of_a_crashed_bulk_request_creates_only_the_missing_jobs(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"jobs": [{"job_type": f"t{number}"} for number in range(5)]}
    store = JobStore.create
    calls = iter(range(100))

    def crash_after_three(self: JobStore, *args: Any, **named: Any) -> None:
        if next(calls) >= 3:
            raise KeyboardInterrupt
        store(self, *args, **named)

    with monkeypatch.context() as patched:
        patched.setattr(JobStore, "create", crash_after_three)
        with pytest.raises(KeyboardInterrupt):
            client.post("/v1/jobs/bulk", body, headers=KEYED)
        assert count(client) == 3
    move_clock(monkeypatch, timedelta(seconds=61))
    results = client.post("/v1/jobs/bulk", body, headers=KEYED).ok()["results"]
    assert [result["job"]["job_type"] for result in results] == ["t0", "t1", "t2", "t3", "t4"]
    assert count(client) == 5


def test_repeated_wait_request_with_one_key_registers_one_wait(client: Client) -> None:
    job = client.create()
    headers = {**KEYED, "Prefer": "wait=0"}
    first = client.post("/v1/waits", {"wait_on": {job["job_id"]: None}}, headers=headers)
    repeated = client.post("/v1/waits", {"wait_on": {job["job_id"]: None}}, headers=headers)
    assert first.ok()["wait_id"] == repeated.ok()["wait_id"]
    assert len(client.get("/v1/waits").ok()["waits"]) == 1
    client.post("/v1/waits", {"wait_on": {job["job_id"]: {}}}, headers=headers).problem(422, "IDEMPOTENCY_KEY_REUSED")
