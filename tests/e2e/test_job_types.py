"""Job types over HTTP and through the stream; each test is one task of a user."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import uuid6

from tests.e2e.harness import Aws, Client, Key, body_of, in_background, problem
from vigil.local import Stack

BOOT_TEST: dict[str, Any] = {
    "stages": ["flash", "boot", "login", "suite"],
    "queue": "boards",
    "defaults": {"tags": ["nightly"]},
}


def put(client: Client, name: str, status: int = 201, **body: Any) -> Any:
    return body_of(client.call("PUT", f"/v1/job-types/{quote(name, safe='')}", body), status)


def test_wait_for_a_custom_stage_is_met_by_a_later_stage(client: Client) -> None:
    put(client, "boot test", **BOOT_TEST)
    job_id = client.running(job_type="boot test")
    with in_background(lambda: client.wait({job_id: {"job_stage": "login"}}, hold_s=25)) as held:
        client.report(job_id, job_stage="boot")
        client.report(job_id, job_stage="suite")
        answer = held.result(timeout=40)
    assert (answer["status"], answer["waited_jobs"]) == ("met", {job_id: {"job_stage": "suite"}})
    job = client.get(f"/v1/jobs/{job_id}")
    assert (job["queue"], job["tags"]) == ("boards", ["nightly"])


def test_unknown_stage_is_refused_for_an_existing_job_and_unmet_for_a_new_one(client: Client) -> None:
    put(client, "boot test", **BOOT_TEST)
    there = client.running(job_type="boot test")
    refused = client.call("POST", "/v1/waits", {"wait_on": {there: {"job_stage": "download"}}}, prefer="wait=0")
    assert problem(refused, 422, "VALIDATION_FAILED")["errors"][0]["pointer"] == f"/wait_on/{there}/job_stage"

    later = str(uuid6.uuid7())
    waiting = client.wait({later: {"job_stage": "download"}}, allow_missing=True)
    assert waiting["status"] == "waiting"
    client.job(job_type="boot test", job_id=later)
    assert client.ended(waiting)["unmet_jobs"] == {later: {"job_stage": "submit", "reason": "unknown_stage"}}


def test_changed_job_type_leaves_existing_jobs_unchanged(client: Client) -> None:
    put(client, "boot test", **BOOT_TEST)
    old = client.running(job_type="boot test")
    put(client, "boot test", status=200, stages=["boot", "flash"])
    new = client.running(job_type="boot test")
    wait_on = {old: {"job_stage": "boot"}, new: {"job_stage": "boot"}}
    waiting = client.wait(wait_on)
    client.report(old, job_stage="boot")
    client.report(new, job_stage="flash")
    assert client.ended(waiting)["waited_jobs"] == {old: {"job_stage": "boot"}, new: {"job_stage": "flash"}}


def test_job_without_executor_completes_without_start(client: Client) -> None:
    put(client, "release", executor="none")
    job_id = client.job(job_type="release")
    waiting = client.wait({job_id: {"job_health": "success"}})
    assert client.complete(job_id, result={"version": "6.12"})["status"] == "completed"
    assert client.ended(waiting)["status"] == "met"
    assert client.get(f"/v1/jobs/{job_id}/result")["result"] == {"version": "6.12"}
    usual = client.job(job_type="somebody runs it")
    problem(client.call("POST", f"/v1/jobs/{usual}/complete", {}), 409, "INVALID_TRANSITION")


def test_payload_that_violates_the_schema_of_its_type_is_refused(client: Client) -> None:
    schema = {
        "type": "object",
        "required": ["kernel"],
        "properties": {"kernel": {"type": "string", "pattern": r"^\d+\.\d+$"}, "boards": {"items": {"type": "string"}}},
    }
    put(client, "checked", payload_schema=schema)
    wrong = {"job_type": "checked", "payload": {"kernel": "latest", "boards": ["a", 2]}}
    found = problem(client.call("POST", "/v1/jobs", wrong), 422, "VALIDATION_FAILED")["errors"]
    assert [error["pointer"] for error in found] == ["/payload/kernel", "/payload/boards/1"]
    right = {"job_type": "checked", "payload": {"kernel": "6.12", "boards": ["a"]}}
    results = client.post("/v1/jobs/bulk", {"jobs": [wrong, right]})["results"]
    assert ["problem" in result for result in results] == [True, False]
    assert len(client.get("/v1/jobs?job_type=checked")["jobs"]) == 1


@pytest.mark.parametrize("name", ["boot test", "größe", "100%", "a+b&c", "a#b", '"x"'])
def test_job_type_with_special_characters_in_its_name_is_found(client: Client, name: str) -> None:
    put(client, name, description="mine")
    assert client.get(f"/v1/job-types/{quote(name, safe='')}")["name"] == name
    assert [found["name"] for found in client.get("/v1/job-types")["job_types"]] == [name]
    assert client.get(f"/v1/jobs/{client.job(job_type=name)}")["job_type"] == name
    assert client.call("DELETE", f"/v1/job-types/{quote(name, safe='')}").status_code == 204
    problem(client.call("GET", f"/v1/job-types/{quote(name, safe='')}"), 404, "JOB_TYPE_NOT_FOUND")


def test_worker_key_may_not_define_a_job_type(stack: Stack, aws: Aws, key: Key) -> None:
    worker = aws.key("submit", "work", namespace=key.namespace)
    with Client(stack, worker.token) as client:
        problem(client.call("PUT", "/v1/job-types/t", {}), 403, "FORBIDDEN")
        assert client.get("/v1/job-types")["job_types"] == []
