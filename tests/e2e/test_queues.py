"""Claims from a queue: many workers at once, workers that crash, and jobs that are due."""

from __future__ import annotations

import random
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from tests.e2e.harness import Aws, Client, Key, eventually, in_parallel, problem
from vigil.local import Stack

WORKERS = 20
JOBS = 200
LEASE_S = 4

pytestmark = pytest.mark.timeout(240)


def claim(client: Client, most: int = 1, *, queue: str = "default", hold_s: int = 0, **told: Any) -> list[Any]:
    answer = client.post(f"/v1/queues/{quote(queue, safe='')}/claim", {"max": most, **told}, prefer=f"wait={hold_s}")
    return list(answer["jobs"])


def complete(client: Client, job: Any, **told: Any) -> Any:
    return client.complete(job["job_id"], lease_token=job["lease_token"], **told)


def at(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


@pytest.mark.smoke
def test_claims_follow_priority_then_age_and_worker_routes_succeed(client: Client) -> None:
    low = client.job(priority="low", payload={"n": 1})
    normal = client.job(payload={"n": 2})
    high = client.job(priority="high")
    handed_out: list[Any] = []
    while len(handed_out) < 3:  # The index that claims read is eventually consistent.
        handed_out += claim(client, 1, worker="box", hold_s=5)
    assert [job["job_id"] for job in handed_out] == [high, normal, low]
    assert [job["payload"] for job in handed_out] == [None, {"n": 2}, {"n": 1}]
    job = handed_out[0]
    assert (job["status"], job["attempt"], job["dependencies"]) == ("running", 1, {})
    problem(client.call("POST", f"/v1/jobs/{high}/complete", {}), 409, "LEASE_LOST")
    problem(client.call("PATCH", f"/v1/jobs/{high}", {"lease_token": "x", "progress": 0.5}), 409, "LEASE_LOST")
    told = {"lease_token": job["lease_token"], "progress": 0.5, "message": "half"}
    alive = client.post(f"/v1/jobs/{high}/heartbeat", told)
    assert alive["lease_expires_at"] > job["lease_expires_at"]
    assert not alive["cancel_requested"]
    assert client.get(f"/v1/jobs/{high}/status")["progress"] == told["progress"]
    assert complete(client, job, result=[1])["status"] == "completed"
    assert complete(client, job, result=[2])["result"] == [1], "reported again"


@pytest.mark.timeout(300)
@pytest.mark.alone
def test_twenty_workers_complete_each_job_exactly_once(stack: Stack, key: Key, client: Client) -> None:
    ids = set(client.jobs(JOBS))
    done: list[str] = []
    # A claim whose response is lost returns its jobs after the lease has expired.
    deadline = time.monotonic() + 240

    def work(number: int) -> None:
        with Client(stack, key.token) as own:
            while len(done) < JOBS and time.monotonic() < deadline:
                for job in claim(own, 3, worker=f"w{number}", hold_s=1):
                    complete(own, job)
                    done.append(job["job_id"])

    in_parallel(work, range(WORKERS), WORKERS)
    assert len(done) == JOBS
    assert set(done) == ids
    queue = client.get("/v1/queues/default")
    assert queue["depth"] == {"pending": 0, "scheduled": 0, "waiting": 0, "running": 0}
    assert len(queue["workers"]) == WORKERS


@pytest.mark.alone
def test_jobs_of_crashed_workers_are_completed_by_other_workers(stack: Stack, key: Key, client: Client) -> None:
    """Drop one job in ten without a report; the next claim reclaims it."""
    ids = client.jobs(60, retry={"max_attempts": 20, "initial_delay": 0})
    over = threading.Event()
    done: list[str] = []

    def work(number: int) -> None:
        chance = random.Random(number)
        with Client(stack, key.token) as own:
            while not over.is_set():
                for job in claim(own, 2, worker=f"w{number}", lease=LEASE_S, hold_s=1):
                    if chance.random() > 0.1:
                        complete(own, job, result=number)
                        done.append(job["job_id"])
                        if len(done) == len(ids):
                            over.set()

    in_parallel(work, range(8), 8)
    assert sorted(done) == sorted(ids), "each was reported complete once"
    lives = [client.get(f"/v1/jobs/{job_id}") for job_id in ids]
    assert {job["status"] for job in lives} == {"completed"}
    assert sum(job["attempt"] - 1 for job in lives) > 0, "some did die"
    assert client.get("/v1/queues/default")["depth"]["running"] == 0


def test_repeated_claim_id_returns_the_same_jobs(client: Client) -> None:
    client.jobs(4)
    first = eventually(lambda: claim(client, 2, claim_id="mine"))
    again = claim(client, 2, claim_id="mine")
    assert [(job["job_id"], job["lease_token"]) for job in again] == [
        (job["job_id"], job["lease_token"]) for job in first
    ]


def test_attempt_times_out_on_time_and_is_retried_after_its_delay(client: Client) -> None:
    job_id = client.job(timeout=2, retry={"max_attempts": 2, "initial_delay": 1, "jitter": False})
    (job,) = claim(client, hold_s=10)
    began = datetime.fromisoformat(job["started_at"])
    (again,) = claim(client, hold_s=15)
    assert (again["job_id"], again["attempt"], again["error"]["code"]) == (job_id, 2, "TIMED_OUT")
    assert timedelta(seconds=3) <= datetime.now(UTC) - began < timedelta(seconds=7)
    problem(client.call("POST", f"/v1/jobs/{job_id}/complete", {"lease_token": job["lease_token"]}), 409, "LEASE_LOST")
    last = client.post(
        f"/v1/jobs/{job_id}/fail",
        {"lease_token": again["lease_token"], "error": {"code": "BROKEN", "message": "it broke"}},
    )
    assert (last["status"], last["job_health"]) == ("failed", "failed")


def test_wait_ignores_failed_attempts_that_are_retried(client: Client) -> None:
    job_id = client.job(retry={"max_attempts": 2, "initial_delay": 0}, fallback={"rows": 0})
    answer = client.wait({job_id: None}, fail_fast=None, get_fields={"result": None})
    for _ in range(2):
        (job,) = claim(client, hold_s=10)
        failed = {"lease_token": job["lease_token"], "error": {"code": "E", "message": "m"}}
        client.post(f"/v1/jobs/{job_id}/fail", failed)
    ended = client.ended(answer)
    assert (ended["status"], ended["waited_jobs"][job_id]) == ("met", {"job_stage": "complete", "result": '{"rows":0}'})


def test_paused_queue_grants_no_claims_until_resumed(aws: Aws, stack: Stack, key: Key, client: Client) -> None:
    worker = aws.key("work", namespace=key.namespace)
    with Client(stack, worker.token) as own:
        problem(own.call("POST", "/v1/queues/default/pause"), 403, "FORBIDDEN")
        assert client.post("/v1/queues/default/pause")["paused"]
        client.job()
        eventually(lambda: client.get("/v1/queues/default")["depth"]["pending"] == 1)
        assert claim(own) == []
        client.post("/v1/queues/default/resume")
        assert len(claim(own, hold_s=5)) == 1
    assert {"queue": "default", "paused": False} in client.get("/v1/queues")["queues"]


def test_released_job_is_claimed_by_another_worker_in_the_same_attempt(client: Client) -> None:
    job_id = client.job()
    (job,) = claim(client, hold_s=5, worker="a")
    client.post(f"/v1/jobs/{job_id}/release", {"lease_token": job["lease_token"]})
    (again,) = claim(client, hold_s=5, worker="b")
    assert (again["job_id"], again["attempt"]) == (job_id, 1)
    seen = client.get("/v1/queues/default")
    assert {worker["worker"]: worker["running"] for worker in seen["workers"]} == {"a": 0, "b": 1}


def test_sweep_fails_a_job_without_lease_after_its_heartbeat_timeout(aws: Aws, client: Client) -> None:
    job_id = client.running(heartbeat_timeout=1)
    silent_at = time.monotonic() + 1.2
    eventually(lambda: time.monotonic() > silent_at)
    aws.invoke("sweeper", {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}})
    job = eventually(lambda: (job := client.get(f"/v1/jobs/{job_id}"))["finished_at"] and job)
    assert (job["status"], job["job_health"], job["error"]["code"]) == ("failed", "timed_out", "TIMED_OUT")


def test_jobs_with_the_same_mutex_run_one_at_a_time_in_order(client: Client) -> None:
    wanted = {"queue": "board", "mutex": {"key": "aspen", "on_conflict": "queue"}}
    ids = [client.job(**wanted) for _ in range(12)]
    assert client.get(f"/v1/jobs/{ids[0]}")["status"] == "pending"
    waiting = client.get(f"/v1/jobs/{ids[1]}")
    assert (waiting["status"], waiting["waiting_for"]) == (
        "waiting",
        {"mutex": "aspen", "jobs": None, "workflow": None},
    )
    client.post(f"/v1/jobs/{ids[4]}/cancel")
    ran: list[str] = []
    running: set[str] = set()
    at_once: list[int] = []

    def work(number: int) -> None:
        deadline = time.monotonic() + 60
        while len(ran) < len(ids) - 1 and time.monotonic() < deadline:
            for job in claim(client, queue="board", hold_s=1, worker=f"w{number}"):
                running.add(job["job_id"])
                at_once.append(len(running))
                ran.append(job["job_id"])
                running.remove(job["job_id"])
                if ids.index(job["job_id"]) % 3:
                    complete(client, job)
                else:
                    client.fail(job["job_id"], lease_token=job["lease_token"])

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert ran == [job_id for job_id in ids if job_id != ids[4]]
    assert set(at_once) == {1}
    last = client.job(**wanted)
    eventually(lambda: client.get(f"/v1/jobs/{last}")["status"] == "pending")
