"""The client, on a fake Vigil server that fails now and then."""

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

import httpx
import pytest

from tests.support.fake_vigil import API_KEY, FakeVigil
from vigil import _transport
from vigil.client import JobFailed, JobStatusInfo, Vigil, VigilError, legacy_status
from vigil.local import Stack
from vigil_core.domain.jobs.status import STATUSES, JobStatus

LOCAL = Stack(
    api_url="http://local.localhost:1", ws_url="ws", api_key="local-key", key_id="k", topic_arn="t", table_name="t",
    endpoint_url="e", region="r", stack_name="s", pid=1, admin_function="a", dead_letter_bucket="b",
    fan_out_queue_url="p", sweeper_queue_url="c", http_api_id="h", websocket_api_id="w",
)  # fmt: skip

UNKNOWN_ID = "01980c4e-5a00-7c3b-9e21-3f6b0a1d2c4e"


def running(client: Vigil, **wanted: Any) -> str:
    """Create a job that was started without a lease."""
    job_id = client.submit("test", **wanted).job_id
    client.start(job_id)
    return job_id


def test_client_creates_starts_reports_and_completes_a_job(client: Vigil, fake: FakeVigil) -> None:
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
    (asked,) = fake.requests_to("POST", "/v1/jobs")
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


def test_client_submits_a_batch(client: Vigil, fake: FakeVigil) -> None:
    client.submit("resize", batch=[{"file": "1.png"}, None], on_item_failure="collect", name="holiday")
    (asked,) = fake.requests_to("POST", "/v1/jobs")
    assert asked.body == {
        "job_type": "resize", "batch": [{"file": "1.png"}, None], "on_item_failure": "collect", "name": "holiday",
    }  # fmt: skip


def test_client_submits_a_scheduled_job(client: Vigil) -> None:
    at = datetime(2030, 1, 31, 9, 30, tzinfo=UTC)
    reference = client.submit("test", scheduled_at=at)
    assert reference.scheduled_at == at
    assert reference.is_scheduled()
    with pytest.raises(ValueError, match="zone"):
        client.submit("test", scheduled_at=datetime(2030, 1, 31))  # noqa: DTZ001


def test_unknown_job_has_no_status_and_cannot_be_changed(client: Vigil) -> None:
    for job_id in (UNKNOWN_ID, "nobody", "../waits", "", "a?b"):
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
        client.job(UNKNOWN_ID)
    assert refusal.value.request_id == "r1"


@pytest.mark.parametrize("status", STATUSES)
def test_status_predicates_match_the_status(client: Vigil, status: JobStatus) -> None:
    job_id = client.submit("test").job_id
    info = JobStatusInfo.of(client.job(job_id) | {"status": status})
    ended = status in ("completed", "failed", "cancelled", "skipped")
    assert (info.is_terminal(), info.is_active()) == (ended, not ended)
    assert info.is_successful() == (status == "completed")
    assert info.is_failed() == (status in ("failed", "cancelled", "skipped"))
    assert info.is_scheduled() == (status == "scheduled")


def test_every_status_maps_to_a_legacy_status() -> None:
    known: list[JobStatus | Literal["not_found"]] = [*STATUSES, "not_found"]
    assert {status: legacy_status(status) for status in known} == {
        "scheduled": "SCHEDULED", "waiting": "PENDING", "pending": "PENDING", "running": "IN_PROGRESS",
        "completed": "COMPLETED", "failed": "FAILED", "cancelled": "FAILED", "skipped": "FAILED",
        "not_found": "NOT_FOUND",
    }  # fmt: skip


def test_await_completion_makes_one_long_poll_request(client: Vigil, fake: FakeVigil) -> None:
    job_id = running(client)
    end = threading.Timer(0.3, client.complete, [job_id, 7])
    end.start()
    info = client.await_completion(job_id, timeout=timedelta(seconds=10))
    end.join()
    assert info
    assert (info.status, info.result) == ("completed", 7)
    (look,) = fake.requests_to("GET", f"/v1/jobs/{job_id}")
    assert 8 <= int(look.headers["prefer"].removeprefix("wait=")) <= 10


def test_await_completion_returns_the_last_status_after_its_timeout(client: Vigil, fake: FakeVigil) -> None:
    job_id = running(client)
    began = time.monotonic()
    info = client.await_completion(job_id, timeout=0.4, poll_interval=0.1)
    assert info
    assert info.status == "running"
    assert 0.4 <= time.monotonic() - began < 3
    assert 2 <= len(fake.requests_to("GET", f"/v1/jobs/{job_id}")) <= 6


def test_result_of_a_failed_job_raises_its_error(client: Vigil) -> None:
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


def test_client_wait_repeats_until_all_jobs_ended(client: Vigil, fake: FakeVigil) -> None:
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
    once, again = fake.requests_to("POST", "/v1/waits")
    assert once.headers["idempotency-key"]
    assert "idempotency-key" not in again.headers


def test_client_lists_jobs_of_all_pages(client: Vigil) -> None:
    made = [client.submit("test").job_id for _ in range(5)]
    assert [job["job_id"] for job in client.jobs(status=["pending", "running"])] == made[::-1]
    assert [job["job_id"] for job in client.jobs(limit=2)] == made[:2:-1]
    assert list(client.jobs(status="failed")) == []


def test_client_follows_the_pages_of_a_history(client: Vigil, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = client.submit("test").job_id
    answers = [
        {"job_id": job_id, "events": [{"version": 1}], "next_page_token": "t"},
        {"job_id": job_id, "events": [{"version": 2}], "next_page_token": None},
    ]
    queries: list[Any] = []

    def call(method: str, path: str, *_: Any, query: dict[str, Any], **__: Any) -> Any:
        queries.append((method, path, query.get("page_token")))
        return answers[len(queries) - 1]

    monkeypatch.setattr(client._transport, "call", call)
    assert [event["version"] for event in client.history(job_id)] == [1, 2]
    path = f"/v1/jobs/{job_id}/events"
    assert queries == [("GET", path, None), ("GET", path, "t")]


@pytest.mark.parametrize("fault", ["drop", 429, 502, 503, 504])
def test_lost_response_creates_one_job(client: Vigil, fake: FakeVigil, fault: Any) -> None:
    if fault == "drop":
        fake.drop("POST", "/v1/jobs", times=2)
    else:
        fake.refuse("POST", "/v1/jobs", fault, times=2)
    reference = client.submit("test")
    assert list(fake.jobs) == [reference.job_id]
    keys = {ask.headers["idempotency-key"] for ask in fake.requests_to("POST", "/v1/jobs")}
    assert len(keys) == 1
    assert client.submit("test").job_id != reference.job_id


def test_repeated_claim_after_a_lost_response_returns_the_same_jobs(client: Vigil, fake: FakeVigil) -> None:
    first, second = client.submit("test").job_id, client.submit("test").job_id
    fake.drop("POST", "/v1/queues/default/claim")
    assert [job["job_id"] for job in client.claim("default")] == [first]
    assert [job["job_id"] for job in client.claim("default", max=10)] == [second]
    assert client.claim("default") == []


@pytest.mark.parametrize("verb", ["complete", "fail", "cancel", "release"])
def test_end_whose_response_was_lost_succeeds(client: Vigil, fake: FakeVigil, verb: str) -> None:
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
    assert len(fake.requests_to("POST", f"/v1/jobs/{job_id}/{verb}")) == 2


def test_end_by_another_worker_raises_lease_lost(client: Vigil, fake: FakeVigil) -> None:
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
def test_request_that_may_not_be_repeated_raises_after_a_lost_response(
    client: Vigil, fake: FakeVigil, verb: str
) -> None:
    job_id = client.submit("test").job_id
    if verb == "retry":
        client.cancel(job_id)
    act = client.start if verb == "start" else client.retry
    fake.drop("POST", verb)
    with pytest.raises(VigilError) as lost:
        act(job_id)
    assert (lost.value.code, lost.value.status, lost.value.maybe_done) == ("UNREACHABLE", None, True)
    assert len(fake.requests_to("POST", f"/v1/jobs/{job_id}/{verb}")) == 1


def test_throttled_request_is_repeated(client: Vigil, fake: FakeVigil) -> None:
    job_id = client.submit("test").job_id
    fake.refuse("POST", "start", 429)
    assert client.start(job_id)["status"] == "running"


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_client_waits_for_retry_after(client: Vigil, fake: FakeVigil, form: str) -> None:
    # Dates have whole seconds: two seconds ahead is more than one second from now.
    later = "1" if form == "seconds" else format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    fake.refuse("GET", "/v1/jobs", 429, retry_after=later)
    assert list(client.jobs()) == []
    first, second = fake.requests_to("GET", r"/v1/jobs\?.*")
    assert second.at - first.at >= 0.95


def test_client_refuses_a_too_long_retry_after(client: Vigil, fake: FakeVigil) -> None:
    fake.refuse("GET", "/v1/jobs", 503, times=100, retry_after="3600")
    with pytest.raises(VigilError) as refusal:
        list(client.jobs())
    assert refusal.value.retry_after_s == 3600
    assert len(fake.requests) == 1


def test_client_raises_after_its_retries(client: Vigil, fake: FakeVigil) -> None:
    fake.refuse("GET", "/v1/jobs", 503, times=100)
    with pytest.raises(VigilError, match="SERVICE_UNAVAILABLE: Service Unavailable") as refusal:
        list(client.jobs())
    assert (refusal.value.status, refusal.value.is_transient) == (503, True)
    assert len(fake.requests) == 5


def test_bounded_client_raises_within_its_time(fake: FakeVigil) -> None:
    fake.refuse("GET", "/v1/jobs", 503, times=100)
    with Vigil(fake.url, API_KEY, retries=1000, backoff_s=0.05) as patient:
        began = time.monotonic()
        with pytest.raises(VigilError):
            list(patient.bounded(0.5).jobs())
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 500])
def test_permanent_error_is_not_retried(client: Vigil, fake: FakeVigil, status: int) -> None:
    fake.refuse("GET", "/v1/jobs", status, times=100)
    with pytest.raises(VigilError) as refusal:
        list(client.jobs())
    assert refusal.value.status == status
    assert len(fake.requests) == 1


def test_wrong_key_raises_unauthorized(fake: FakeVigil) -> None:
    with Vigil(fake.url, "wrong") as client, pytest.raises(VigilError, match="UNAUTHORIZED"):
        client.exists(UNKNOWN_ID)


def test_response_of_another_server_raises(client: Vigil, fake: FakeVigil) -> None:
    fake.refuse("GET", "/v1/jobs", 200)
    fake.faults[0].body = "<html>"
    with pytest.raises(VigilError, match="is not from Vigil"):
        client.job(UNKNOWN_ID)


def test_unreachable_server_raises_with_its_url() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with Vigil(url, "key", retries=1, backoff_s=0.01) as client, pytest.raises(VigilError, match=url) as error:
        client.start(UNKNOWN_ID)
    assert (error.value.code, error.value.status, error.value.maybe_done) == ("UNREACHABLE", None, False)


@pytest.fixture
def below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory below one in which a local stack was started."""
    monkeypatch.delenv("VIGIL_API_URL", raising=False)
    monkeypatch.delenv("VIGIL_API_KEY", raising=False)
    deep = tmp_path / "a/b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    LOCAL.write(tmp_path / ".local/stack.json")
    return deep


def authorization(client: Vigil) -> str:
    with client:
        return client._transport._http.headers["authorization"]


def test_client_finds_the_local_stack(below: Path) -> None:
    client = Vigil()
    assert (client.api_url, authorization(client)) == (LOCAL.api_url, "Bearer local-key")
    assert authorization(Vigil(api_key="mine")) == "Bearer mine"
    assert authorization(Vigil(LOCAL.api_url)) == "Bearer local-key"


def test_environment_takes_precedence_over_the_local_stack(below: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIGIL_API_URL", "https://vigil.example/")
    with pytest.raises(VigilError, match="Set VIGIL_API_KEY") as lacking:
        Vigil()
    assert lacking.value.code == "NOT_CONFIGURED"
    monkeypatch.setenv("VIGIL_API_KEY", "theirs")
    client = Vigil()
    assert (client.api_url, authorization(client)) == ("https://vigil.example", "Bearer theirs")
    assert Vigil("https://other.example", "mine").api_url == "https://other.example"


@pytest.mark.parametrize("wrong", ["vigil.example", "ftp://vigil.example", "http://", "http://x:y"])
def test_invalid_url_raises_not_configured(wrong: str) -> None:
    with pytest.raises(VigilError, match="URL") as error:
        Vigil(wrong, "key")
    assert error.value.code == "NOT_CONFIGURED"


def test_missing_configuration_raises_a_helpful_error(below: Path) -> None:
    (below.parents[1] / ".local/stack.json").unlink()
    with pytest.raises(VigilError, match="vigil local up"):
        Vigil()


def test_stack_file_of_another_version_raises_a_helpful_error(below: Path) -> None:
    replace(LOCAL, api_key="x").write(below / ".local/stack.json")
    (below / ".local/stack.json").write_text("{}")
    with pytest.raises(VigilError, match="vigil local up"):
        Vigil()


@pytest.mark.parametrize(("retry_after", "pause_s"), [("2", 2.0), ("60", 25.0), ("", 1.0), ("soon", 1.0)])
def test_client_pauses_if_its_long_poll_had_no_slot(
    monkeypatch: pytest.MonkeyPatch, retry_after: str, pause_s: float
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    response = httpx.Response(200, headers={"preference-applied": "wait=0", "retry-after": retry_after})
    _transport._pause_without_slot(response, 25, None)
    assert pauses == [pause_s]
    _transport._pause_without_slot(response, 25, time.monotonic() + 0.5)
    assert pauses[1] == pytest.approx(0.5, abs=0.2)
    _transport._pause_without_slot(response, 0, None)
    _transport._pause_without_slot(httpx.Response(200, headers={"preference-applied": "wait=25"}), 25, None)
    assert len(pauses) == 2
