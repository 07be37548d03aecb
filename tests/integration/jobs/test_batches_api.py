"""Batches over HTTP: requests and responses."""

from __future__ import annotations

import pytest

from tests.support.api import SOME_ID, Client
from tests.support.table import TABLE_NAME
from vigil_core import wiring

CHECKED = {
    "executor": "none",
    "defaults": {"payload": {"n": 0}, "on_item_failure": "collect", "timeout": 60},
    "payload_schema": {"$defs": {"n": {"type": "integer"}}, "properties": {"n": {"$ref": "#/$defs/n"}}},
}


def mode_of(job_id: str) -> str:
    job = wiring.context().jobs.find("demo", job_id)
    assert job
    return job.batch.on_item_failure


def test_created_batch_shows_its_payloads_without_result(client: Client) -> None:
    created = client.create(batch=[{"n": 1}, None, 3.5], name="nightly", retry={"max_attempts": 5})
    assert (created["status"], created["batch_id"], created["attempt"], created["max_attempts"]) == (
        "pending",
        None,
        1,
        1,
    )
    read_back = client.get(f"/v1/jobs/{created['job_id']}").ok()
    assert read_back["payload"] == created["payload"] == [{"n": 1}, None, 3.5]
    assert read_back["result"] is None


def test_repeated_idempotency_key_creates_one_batch(client: Client) -> None:
    body = {"job_type": "t", "batch": [1, 2], "on_item_failure": "collect"}
    first, second = (client.post("/v1/jobs", body, headers={"Idempotency-Key": "k"}).ok(202) for _ in range(2))
    assert first == second
    other = client.post("/v1/jobs", {**body, "batch": [2, 1]}, headers={"Idempotency-Key": "k"})
    other.problem(422, "IDEMPOTENCY_KEY_REUSED")


def test_bulk_request_accepts_a_batch_and_refuses_empty_or_long_ones(client: Client) -> None:
    bodies = [
        {"job_type": "t", "batch": [1, 2]},
        {"job_type": "t", "batch": []},
        {"job_type": "t", "batch": [1] * 1001},
    ]
    good, empty, many = client.post("/v1/jobs/bulk", {"jobs": bodies}).ok()["results"]
    assert good["job"]["status"] == "pending"
    assert [bad["problem"]["errors"][0]["pointer"] for bad in (empty, many)] == ["/jobs/1/batch", "/jobs/2/batch"]


def test_each_payload_of_a_batch_is_validated_by_its_type(client: Client) -> None:
    client.call("PUT", "/v1/job-types/checked", CHECKED).ok(201)
    wrong = client.post("/v1/jobs", {"job_type": "checked", "batch": [{"n": 1}, {"n": "x"}, {"n": 2}, {"n": None}]})
    assert wrong.pointers() == ["/batch/1/n", "/batch/3/n"]
    created = client.create(job_type="checked", batch=[{"n": 1}])
    assert created["payload"] == [{"n": 1}], "the batch replaces the default payload of the type"
    assert mode_of(created["job_id"]) == "collect"
    assert client.create(job_type="checked")["payload"] == {"n": 0}, "a default failure mode makes no batch"


def test_batch_in_the_defaults_of_a_type_is_refused(client: Client) -> None:
    refused = client.call("PUT", "/v1/job-types/wrong", {"defaults": {"batch": [1]}})
    assert refused.pointers() == ["/defaults/batch"]


def test_batch_over_the_payload_limit_is_refused(client: Client) -> None:
    refused = client.post("/v1/jobs", {"job_type": "t", "batch": ["x" * 300_000] * 8}).problem(413, "PAYLOAD_TOO_LARGE")
    assert refused["detail"].startswith("/batch takes at most")
    assert wiring.dynamodb().scan(TableName=TABLE_NAME)["Count"] == 0


def test_batch_can_be_cancelled_but_not_started_or_ended_by_request(client: Client) -> None:
    job_id = client.create(batch=[1])["job_id"]
    for verb, body in (("start", {}), ("complete", {}), ("fail", {"error": {"code": "X", "message": "x"}})):
        client.post(f"/v1/jobs/{job_id}/{verb}", body).problem(409, "INVALID_TRANSITION")
    assert client.post(f"/v1/jobs/{job_id}/cancel").ok()["status"] == "cancelled"


@pytest.mark.parametrize("batch_id", [SOME_ID, "none"])
def test_list_by_unknown_batch_id_is_empty(client: Client, batch_id: str) -> None:
    client.create(batch=[1])
    assert client.get("/v1/jobs", batch_id=batch_id).ok()["jobs"] == []
