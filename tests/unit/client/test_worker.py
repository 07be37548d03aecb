"""The worker, on a fake Vigil server that fails now and then."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.fake_vigil import FakeVigil
from vigil.client import Vigil, VigilError
from vigil.worker import Cancelled, ClaimedJob, Handler, Permanent, Worker

DEADLINE_S = 30


@contextmanager
def working(client: Vigil, handler: Handler, **wanted: Any) -> Iterator[tuple[Worker, Future[None]]]:
    """Run a worker in a thread; it has stopped when the block ends."""
    worker = Worker(client, "q", handler, **{"hold": 1, "lease": 10, "grace": DEADLINE_S, **wanted})
    with ThreadPoolExecutor(1) as pool:
        ran = pool.submit(worker.run)
        try:
            yield worker, ran
        finally:
            worker.stop()
            worker.stop()


def submit(client: Vigil, **wanted: Any) -> str:
    return client.submit("test", queue="q", **wanted).job_id


def set_(event: threading.Event) -> None:
    assert event.wait(DEADLINE_S)


def test_return_value_becomes_the_result(client: Vigil, fake: FakeVigil) -> None:
    seen: list[ClaimedJob] = []

    def handle(job: ClaimedJob) -> object:
        seen.append(job)
        return {"doubled": job.payload["n"] * 2, "box": job.fields["box"]}

    job_id = submit(client, payload={"n": 21}, fields={"box": "aspen"}, name="nightly")
    with working(client, handle, name="w1"):
        job = fake.ended(job_id)
    assert (job["status"], job["result"]) == ("completed", {"doubled": 42, "box": "aspen"})
    (handled,) = seen
    assert (handled.job_id, handled.job_type, handled.name) == (job_id, "test", "nightly")
    assert (handled.attempt, dict(handled.dependencies)) == (1, {})
    claim = fake.requests_to("POST", "/v1/queues/q/claim")[0]
    assert claim.headers["prefer"] == "wait=1"
    assert {**claim.body, "claim_id": ""} == {"max": 1, "lease": 10, "worker": "w1", "claim_id": ""}


RESULTS = {"a": 1, "b": "x" * 30, "c": None, "d": "y" * 100, "e": {"rows": [1, 2]}}
"""Results of dependencies: in the claim, left out of the claim, on a further page, and left out of that as well."""


def with_dependencies(client: Vigil, fake: FakeVigil, results: Mapping[str, Any]) -> str:
    """Create a job that depends on completed jobs with these results, and return its id."""
    ids = {}
    for name, result in results.items():
        job_id = client.submit("test", queue="other").job_id
        client.start(job_id)
        client.complete(job_id, result)
        ids[name] = job_id
    job_id = submit(client)
    fake.depends_on[job_id] = ids
    return job_id


def test_handler_sees_every_dependency_with_its_result(client: Vigil, fake: FakeVigil) -> None:
    job_id = with_dependencies(client, fake, RESULTS)

    def handle(job: ClaimedJob) -> object:
        assert job.dependencies.status("a") == "completed"
        return {
            "large": job.dependencies["b"]["result"],
            "all": {name: entry["result"] for name, entry in job.dependencies.items()},
        }

    with working(client, handle):
        job = fake.ended(job_id)
    assert (job["status"], job["error"]) == ("completed", None)
    assert job["result"] == {"large": RESULTS["b"], "all": RESULTS}
    assert len(fake.requests_to("GET", f"/v1/jobs/{job_id}/dependencies/results.*")) == 3


def test_dependencies_of_a_complete_claim_cost_no_request(client: Vigil, fake: FakeVigil) -> None:
    job_id = with_dependencies(client, fake, {"a": 1, "b": 2})
    with working(client, lambda job: sorted(name for name in job.dependencies if "other" not in job.dependencies)):
        assert fake.ended(job_id)["result"] == ["a", "b"]
    assert fake.requests_to("GET", ".*") == []


def test_result_that_cannot_be_read_fails_the_job(client: Vigil, fake: FakeVigil) -> None:
    job_id = with_dependencies(client, fake, {"a": "x" * 50})
    fake.refuse("GET", "/result$", 404)
    with working(client, lambda job: job.dependencies["a"]["result"]):
        job = fake.ended(job_id)
    assert (job["status"], job["result"]) == ("failed", None)


def test_client_lists_dependencies_with_their_results(client: Vigil, fake: FakeVigil) -> None:
    job_id = with_dependencies(client, fake, RESULTS)
    listed = list(client.dependency_results(job_id))
    assert {entry["name"]: entry["result"] for entry in listed} == RESULTS
    assert set(listed[0]) == {"name", "job_id", "status", "job_health", "result"}


def test_worker_long_polls_claims_for_twenty_seconds(client: Vigil, fake: FakeVigil) -> None:
    job_id = submit(client)
    worker = Worker(client, "q", lambda _: worker.stop())
    worker.run()
    assert fake.job(job_id)["status"] == "completed"
    assert {ask.headers["prefer"] for ask in fake.requests_to("POST", "/v1/queues/q/claim")} == {"wait=20"}
    assert fake.requests_to("POST", "/v1/queues/q/claim")[0].body["lease"] == 60
    assert fake.requests_to("POST", "/v1/queues/q/claim")[0].body["worker"].endswith(f":{os.getpid()}")


def test_exception_fails_the_job_with_its_traceback(client: Vigil, fake: FakeVigil) -> None:
    def handle(job: ClaimedJob) -> object:
        return job.payload["nothing"]

    job_id = submit(client, payload={})
    with working(client, handle):
        error = fake.ended(job_id)["error"]
    assert (error["code"], error["type"], error["message"]) == ("KeyError", "builtins.KeyError", "'nothing'")
    trace = error["traceback"].splitlines()
    assert trace[0] == "Traceback (most recent call last):"
    assert "in handle" in trace[1]
    assert trace[-1] == "KeyError: 'nothing'"
    assert fake.requests_to("POST", f"/v1/jobs/{job_id}/fail")[0].body["retryable"] is True


@pytest.mark.parametrize(
    "text", ["x" * 5000, "\x00half \ud800", "line\n" * 500, ""], ids=["long", "lone surrogate", "lines", "empty"]
)
def test_any_exception_message_is_reported_within_limits(client: Vigil, fake: FakeVigil, text: str) -> None:
    def handle(job: ClaimedJob) -> object:
        raise RuntimeError(text)

    job_id = submit(client)
    with working(client, handle):
        error = fake.ended(job_id)["error"]
    for text in (error["message"], error["traceback"]):
        assert 0 < len(text) <= 1024
        assert "\x00" not in text
        text.encode()


def test_exception_without_usable_text_is_reported_by_its_type(client: Vigil, fake: FakeVigil) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    def handle(job: ClaimedJob) -> object:
        raise Mute

    job_id = submit(client)
    with working(client, handle):
        assert fake.ended(job_id)["error"]["code"] == "Mute"


@pytest.mark.parametrize(
    "result",
    [object(), {1, 2}, b"text", {"rows": [b"\xff"]}, bytearray(b"text"), float("nan"), "\ud800"],
    ids=["object", "set", "bytes", "nested bytes", "bytearray", "nan", "lone surrogate"],
)
def test_result_that_is_not_json_fails_the_job(client: Vigil, fake: FakeVigil, result: object) -> None:
    job_id = submit(client)
    with working(client, lambda _: result):
        job = fake.ended(job_id)
    assert job["status"] == "failed"
    assert job["error"]["code"] in ("TypeError", "ValueError", "UnicodeEncodeError")


def test_handler_that_exits_fails_only_its_job(client: Vigil, fake: FakeVigil) -> None:
    job_ids = [submit(client, payload=kind) for kind in ("exit", "fine")]

    def handle(job: ClaimedJob) -> object:
        if job.payload == "exit":
            sys.exit("enough")
        return job.payload

    with working(client, handle):
        jobs = [fake.ended(job_id) for job_id in job_ids]
    assert [job["status"] for job in jobs] == ["failed", "completed"]
    assert jobs[0]["error"]["code"] == "SystemExit"


def test_failed_attempt_is_retried_unless_permanent(client: Vigil, fake: FakeVigil) -> None:
    def handle(job: ClaimedJob) -> object:
        if job.payload == "permanent":
            raise Permanent("no such thing")
        if job.attempt < 3:
            raise OSError("not now")
        return job.attempt

    retried = submit(client, retry={"max_attempts": 3})
    given_up = submit(client, retry={"max_attempts": 3}, payload="permanent")
    with working(client, handle):
        jobs = [fake.ended(job_id) for job_id in (retried, given_up)]
    assert [(job["status"], job["attempt"]) for job in jobs] == [("completed", 3), ("failed", 1)]
    assert jobs[1]["error"]["code"] == "Permanent"


def test_worker_runs_at_most_its_concurrency(client: Vigil, fake: FakeVigil) -> None:
    job_ids = [submit(client, payload=n) for n in range(12)]
    running: list[int] = []
    most = 0
    counting = threading.Lock()
    full = threading.Event()

    def handle(job: ClaimedJob) -> object:
        nonlocal most
        with counting:
            running.append(job.payload)
            most = max(most, len(running))
            if len(running) == 3:
                full.set()
        set_(full)
        with counting:
            running.remove(job.payload)
        return None

    with working(client, handle, concurrency=3):
        for job_id in job_ids:
            fake.ended(job_id)
    assert (most, fake.most_leased) == (3, 3)
    assert {ask.body["max"] for ask in fake.requests_to("POST", "/v1/queues/q/claim")} <= {1, 2, 3}
    assert [fake.reported(job_id) for job_id in job_ids] == [["complete"]] * 12


def test_worker_claims_only_for_free_slots(client: Vigil, fake: FakeVigil) -> None:
    begun, let_go = threading.Event(), threading.Event()

    def handle(job: ClaimedJob) -> object:
        begun.set()
        if job.payload == "stay":
            set_(let_go)
        return None

    staying = submit(client, payload="stay")
    with working(client, handle, concurrency=2):
        set_(begun)
        others = [submit(client) for _ in range(4)]
        for job_id in others:
            fake.ended(job_id)
        assert fake.most_leased == 2
        let_go.set()
        fake.ended(staying)
    first, *later = [ask.body["max"] for ask in fake.requests_to("POST", "/v1/queues/q/claim")]
    assert (first, set(later[: len(others)])) == (2, {1})


def test_worker_claims_at_most_ten_jobs_at_once(client: Vigil, fake: FakeVigil) -> None:
    job_ids = [submit(client) for _ in range(12)]
    full = threading.Barrier(12)
    with working(client, lambda _: full.wait(DEADLINE_S) and None, concurrency=12):
        for job_id in job_ids:
            fake.ended(job_id)
    assert max(ask.body["max"] for ask in fake.requests_to("POST", "/v1/queues/q/claim")) == 10


def test_heartbeats_renew_the_lease_of_a_long_job(client: Vigil, fake: FakeVigil) -> None:
    def handle(job: ClaimedJob) -> object:
        began = time.monotonic()
        fake.until(lambda: time.monotonic() - began > 2.5)
        return "done"

    job_id = submit(client)
    with working(client, handle, lease=1):
        assert fake.ended(job_id)["result"] == "done"
    assert fake.expired_leases == []
    assert 4 <= len(fake.requests_to("POST", f"/v1/jobs/{job_id}/heartbeat")) <= 12


def test_heartbeats_are_limited_despite_frequent_progress(client: Vigil, fake: FakeVigil) -> None:
    """Note: a heartbeat follows every third of the lease; reports of progress are sent at most once a second."""

    def handle(job: ClaimedJob) -> object:
        began = time.monotonic()
        while (passed_s := time.monotonic() - began) < 1:
            job.progress(passed_s / 2, "under way")
            job.lost.wait(0.01)
        job.progress(0.9)
        fake.until(lambda: fake.jobs[job.job_id].shown["progress"] == 0.9)
        assert fake.job(job.job_id)["message"] == "under way"
        return None

    job_id = submit(client)
    with working(client, handle):
        assert fake.ended(job_id)["status"] == "completed"
    assert 1 <= len(fake.requests_to("POST", f"/v1/jobs/{job_id}/heartbeat")) <= 4


def test_progress_is_sent_after_failed_heartbeats(client: Vigil, fake: FakeVigil) -> None:
    def handle(job: ClaimedJob) -> object:
        fake.refuse("POST", "heartbeat", 503, times=7)
        job.progress(0.25, "a quarter")
        fake.until(lambda: fake.jobs[job.job_id].shown["message"] == "a quarter")
        return None

    job_id = submit(client)
    with working(client, handle):
        assert fake.ended(job_id)["status"] == "completed"


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_progress_outside_0_to_1_is_refused(client: Vigil, fake: FakeVigil, value: float) -> None:
    job_id = submit(client)
    with working(client, lambda job: job.progress(value)):
        assert fake.ended(job_id)["error"]["code"] == "ValueError"


def test_report_is_visible_at_once(client: Vigil, fake: FakeVigil) -> None:
    seen: list[Any] = []

    def handle(job: ClaimedJob) -> object:
        job.report(stage="boot", milestones=["booted"], fields={"kernel": "6.12"}, message="up")
        seen.append(fake.job(job.job_id))
        return None

    job_id = submit(client, fields={"box": "aspen"})
    with working(client, handle):
        fake.ended(job_id)
    (job,) = seen
    assert (job["job_stage"], job["milestones"], job["message"]) == ("boot", ["booted"], "up")
    assert job["fields"] == {"box": "aspen", "kernel": "6.12"}


def test_refused_report_raises_in_the_handler(client: Vigil, fake: FakeVigil) -> None:
    def handle(job: ClaimedJob) -> object:
        fake.refuse("PATCH", job.job_id, 409)
        fake.faults[0].body = '{"error": "INVALID_TRANSITION", "message": "a stage does not go back"}'
        try:
            job.report(stage="submit")
        except VigilError as error:
            return error.code
        return "not refused"

    job_id = submit(client)
    with working(client, handle):
        assert fake.ended(job_id)["result"] == "INVALID_TRANSITION"


@pytest.mark.parametrize("how", ["heartbeat", "report"])
def test_cancel_request_reaches_the_handler(client: Vigil, fake: FakeVigil, how: str) -> None:
    def handle(job: ClaimedJob) -> object:
        job.raise_if_cancelled()
        assert client.cancel(job.job_id)["cancel_requested"]
        if how == "report":
            job.report(stage="boot")
            assert job.cancel_requested.is_set()
        set_(job.cancel_requested)
        job.raise_if_cancelled()
        return "not reached"

    job_id = submit(client)
    # A heartbeat detects it within a third of the lease; a report sooner.
    with working(client, handle, lease=1 if how == "heartbeat" else 600):
        job = fake.ended(job_id)
    assert job["status"] == "cancelled"
    assert job["error"]["code"] == "CANCELLED"


@pytest.mark.parametrize("how", ["heartbeat", "report"])
def test_lost_lease_cancels_the_handler(client: Vigil, fake: FakeVigil, how: str) -> None:
    noticed: list[BaseException] = []
    over = threading.Event()

    def handle(job: ClaimedJob) -> object:
        fake.revoke_lease(job.job_id)
        try:
            if how == "report":
                job.report(stage="boot")
            set_(job.lost)
            job.raise_if_cancelled()
        except Cancelled as error:
            noticed.append(error)
        over.set()
        return "stale"

    job_id = submit(client)
    other = submit(client, payload="other")
    with working(
        client, lambda job: handle(job) if job.payload is None else None, lease=1 if how == "heartbeat" else 600
    ):
        set_(over)
        assert fake.ended(other)["status"] == "completed"
    assert noticed
    assert fake.reported(job_id) == []
    assert fake.job(job_id)["status"] == "running"


def test_result_after_a_lost_lease_is_dropped(client: Vigil, fake: FakeVigil) -> None:
    def handle(job: ClaimedJob) -> object:
        if job.payload == "stale":
            fake.revoke_lease(job.job_id)
        return job.payload

    stale, next_ = submit(client, payload="stale"), submit(client, payload="next")
    with working(client, handle):
        assert fake.ended(next_)["result"] == "next"
    assert fake.reported(stale) == ["complete"]
    assert (fake.job(stale)["status"], fake.job(stale)["result"]) == ("running", None)


def test_lease_without_successful_heartbeat_is_lost(client: Vigil, fake: FakeVigil) -> None:
    """Note: no server reports it. The worker's own monotonic clock detects it."""
    lost = threading.Event()

    def handle(job: ClaimedJob) -> object:
        set_(job.lost)
        lost.set()
        return "stale"

    job_id = submit(client)
    fake.refuse("POST", "heartbeat", 503, times=10_000)
    with working(client, handle, lease=1) as (worker, _):
        set_(lost)
        worker.stop()
    assert fake.reported(job_id) == []
    assert fake.job(job_id)["error"]["code"] == "LEASE_EXPIRED"


def test_result_is_reported_after_an_outage_shorter_than_the_lease(client: Vigil, fake: FakeVigil) -> None:
    def handle(job: ClaimedJob) -> object:
        fake.refuse("POST", "complete", 503, times=8)
        fake.drop("POST", "heartbeat", times=2)
        return "an hour's work"

    job_id = submit(client)
    with working(client, handle):
        assert fake.ended(job_id)["result"] == "an hour's work"


def test_refused_result_fails_the_job(client: Vigil, fake: FakeVigil) -> None:
    def handle(job: ClaimedJob) -> object:
        fake.refuse("POST", "complete", 413)
        fake.faults[0].body = '{"error": "PAYLOAD_TOO_LARGE", "message": "over 2 MB"}'
        return "x"

    job_id = submit(client)
    with working(client, handle):
        job = fake.ended(job_id)
    assert (job["status"], job["error"]["code"]) == ("failed", "PAYLOAD_TOO_LARGE")
    assert fake.requests_to("POST", f"/v1/jobs/{job_id}/fail")[0].body["retryable"] is False


def test_claims_continue_after_an_outage(client: Vigil, fake: FakeVigil) -> None:
    fake.refuse("POST", "claim", 503, times=6)
    fake.drop("POST", "claim", times=1)
    job_ids = [submit(client) for _ in range(3)]
    with working(client, lambda _: None):
        for job_id in job_ids:
            fake.ended(job_id)
    assert [fake.job(job_id)["attempt"] for job_id in job_ids] == [1, 1, 1]
    claims = fake.requests_to("POST", "/v1/queues/q/claim")
    assert len({ask.body["claim_id"] for ask in claims[:8]}) == 1


def test_refused_claim_ends_the_worker(client: Vigil, fake: FakeVigil) -> None:
    fake.refuse("POST", "claim", 403, times=100)
    with working(client, lambda _: None) as (_, ran), pytest.raises(VigilError, match="FORBIDDEN"):
        ran.result(DEADLINE_S)


def test_invalid_claim_response_ends_the_worker(client: Vigil, fake: FakeVigil) -> None:
    fake.refuse("POST", "claim", 200)
    fake.faults[0].body = '{"jobs": [{}]}'
    with working(client, lambda _: None) as (_, ran), pytest.raises(VigilError, match="NOT_UNDERSTOOD"):
        ran.result(DEADLINE_S)


def test_claims_of_an_empty_queue_are_spaced(client: Vigil, fake: FakeVigil) -> None:
    began = time.monotonic()
    with working(client, lambda _: None, hold=0) as (worker, ran):
        fake.until(lambda: len(fake.requests_to("POST", "/v1/queues/q/claim")) >= 3)
        worker.stop()
        ran.result(DEADLINE_S)
    assert time.monotonic() - began >= 1.9


def test_graceful_stop_finishes_handlers_and_claims_no_more(client: Vigil, fake: FakeVigil) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def handle(job: ClaimedJob) -> object:
        begun.set()
        set_(go_on)
        return "done"

    first, second = submit(client), submit(client)
    with working(client, handle) as (worker, ran):
        set_(begun)
        worker.stop()
        assert not ran.done()
        go_on.set()
        ran.result(DEADLINE_S)
    assert (fake.job(first)["status"], fake.job(second)["status"]) == ("completed", "pending")
    assert fake.job(second)["attempt"] == 1


def test_job_unfinished_after_the_grace_period_is_released(client: Vigil, fake: FakeVigil) -> None:
    begun, noticed = threading.Event(), threading.Event()

    def handle(job: ClaimedJob) -> object:
        begun.set()
        set_(job.lost)
        noticed.set()
        return "too late"

    job_id = submit(client)
    with working(client, handle, grace=0.3) as (worker, ran):
        set_(begun)
        worker.stop()
        ran.result(DEADLINE_S)
        set_(noticed)
    assert fake.reported(job_id) == ["release"]
    assert (fake.job(job_id)["status"], fake.job(job_id)["attempt"]) == ("pending", 1)


def test_second_stop_releases_jobs_at_once(client: Vigil, fake: FakeVigil) -> None:
    begun = threading.Semaphore(0)
    let_go = threading.Event()

    def handle(job: ClaimedJob) -> object:
        begun.release()
        set_(let_go)
        return None

    job_ids = [submit(client), submit(client)]
    with working(client, handle, concurrency=2, grace=3600) as (worker, ran):
        for _ in job_ids:
            assert begun.acquire(timeout=DEADLINE_S)
        worker.stop()
        worker.stop()
        ran.result(DEADLINE_S)
        let_go.set()
    assert [fake.reported(job_id) for job_id in job_ids] == [["release"]] * 2


def test_jobs_claimed_after_the_stop_are_released(client: Vigil, fake: FakeVigil) -> None:
    ran_jobs: list[str] = []
    with working(client, lambda job: ran_jobs.append(job.job_id), hold=20) as (worker, ran):
        fake.until(lambda: fake.requests_to("POST", "/v1/queues/q/claim"))
        worker.stop()
        job_id = submit(client)
        ran.result(DEADLINE_S)
    assert (ran_jobs, fake.reported(job_id)) == ([], ["release"])
    assert fake.job(job_id)["status"] == "pending"


def test_concurrency_of_zero_is_refused(client: Vigil) -> None:
    with pytest.raises(ValueError, match="concurrency"):
        Worker(client, "q", lambda _: None, concurrency=0)


def test_coroutine_function_runs_as_a_coroutine(client: Vigil, fake: FakeVigil) -> None:
    async def handle(job: ClaimedJob) -> object:
        await asyncio.sleep(0)
        if job.payload == "fail":
            raise Permanent("as planned")
        return {"payload": job.payload}

    job_ids = [submit(client, payload=payload) for payload in ("fail", "succeed")]
    with working(client, handle, concurrency=2):
        failed, completed = (fake.ended(job_id) for job_id in job_ids)
    assert (failed["status"], failed["error"]["message"]) == ("failed", "as planned")
    assert (completed["status"], completed["result"]) == ("completed", {"payload": "succeed"})


def test_handler_sees_a_cancel_within_seven_seconds_under_a_long_lease(client: Vigil, fake: FakeVigil) -> None:
    seen_after: list[float] = []

    def handle(job: ClaimedJob) -> None:
        client.cancel(job.job_id)
        requested_at = time.monotonic()
        set_(job.cancel_requested)
        seen_after.append(time.monotonic() - requested_at)

    job_id = submit(client)
    with working(client, handle, lease=3600):
        fake.ended(job_id)
    assert seen_after[0] < 7


def test_frequent_heartbeats_extend_the_lease_only_in_its_second_half(
    client: Vigil, fake: FakeVigil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClaimedJob, "max_heartbeat_interval_s", 0.1)
    leases: list[str] = []

    def handle(job: ClaimedJob) -> None:
        path = f"/v1/jobs/{job.job_id}/heartbeat"
        while len(fake.requests_to("POST", path)) < 12:
            leases.append(fake.jobs[job.job_id].lease_text)
            time.sleep(0.02)

    job_id = submit(client)
    with working(client, handle, lease=1):
        assert fake.ended(job_id)["status"] == "completed"
    assert 2 <= len(set(leases)) <= 4
