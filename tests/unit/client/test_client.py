"""The client, against a server that is like Vigil and now and then fails."""

from __future__ import annotations

import re
import socket
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.support.fake_vigil import API_KEY, FakeVigil
from vigil.client import JobFailed, JobStatusInfo, Vigil, VigilError, legacy_status
from vigil.local import Stack
from vigil_core.domain.jobs.status import STATUSES, JobStatus

LOCAL = Stack(
    api_url="http://local.localhost:1", ws_url="ws", api_key="local-key", key_id="k", topic_arn="t", table_name="t",
    endpoint_url="e", region="r", stack_name="s", pid=1, admin_function="a", dead_letter_bucket="b",
    fan_out_queue_url="p", sweeper_queue_url="c", http_api_id="h", websocket_api_id="w",
)  # fmt: skip

NOBODY = "01980c4e-5a00-7c3b-9e21-3f6b0a1d2c4e"


def running(client: Vigil, **wanted: Any) -> str:
    """A job that was started without a lease."""
    job_id = client.submit("test", **wanted).job_id
    client.start(job_id)
    return job_id


def test_a_job_from_its_creation_to_its_result(client: Vigil, fake: FakeVigil) -> None:
    reference = client.submit(
        "boot_test",
        {"kernel": "6.12"},
        name="aspen",
        priority="high",
        tags=["x"],
        retry={"max_attempts": 2},
        mutex="aspen",
    )
    assert (reference.job_type, reference.scheduled_at, reference.is_scheduled()) == ("boot_test", None, False)
    (asked,) = fake.asked("POST", "/v1/jobs")
    assert asked.body == {
        "job_type": "boot_test", "payload": {"kernel": "6.12"}, "name": "aspen", "priority": "high", "tags": ["x"],
        "retry": {"max_attempts": 2}, "mutex": {"key": "aspen"},
    }  # fmt: skip
    client.start(reference.job_id)
    client.report(reference.job_id, stage="boot", progress=0.5, message="booting", fields={"a": 1}, milestones=["m"])
    info = client.status(reference.job_id)
    assert info
    assert (info.status, info.queue, info.priority, info.job_stage) == ("running", "default", "high", "boot")
    assert (info.progress, info.message, info.result) == (0.5, "booting", None)
    assert (info.created_at.tzinfo, info.finished_at) == (UTC, None)
    assert (info.document["fields"], info.document["milestones"]) == ({"a": 1}, ["m"])
    client.complete(reference.job_id, {"passed": 3})
    assert client.result(reference.job_id) == {"passed": 3}
    ended = client.status(reference.job_id)
    assert ended
    assert ended.is_successful()
    assert ended.finished_at


def test_many_jobs_under_one_name(client: Vigil, fake: FakeVigil) -> None:
    client.submit("resize", batch=[{"file": "1.png"}, None], on_item_failure="collect", name="holiday")
    (asked,) = fake.asked("POST", "/v1/jobs")
    assert asked.body == {
        "job_type": "resize", "batch": [{"file": "1.png"}, None], "on_item_failure": "collect", "name": "holiday",
    }  # fmt: skip


def test_a_job_that_starts_later(client: Vigil) -> None:
    at = datetime(2030, 1, 31, 9, 30, tzinfo=UTC)
    reference = client.submit("test", scheduled_at=at)
    assert reference.scheduled_at == at
    assert reference.is_scheduled()
    with pytest.raises(ValueError, match="zone"):
        client.submit("test", scheduled_at=datetime(2030, 1, 31))  # noqa: DTZ001


def test_a_job_that_nobody_knows(client: Vigil) -> None:
    for job_id in (NOBODY, "nobody", "../waits", "", "a?b"):
        assert client.status(job_id) is None
        assert client.status_only(job_id) == "not_found"
        assert not client.exists(job_id)
        assert not client.is_complete(job_id)
        assert client.await_completion(job_id, timeout=10) is None
        assert client.error_message(job_id) is None
        with pytest.raises(VigilError, match=f"JOB_NOT_FOUND: Job with ID {re.escape(job_id)} not found") as refusal:
            client.cancel(job_id)
        assert (refusal.value.status, refusal.value.code) == (404, "JOB_NOT_FOUND")
    with pytest.raises(VigilError) as refusal:
        client.job(NOBODY)
    assert refusal.value.request_id == "r1"


@pytest.mark.parametrize("status", STATUSES)
def test_what_a_status_means(client: Vigil, status: JobStatus) -> None:
    job_id = client.submit("test").job_id
    info = JobStatusInfo.of(client.job(job_id) | {"status": status})
    ended = status in ("completed", "failed", "cancelled", "skipped")
    assert (info.is_terminal(), info.is_active()) == (ended, not ended)
    assert info.is_successful() == (status == "completed")
    assert info.is_failed() == (status in ("failed", "cancelled", "skipped"))
    assert info.is_scheduled() == (status == "scheduled")


def test_the_six_statuses_of_older_trackers() -> None:
    known: list[JobStatus | Literal["not_found"]] = [*STATUSES, "not_found"]
    assert {status: legacy_status(status) for status in known} == {
        "scheduled": "SCHEDULED", "waiting": "PENDING", "pending": "PENDING", "running": "IN_PROGRESS",
        "completed": "COMPLETED", "failed": "FAILED", "cancelled": "FAILED", "skipped": "FAILED",
        "not_found": "NOT_FOUND",
    }  # fmt: skip


def test_waiting_for_the_end_costs_one_held_request(client: Vigil, fake: FakeVigil) -> None:
    job_id = running(client)
    end = threading.Timer(0.3, client.complete, [job_id, 7])
    end.start()
    info = client.await_completion(job_id, timeout=timedelta(seconds=10))
    end.join()
    assert info
    assert (info.status, info.result) == ("completed", 7)
    (look,) = fake.asked("GET", f"/v1/jobs/{job_id}")
    assert 8 <= int(look.headers["prefer"].removeprefix("wait=")) <= 10


def test_waiting_too_short_gives_the_last_status(client: Vigil, fake: FakeVigil) -> None:
    job_id = running(client)
    began = time.monotonic()
    info = client.await_completion(job_id, timeout=0.4, poll_interval=0.1)
    assert info
    assert info.status == "running"
    assert 0.4 <= time.monotonic() - began < 3
    assert 2 <= len(fake.asked("GET", f"/v1/jobs/{job_id}")) <= 6


def test_why_a_job_failed(client: Vigil) -> None:
    job_id = running(client)
    with pytest.raises(VigilError) as early:
        client.result(job_id)
    assert early.value.code == "JOB_NOT_COMPLETED"
    client.fail(job_id, "OUT_OF_DISK", "the disk is full")
    assert client.error_message(job_id) == "the disk is full"
    with pytest.raises(JobFailed, match="the disk is full") as failure:
        client.result(job_id)
    assert (failure.value.job_status, failure.value.code) == ("failed", "OUT_OF_DISK")
    assert client.retry(job_id)["status"] == "pending"
    assert client.cancel(job_id)["status"] == "cancelled"
    with pytest.raises(JobFailed, match="CANCELLED"):
        client.result(job_id)
    assert client.is_complete(job_id)


def test_waiting_for_many_goes_on_until_nothing_is_left(client: Vigil, fake: FakeVigil) -> None:
    first, second = running(client), running(client)
    client.complete(first)
    waiting = client.wait({"wait_on": {first: None, second: None}}, timeout=0)
    assert waiting["wait_on"] == {second: None}
    end = threading.Timer(0.2, client.complete, [second])
    end.start()
    answer = client.wait(waiting)
    end.join()
    assert "wait_on" not in answer
    assert answer["waited_jobs"] == {first: {"job_stage": "complete"}, second: {"job_stage": "complete"}}
    once, again = fake.asked("POST", "/v1/waits")
    assert once.headers["idempotency-key"]
    assert "idempotency-key" not in again.headers


def test_lists_go_on_to_the_last_page(client: Vigil) -> None:
    made = [client.submit("test").job_id for _ in range(5)]
    assert [job["job_id"] for job in client.jobs(status=["pending", "running"])] == made[::-1]
    assert [job["job_id"] for job in client.jobs(limit=2)] == made[:2:-1]
    assert list(client.jobs(status="failed")) == []


@pytest.mark.parametrize("fault", ["drop", 429, 502, 503, 504])
def test_a_lost_answer_creates_nothing_twice(client: Vigil, fake: FakeVigil, fault: Any) -> None:
    if fault == "drop":
        fake.drop("POST", "/v1/jobs", times=2)
    else:
        fake.refuse("POST", "/v1/jobs", fault, times=2)
    reference = client.submit("test")
    assert list(fake.jobs) == [reference.job_id]
    keys = {ask.headers["idempotency-key"] for ask in fake.asked("POST", "/v1/jobs")}
    assert len(keys) == 1
    assert client.submit("test").job_id != reference.job_id


def test_a_lost_claim_gives_the_same_jobs_again(client: Vigil, fake: FakeVigil) -> None:
    first, second = client.submit("test").job_id, client.submit("test").job_id
    fake.drop("POST", "/v1/queues/default/claim")
    assert [job["job_id"] for job in client.claim("default")] == [first]
    assert [job["job_id"] for job in client.claim("default", max=10)] == [second]
    assert client.claim("default") == []


@pytest.mark.parametrize("verb", ["complete", "fail", "cancel", "release"])
def test_an_ending_whose_answer_was_lost_is_no_error(client: Vigil, fake: FakeVigil, verb: str) -> None:
    job_id = client.submit("test").job_id
    if verb == "cancel":
        fake.drop("POST", "cancel")
        assert client.cancel(job_id)["status"] == "cancelled"
        return
    (claimed,) = client.claim("default")
    fake.drop("POST", verb)
    token = claimed["lease_token"]
    match verb:
        case "complete":
            job = client.complete(job_id, {"n": [1, 2.5]}, lease_token=token)
        case "fail":
            job = client.fail(job_id, "BROKEN", "it broke", lease_token=token)
        case _:
            job = client.release(job_id, lease_token=token)
    assert job["status"] == {"complete": "completed", "fail": "failed", "release": "pending"}[verb]
    assert len(fake.asked("POST", f"/v1/jobs/{job_id}/{verb}")) == 2


def test_an_ending_by_somebody_else_is_one(client: Vigil, fake: FakeVigil) -> None:
    job_id = client.submit("test").job_id
    (claimed,) = client.claim("default")
    fake.refuse("POST", "complete", 503)
    with fake.changed:
        fake.jobs[job_id].shown.update(status="completed", result="theirs")
        fake.jobs[job_id].token = None
    with pytest.raises(VigilError) as refusal:
        client.complete(job_id, "ours", lease_token=claimed["lease_token"])
    assert (refusal.value.code, refusal.value.maybe_done) == ("LEASE_LOST", True)


@pytest.mark.parametrize("verb", ["start", "retry"])
def test_what_may_not_be_repeated_is_not(client: Vigil, fake: FakeVigil, verb: str) -> None:
    job_id = client.submit("test").job_id
    if verb == "retry":
        client.cancel(job_id)
    act = client.start if verb == "start" else client.retry
    fake.drop("POST", verb)
    with pytest.raises(VigilError) as lost:
        act(job_id)
    assert (lost.value.code, lost.value.status, lost.value.maybe_done) == ("UNREACHABLE", None, True)
    assert len(fake.asked("POST", f"/v1/jobs/{job_id}/{verb}")) == 1


def test_what_was_surely_not_done_is_repeated_all_the_same(client: Vigil, fake: FakeVigil) -> None:
    job_id = client.submit("test").job_id
    fake.refuse("POST", "start", 429)
    assert client.start(job_id)["status"] == "running"


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_it_comes_back_no_sooner_than_it_was_told_to(client: Vigil, fake: FakeVigil, form: str) -> None:
    # Dates have whole seconds: two ahead is more than one from now.
    later = "1" if form == "seconds" else format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    fake.refuse("GET", "/v1/jobs", 429, retry_after=later)
    assert list(client.jobs()) == []
    first, second = fake.asked("GET", r"/v1/jobs\?.*")
    assert second.at - first.at >= 0.95


def test_it_does_not_wait_for_ever(client: Vigil, fake: FakeVigil) -> None:
    fake.refuse("GET", "/v1/jobs", 503, times=100, retry_after="3600")
    with pytest.raises(VigilError) as refusal:
        list(client.jobs())
    assert refusal.value.retry_after_s == 3600
    assert len(fake.requests) == 1


def test_it_gives_up_after_its_retries(client: Vigil, fake: FakeVigil) -> None:
    fake.refuse("GET", "/v1/jobs", 503, times=100)
    with pytest.raises(VigilError, match="SERVICE_UNAVAILABLE: Service Unavailable") as refusal:
        list(client.jobs())
    assert (refusal.value.status, refusal.value.is_passing) == (503, True)
    assert len(fake.requests) == 5


def test_a_bounded_client_gives_up_in_time(fake: FakeVigil) -> None:
    fake.refuse("GET", "/v1/jobs", 503, times=100)
    with Vigil(fake.url, API_KEY, retries=1000, backoff_s=0.05) as patient:
        began = time.monotonic()
        with pytest.raises(VigilError):
            list(patient.bounded(0.5).jobs())
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 500])
def test_a_refusal_is_not_asked_again(client: Vigil, fake: FakeVigil, status: int) -> None:
    fake.refuse("GET", "/v1/jobs", status, times=100)
    with pytest.raises(VigilError) as refusal:
        list(client.jobs())
    assert refusal.value.status == status
    assert len(fake.requests) == 1


def test_a_key_that_is_not_let_in(fake: FakeVigil) -> None:
    with Vigil(fake.url, "wrong") as client, pytest.raises(VigilError, match="UNAUTHORIZED"):
        client.exists(NOBODY)


def test_what_answers_may_be_something_else(client: Vigil, fake: FakeVigil) -> None:
    fake.refuse("GET", "/v1/jobs", 200)
    fake.faults[0].body = "<html>"
    with pytest.raises(VigilError, match="not as Vigil does"):
        client.job(NOBODY)


def test_nobody_answers() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with Vigil(url, "key", retries=1, backoff_s=0.01) as client, pytest.raises(VigilError, match=url) as error:
        client.start(NOBODY)
    assert (error.value.code, error.value.status, error.value.maybe_done) == ("UNREACHABLE", None, False)


@pytest.fixture
def below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory below one that a local cloud was started in."""
    monkeypatch.delenv("VIGIL_API_URL", raising=False)
    monkeypatch.delenv("VIGIL_API_KEY", raising=False)
    deep = tmp_path / "a/b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    LOCAL.write(tmp_path / ".local/stack.json")
    return deep


def authorization(client: Vigil) -> str:
    with client:
        return client._http.headers["authorization"]


def test_it_finds_the_local_cloud(below: Path) -> None:
    client = Vigil()
    assert (client.api_url, authorization(client)) == (LOCAL.api_url, "Bearer local-key")
    assert authorization(Vigil(api_key="mine")) == "Bearer mine"
    assert authorization(Vigil(LOCAL.api_url)) == "Bearer local-key"


def test_the_environment_comes_before_the_local_cloud(below: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIGIL_API_URL", "https://vigil.example/")
    with pytest.raises(VigilError, match="Set VIGIL_API_KEY") as lacking:
        Vigil()
    assert lacking.value.code == "NOT_CONFIGURED"
    monkeypatch.setenv("VIGIL_API_KEY", "theirs")
    client = Vigil()
    assert (client.api_url, authorization(client)) == ("https://vigil.example", "Bearer theirs")
    assert Vigil("https://other.example", "mine").api_url == "https://other.example"


@pytest.mark.parametrize("wrong", ["vigil.example", "ftp://vigil.example", "http://", "http://x:y"])
def test_a_url_that_is_none(wrong: str) -> None:
    with pytest.raises(VigilError, match="URL") as error:
        Vigil(wrong, "key")
    assert error.value.code == "NOT_CONFIGURED"


def test_no_vigil_anywhere(below: Path) -> None:
    (below.parents[1] / ".local/stack.json").unlink()
    with pytest.raises(VigilError, match="vigil local up"):
        Vigil()


def test_a_stack_file_of_another_version(below: Path) -> None:
    replace(LOCAL, api_key="x").write(below / ".local/stack.json")
    (below / ".local/stack.json").write_text("{}")
    with pytest.raises(VigilError, match="vigil local up"):
        Vigil()
