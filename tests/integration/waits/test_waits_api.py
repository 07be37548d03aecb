"""Waits over HTTP. The tests of the services cover the behaviour of waits; these cover the HTTP layer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api import SOME_ID, Client, pages, run_at_each_pause

NO_LONG_POLL = {"Prefer": "wait=0"}


def open_wait(client: Client, **options: Any) -> Any:
    """Create a wait on an open job."""
    body = {"wait_on": {client.create()["job_id"]: None}, "wait_options": options}
    return client.post("/v1/waits", body, headers=NO_LONG_POLL).ok()


@pytest.mark.parametrize("target", ["/v1/waits", "/scheduler/wait-jobs"])
def test_wait_on_an_ended_job_returns_at_once(client: Client, target: str) -> None:
    job = client.ended(fields={"a": [1, 2]})
    body = {"wait_on": {job["job_id"]: None}, "wait_options": {"get_fields": {"a": None}}}
    answer = client.post(target, body).ok()
    assert (answer["status"], "wait_on" in answer) == ("met", False)
    assert answer["waited_jobs"] == {job["job_id"]: {"job_stage": "complete", "a": "1 2"}}
    assert client.post(target, body=client.post(target, answer).text).ok() == answer


def test_long_poll_on_a_wait_returns_when_it_ends(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancel the wait between two reads of the long poll. Nothing else in this test ends it."""

    def cancel(_: float) -> None:
        (wait,) = client.get("/v1/waits", status="waiting").ok()["waits"]
        client.delete(f"/v1/waits/{wait['wait_id']}").ok()

    run_at_each_pause(monkeypatch, cancel)
    body = {"wait_on": {client.create()["job_id"]: None}}
    assert client.post("/v1/waits", body).ok()["status"] == "cancelled"
    polled = client.post("/v1/waits", body, headers={"prefer": "wait=99"})
    assert (polled.ok()["status"], polled.headers["preference-applied"]) == ("cancelled", "wait=25")
    wait = open_wait(client)
    assert client.get(f"/v1/waits/{wait['wait_id']}", headers={"prefer": "wait=9"}).ok()["status"] == "cancelled"


def test_wait_without_prefer_header_returns_at_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: float) -> None:
        raise AssertionError

    run_at_each_pause(monkeypatch, fail)
    wait = open_wait(client)
    assert wait["status"] == client.get(f"/v1/waits/{wait['wait_id']}").ok()["status"] == "waiting"


def test_unknown_and_foreign_jobs_return_404_with_every_id(client: Client) -> None:
    foreign = Client(namespace="other").create()["job_id"]
    known = client.create()["job_id"]
    body = {"wait_on": {known: None, foreign: None, SOME_ID: None}}
    problem = client.post("/v1/waits", body, headers=NO_LONG_POLL).problem(404, "JOB_NOT_FOUND")
    assert foreign in problem["message"]
    assert SOME_ID in problem["message"]
    assert known not in problem["message"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/wait_on"),
        ({"wait_on": {}}, "/wait_on"),
        ({"wait_on": [SOME_ID]}, "/wait_on"),
        ({"wait_on": {SOME_ID: "complete"}}, f"/wait_on/{SOME_ID}"),
        ({"wait_on": {SOME_ID: {"arch": None}}}, f"/wait_on/{SOME_ID}/arch"),
        ({"wait_on": {SOME_ID: {"job_stage": 5}}}, f"/wait_on/{SOME_ID}/job_stage"),
        ({"wait_on": {SOME_ID: None}, "wait_options": {"expires_in": -1}}, "/wait_options/expires_in"),
        ({"wait_on": {SOME_ID: None}, "wait_options": {"mode": {"at_least": 2}}}, "/wait_options/mode/at_least"),
        ({"wait_on": {SOME_ID: None}, "wait_options": {"notify": {"webhook": "x"}}}, "/wait_options/notify/webhook"),
        ({"wait_on": {SOME_ID: None}, "nonsense": 1}, "/nonsense"),
        ({"wait_on": {str(number): None for number in range(10_001)}}, "/wait_on"),
    ],
)  # fmt: skip
def test_invalid_wait_is_refused_and_not_stored(client: Client, body: Any, pointer: str) -> None:
    assert client.post("/v1/waits", body, headers=NO_LONG_POLL).pointers() == [pointer]
    assert client.get("/v1/waits").ok()["waits"] == []


def test_wait_is_shown_cancelled_and_shown_again(client: Client) -> None:
    wait = open_wait(client)
    path = f"/v1/waits/{wait['wait_id']}"
    assert client.get(path).ok() == wait
    assert client.get(path, headers=NO_LONG_POLL).headers["preference-applied"] == "wait=0"
    cancelled = client.delete(path).ok()
    assert cancelled["status"] == "cancelled"
    assert client.delete(path).ok() == client.get(path).ok() == cancelled


def test_met_wait_cannot_be_cancelled(client: Client) -> None:
    wait = client.post("/v1/waits", {"wait_on": {client.ended()["job_id"]: None}}).ok()
    client.delete(f"/v1/waits/{wait['wait_id']}").problem(409, "INVALID_TRANSITION")


@pytest.mark.parametrize(("method", "name"), [("GET", ""), ("DELETE", ""), ("GET", "/jobs")])
@pytest.mark.parametrize("wait_id", [SOME_ID, "7", "x" * 1000])
def test_unknown_malformed_and_foreign_waits_return_404(client: Client, method: str, name: str, wait_id: str) -> None:
    client.call(method, f"/v1/waits/{wait_id}{name}").problem(404, "WAIT_NOT_FOUND")
    wait = open_wait(client)
    foreign = Client(namespace="other").call(method, f"/v1/waits/{wait['wait_id']}{name}")
    foreign.problem(404, "WAIT_NOT_FOUND")


def test_waits_are_listed_newest_first_by_status_and_page(client: Client) -> None:
    wait_ids = [open_wait(client)["wait_id"] for _ in range(5)]
    client.delete(f"/v1/waits/{wait_ids[2]}").ok()
    listed_ids = [wait["wait_id"] for page in pages(client, "/v1/waits", page_size=2) for wait in page["waits"]]
    assert listed_ids == wait_ids[::-1]
    cancelled = client.get("/v1/waits", status="cancelled").ok()["waits"]
    assert [wait["wait_id"] for wait in cancelled] == [wait_ids[2]]
    assert client.get("/v1/waits?status=over").pointers() == ["?status"]
    assert client.get("/v1/waits?page_size=0").pointers() == ["?page_size"]


def test_jobs_of_a_wait_are_listed_page_by_page(client: Client) -> None:
    jobs = [client.ended()["job_id"] for _ in range(6)]
    wait = client.post("/v1/waits", {"wait_on": dict.fromkeys(jobs)}).ok()
    path = f"/v1/waits/{wait['wait_id']}/jobs"
    entries = [line for page in pages(client, path, page_size=4) for line in page["jobs"]]
    token = client.get(path, page_size=4).ok()["next_page_token"]
    other = open_wait(client)["wait_id"]
    assert client.get(f"/v1/waits/{other}/jobs", page_token=token).pointers() == ["?page_token"]
    assert [line["job_id"] for line in entries] == jobs
    assert {line["met"] for line in entries} == {True}
