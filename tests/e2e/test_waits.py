"""Waits over HTTP and through the stream."""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta
from typing import Any

import pytest
import uuid6

from tests.e2e.harness import Aws, Client, Key, body_of, eventually, in_background, in_parallel, problem

# The target is 10,000. The emulator takes four minutes for it, so it runs on request only.
WAITS_ON_ONE_JOB = int(os.environ.get("VIGIL_E2E_WAITS_ON_ONE_JOB", "250"))
LARGEST_ROW_BYTES = 4 * 1024


def size(value: Any) -> int:
    """Return the bytes of a row, or of a value in it, approximately as DynamoDB counts them."""
    if isinstance(value, dict):
        return sum(len(name) + size(inner) for name, inner in value.items())
    if isinstance(value, list):
        return sum(map(size, value))
    return len(value) if isinstance(value, bytes) else len(str(value))


@pytest.mark.smoke
def test_wait_on_two_jobs_is_met_when_both_complete(client: Client) -> None:
    first, second = client.running(), client.running()
    body = {"wait_on": {first: {"job_stage": "complete"}, second: None}}
    with in_background(lambda: client.post_wait(body, hold_s=20, path="/scheduler/wait-jobs")) as held:
        client.complete(first)
        client.complete(second)
        answer = held.result(timeout=20)
    assert answer["waited_jobs"] == {first: {"job_stage": "complete"}, second: {"job_stage": "complete"}}
    assert "wait_on" not in answer
    assert (answer["status"], answer["unmet_jobs"]) == ("met", {})


def test_wait_for_a_milestone_returns_the_requested_fields(client: Client) -> None:
    job_id = client.running()
    client.report(job_id, milestones=["final"], fields={"result_root": "/result/boot/1", "boot_seconds": 45})
    client.complete(job_id)
    answer = client.post(
        "/scheduler/wait-jobs",
        {
            "wait_on": {job_id: {"milestone": "final"}},
            "wait_options": {"get_fields": {"result_root": None, "boot_seconds": None}, "fail_fast": None},
        },
    )
    assert answer["waited_jobs"] == {
        job_id: {"job_stage": "complete", "result_root": "/result/boot/1", "boot_seconds": "45"}
    }
    assert "wait_on" not in answer


def test_long_poll_returns_within_a_second_of_the_update(client: Client) -> None:
    job_id = client.running()
    with in_background(lambda: client.wait({job_id: {"job_stage": "boot"}}, hold_s=25)) as held:
        client.report(job_id, job_stage="download")
        assert not held.done()
        client.report(job_id, job_stage="boot")
        updated_at = time.monotonic()
        answer = held.result(timeout=25)
        assert time.monotonic() - updated_at < 1
    assert (answer["status"], answer["waited_jobs"]) == ("met", {job_id: {"job_stage": "boot"}})


def test_posting_the_response_back_continues_the_wait_until_met(client: Client) -> None:
    jobs = [client.running() for _ in range(3)]
    answer = client.wait(dict.fromkeys(jobs))
    wait_id, expires_at, rounds = answer["wait_id"], answer["expires_at"], 0
    assert answer["wait_on"] == dict.fromkeys(jobs)
    for done, job_id in enumerate(jobs, start=1):
        client.complete(job_id)
        while "wait_on" in answer and len(answer["waited_jobs"]) < done:
            answer = client.post_wait(answer, hold_s=1)
            rounds += 1
            assert rounds < 60
        assert (answer["wait_id"], answer["expires_at"]) == (wait_id, expires_at)
        assert answer.get("wait_on", {}) == dict.fromkeys(jobs[done:])
    assert (answer["status"], set(answer["waited_jobs"])) == ("met", set(jobs))
    assert client.post_wait(answer) == answer, "an ended answer gives itself"
    assert client.get(f"/v1/waits/{wait_id}") == answer


def test_waited_jobs_of_an_earlier_response_are_preserved(client: Client) -> None:
    job_id = client.running()
    earlier = {str(uuid6.uuid7()): {"job_stage": "complete", "job_health": "success"}}
    answer = client.post_wait({"wait_on": {job_id: None}, "waited_jobs": earlier})
    assert answer["waited_jobs"] == earlier
    client.complete(job_id)
    assert client.ended(answer)["waited_jobs"] == {**earlier, job_id: {"job_stage": "complete"}}


def test_fail_fast_wait_ends_at_the_first_incomplete_job(client: Client) -> None:
    good, bad, open_ = client.running(), client.running(), client.running()
    answer = client.wait({good: None, bad: {"milestone": "m"}, open_: None}, fail_fast=None, get_fields={"why": None})
    client.complete(good)
    eventually(lambda: good in client.get(f"/v1/waits/{answer['wait_id']}")["waited_jobs"])
    client.report(bad, fields={"why": "no disk"})
    client.fail(bad)
    ended = client.ended(answer)
    assert ended["status"] == "failed_fast"
    assert ended["waited_jobs"] == {
        good: {"job_stage": "complete", "why": ""},
        bad: {"job_stage": "incomplete", "why": "no disk"},
    }
    assert "wait_on" not in ended
    late = client.wait({bad: {"milestone": "m"}}, fail_fast=True)
    assert late["status"] == "failed_fast", "already incomplete when asked"


def test_wait_is_unmet_when_its_jobs_end_without_meeting_the_conditions(client: Client) -> None:
    failed, deleted, done = client.running(), client.job(), client.running()
    answer = client.wait({failed: {"job_stage": "complete"}, deleted: {"milestone": "m"}, done: {"job_health": "fine"}})
    client.fail(failed)
    client.complete(done)
    client.post(f"/v1/jobs/{deleted}/cancel")
    body_of(client.call("DELETE", f"/v1/jobs/{deleted}"), 204)
    ended = client.ended(answer)
    assert (ended["status"], ended["waited_jobs"]) == ("unmet", {})
    assert ended["unmet_jobs"] == {
        failed: {"job_stage": "incomplete", "reason": "ended"},
        deleted: {"job_stage": "incomplete", "reason": "ended"},
        done: {"job_stage": "complete", "reason": "ended"},
    }


def test_all_parts_of_a_condition_must_match_in_the_same_update(client: Client) -> None:
    job_id = client.running(fields={"arch": "arm64"})
    answer = client.wait({job_id: {"milestones": ["rpm", "iso"], "arch": "x86_64", "job_stage": "boot"}})
    client.report(job_id, milestones=["rpm", "iso"], job_stage="setup")
    client.report(job_id, fields={"arch": "x86_64"})
    client.report(job_id, fields={"arch": "riscv"})
    assert client.ended(answer)["waited_jobs"] == {job_id: {"job_stage": "setup"}}, "true for one update counts"


def test_collected_fields_are_returned_as_text(client: Client) -> None:
    job_id = client.running()
    fields = {"text": "plain", "number": 7, "flag": True, "list": ["a", 1, None], "object": {"k": [1.5, "v"]}}
    client.report(job_id, fields=fields)
    client.complete(job_id, result={"rows": 3})
    names = [*fields, "absent", "status", "result"]
    answer = client.wait({job_id: None}, get_fields=dict.fromkeys(names))
    values = answer["waited_jobs"][job_id]
    assert (values["text"], values["number"], values["flag"]) == ("plain", "7", "true")
    assert values["list"].startswith("a 1")
    assert values["object"] == '{"k":[1.5,"v"]}'
    assert (values["absent"], values["status"], values["result"]) == ("", "completed", '{"rows":3}')


def test_any_and_at_least_modes_are_met_by_enough_jobs(client: Client) -> None:
    jobs = [client.running() for _ in range(4)]
    first_of_all = client.wait({job_id: {"job_stage": "boot"} for job_id in jobs}, mode="any")
    three = client.wait({job_id: {"job_stage": "complete"} for job_id in jobs}, mode={"at_least": 3})
    too_many_failed = client.wait({job_id: {"job_health": "success"} for job_id in jobs}, mode={"at_least": 4})
    client.report(jobs[2], job_stage="boot")
    assert client.ended(first_of_all)["waited_jobs"] == {jobs[2]: {"job_stage": "boot"}}
    client.fail(jobs[0])
    assert client.ended(too_many_failed)["status"] == "unmet"
    for job_id in jobs[1:]:
        client.complete(job_id)
    assert (client.ended(three)["status"], set(client.ended(three)["waited_jobs"])) == ("met", set(jobs[1:]))


def test_wait_with_return_on_progress_returns_after_each_job(client: Client) -> None:
    jobs = [client.running() for _ in range(6)]
    answer = client.wait(dict.fromkeys(jobs), return_on="progress")
    seen: list[str] = []
    for job_id in jobs:
        with in_background(lambda: client.post_wait(answer, hold_s=25)) as held:  # noqa: B023
            client.complete(job_id)
            answer = held.result(timeout=25)
        seen += [one for one in answer["waited_jobs"] if one not in seen]
        assert seen[-1] == job_id
    assert client.ended(answer)["status"] == "met"


def test_wait_with_allow_missing_is_met_by_a_job_created_later(client: Client) -> None:
    unborn = str(uuid6.uuid7())
    refusal = problem(client.call("POST", "/v1/waits", {"wait_on": {unborn: None}}), 404, "JOB_NOT_FOUND")
    assert unborn in refusal["message"]
    answer = client.wait({unborn: {"job_stage": "boot"}}, allow_missing=None)
    client.running(job_id=unborn)
    client.report(unborn, job_stage="boot")
    assert client.ended(answer)["waited_jobs"] == {unborn: {"job_stage": "boot"}}


def test_wait_expires_within_a_second_of_its_deadline(client: Client) -> None:
    open_, done = client.running(), client.running()
    client.complete(done)
    client.ended(client.wait({open_: None}, expires_in=1))  # The sweeper's function is warm now.
    answer = client.wait({open_: None, done: None}, expires_in=2)
    assert answer["status"] == "waiting"
    ended = client.ended(answer)
    late = datetime.fromisoformat(ended["ended_at"]) - datetime.fromisoformat(ended["expires_at"])
    assert timedelta(0) <= late < timedelta(seconds=1)
    assert (ended["status"], ended["waited_jobs"]) == ("expired", {done: {"job_stage": "complete"}})
    assert ended["unmet_jobs"] == {open_: {"job_stage": "submit", "reason": "expired"}}
    assert "wait_on" not in ended


def test_open_wait_can_be_cancelled_once(client: Client) -> None:
    job_id = client.running()
    path = f"/v1/waits/{client.wait({job_id: None})['wait_id']}"
    cancelled = body_of(client.call("DELETE", path))
    assert cancelled["status"] == "cancelled"
    assert body_of(client.call("DELETE", path)) == cancelled == client.get(path)
    client.complete(job_id)
    met = client.wait({job_id: None})
    problem(client.call("DELETE", f"/v1/waits/{met['wait_id']}"), 409, "INVALID_TRANSITION")
    listed = client.get("/v1/waits")["waits"]
    assert [wait["status"] for wait in listed] == ["met", "cancelled"], "newest first"
    assert client.get("/v1/waits?status=cancelled")["waits"] == listed[1:]


def test_invalid_wait_requests_are_refused_and_store_nothing(client: Client) -> None:
    job_id = client.job()
    cases: list[tuple[Any, str]] = [
        ({}, "/wait_on"),
        ({"wait_on": {}}, "/wait_on"),
        ({"wait_on": {job_id: 7}}, f"/wait_on/{job_id}"),
        ({"wait_on": {job_id: {"job_stage": "wash"}}}, f"/wait_on/{job_id}/job_stage"),
        ({"wait_on": {job_id: {"job_stage": None}}}, f"/wait_on/{job_id}/job_stage"),
        ({"wait_on": {job_id: {"milestones": []}}}, f"/wait_on/{job_id}/milestones"),
        ({"wait_on": {job_id: {"progress": 1}}}, f"/wait_on/{job_id}/progress"),
        ({"wait_on": {job_id: None}, "wait_options": {"expires_in": -1}}, "/wait_options/expires_in"),
        ({"wait_on": {job_id: None}, "wait_options": {"mode": {"at_least": 2}}}, "/wait_options/mode/at_least"),
        ({"wait_on": {job_id: None}, "wait_options": {"notify": {"webhook": "http://localhost"}}}, "/wait_options"),
        ({"wait_on": {job_id: None}, "priority": 1}, "/priority"),
        ({"wait_on": {str(uuid6.uuid7()): None for _ in range(10_001)}}, "/wait_on"),
    ]
    for body, pointer in cases:
        refusal = problem(client.call("POST", "/v1/waits", body), 422, "VALIDATION_FAILED")
        assert refusal["errors"][0]["pointer"].startswith(pointer), refusal
    for unknown in ("7", str(uuid6.uuid7())):
        problem(client.call("GET", f"/v1/waits/{unknown}"), 404, "WAIT_NOT_FOUND")
    assert client.get("/v1/waits")["waits"] == []


@pytest.mark.alone
def test_wait_on_ten_thousand_jobs_is_met_without_growing_rows(client: Client, aws: Aws, key: Key) -> None:
    """Register a wait through the fan-out function; two of its jobs are created later and meet it.

    No row grows with the wait.
    """
    jobs = [str(uuid6.uuid7()) for _ in range(10_000)]
    answer = client.wait({job_id: {"job_stage": "boot"} for job_id in jobs}, allow_missing=True, mode={"at_least": 2})
    wait_id = answer["wait_id"]
    assert answer["counts"] == {"total": 10_000, "met": 0, "unmet": 0}
    assert answer["truncated"]
    # One job exists before the fan-out function reaches it, the other one is created much later.
    client.running(job_id=jobs[9_999])
    client.report(jobs[9_999], job_stage="boot")
    path = f"/v1/waits/{wait_id}"
    eventually(lambda: "registering" not in client.get(path), within_s=100, every_s=1, what="every page registered")
    client.running(job_id=jobs[4_321])
    client.report(jobs[4_321], job_stage="boot")
    ended = client.ended(answer, within_s=20)
    assert (ended["status"], ended["counts"]) == ("met", {"total": 10_000, "met": 2, "unmet": 0})
    assert set(ended["waited_jobs"]) == {jobs[9_999], jobs[4_321]}
    page = client.get(f"{path}/jobs")
    assert [line["job_id"] for line in page["jobs"]] == [jobs[4_321], jobs[9_999]], "in the order of wait_on"
    rows = aws.rows(f"{key.namespace}#wait#{wait_id}")
    # The request is packed, a thousand jobs per row, and never written again.
    assert max(size(row) for row in rows if row["entity"]["S"] != "wait_spec") < LARGEST_ROW_BYTES


@pytest.mark.alone
def test_thousands_of_waits_on_one_job_are_met_without_growing_rows(client: Client, aws: Aws, key: Key) -> None:
    """Match more waits than the matcher does inline: the fan-out function matches them, and no row grows with them."""
    job_id = client.running()
    small = max(map(size, aws.rows(f"{key.namespace}#job#{job_id}")))
    at_boot = {job_id: {"job_stage": "boot"}}
    waits = in_parallel(lambda _: client.wait(at_boot, expires_in=900)["wait_id"], range(WAITS_ON_ONE_JOB), at_once=8)
    client.report(job_id, job_stage="boot")
    client.complete(job_id)
    entries = f"{key.namespace}#waits-on#{job_id}"
    eventually(lambda: not aws.rows(entries), within_s=60 + WAITS_ON_ONE_JOB / 50, every_s=1, what="every wait matched")
    assert max(map(size, aws.rows(f"{key.namespace}#job#{job_id}"))) < 2 * small
    shown = in_parallel(lambda wait_id: client.get(f"/v1/waits/{wait_id}"), waits, at_once=8)
    assert {(wait["status"], wait["waited_jobs"][job_id]["job_stage"]) for wait in shown} == {("met", "boot")}
