"""Workers on a deployed stack: in this process, and as the command line."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import VIGIL, Aws, Client, Key, eventually
from vigil.client import Vigil, VigilError
from vigil.local import Stack
from vigil.worker import ClaimedJob, Handler, Permanent, Worker

DEADLINE_S = 60

TASKS = """
import time
from pathlib import Path

def work(job):
    if job.payload == "stay":
        Path("begun").touch()
        while not (Path("go on").exists() or job.lost.is_set()):
            time.sleep(0.02)
    return {"payload": job.payload, "attempt": job.attempt}
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def vigil(stack: Stack, key: Key) -> Iterator[Vigil]:
    with Vigil(stack.api_url, key.token) as made:
        yield made


@contextmanager
def working(vigil: Vigil, handler: Handler, **wanted: Any) -> Iterator[Worker]:
    """Run a worker in a thread; it has stopped when the block ends."""
    worker = Worker(vigil, "q", handler, **{"hold": 2, **wanted})
    with ThreadPoolExecutor(1) as pool:
        ran = pool.submit(worker.run)
        try:
            yield worker
        finally:
            worker.stop()
        ran.result(DEADLINE_S)


def submit(vigil: Vigil, payload: object = None, **wanted: Any) -> str:
    return vigil.submit("test", payload, queue="q", **wanted).job_id


def ended(vigil: Vigil, job_id: str) -> Mapping[str, Any]:
    """Return the job once it has this status."""
    info = vigil.await_completion(job_id, timeout=DEADLINE_S)
    assert info
    assert info.is_terminal(), info
    return info.document


@pytest.fixture
def start(stack: Stack, key: Key, tmp_path: Path) -> Iterator[Start]:
    """Start `vigil worker run` in a directory with a module of tasks."""
    (tmp_path / "tasks.py").write_text(TASKS)
    environment = {"VIGIL_API_URL": stack.api_url, "VIGIL_API_KEY": key.token}
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> subprocess.Popen[str]:
        command: list[str | Path] = [VIGIL, "worker", "run", "--queue", "q", *options, "tasks:work"]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_two_workers_run_every_submitted_job_once(vigil: Vigil, client: Client) -> None:
    """Run every job once, on any worker, with its payload."""
    handled: Counter[str] = Counter()
    counting = threading.Lock()

    def handle(job: ClaimedJob) -> object:
        with counting:
            handled[job.job_id] += 1
        job.report(stage="boot", milestones=["up"], fields={"box": "aspen"})
        return {"square": job.payload**2}

    job_ids = [submit(vigil, n) for n in range(24)]
    with working(vigil, handle, concurrency=3, name="w1"), working(vigil, handle, concurrency=3, name="w2"):
        jobs = [ended(vigil, job_id) for job_id in job_ids]
    assert [(job["status"], job["result"]) for job in jobs] == [("completed", {"square": n**2}) for n in range(24)]
    assert [(job["fields"], job["milestones"], job["attempt"]) for job in jobs] == [({"box": "aspen"}, ["up"], 1)] * 24
    assert handled == Counter(job_ids)
    assert {worker["worker"] for worker in client.get("/v1/queues/q")["workers"]} == {"w1", "w2"}


def test_worker_runs_jobs_in_priority_order(vigil: Vigil) -> None:
    order: list[str] = []
    priorities = ("low", "normal", "critical", "background", "high")
    job_ids = [submit(vigil, priority, priority=priority) for priority in priorities]
    with working(vigil, lambda job: order.append(job.payload)):
        for job_id in job_ids:
            ended(vigil, job_id)
    assert order == ["critical", "high", "normal", "low", "background"]


def test_failure_is_retried_and_permanent_failure_is_not(vigil: Vigil) -> None:
    def handle(job: ClaimedJob) -> object:
        if job.payload == "permanent":
            raise Permanent("no such thing")
        if job.attempt < 3:
            raise OSError("not now")
        return job.attempt

    retried = submit(vigil, retry={"max_attempts": 3, "initial_delay": 0})
    given_up = submit(vigil, "permanent", retry={"max_attempts": 3, "initial_delay": 0})
    with working(vigil, handle):
        good, bad = ended(vigil, retried), ended(vigil, given_up)
    assert (good["status"], good["attempt"], good["result"]) == ("completed", 3, 3)
    assert (bad["status"], bad["attempt"], bad["error"]["code"]) == ("failed", 1, "Permanent")
    assert bad["error"]["message"] == "no such thing"
    assert "in handle" in bad["error"]["traceback"]


def test_heartbeats_renew_the_lease_and_send_progress(vigil: Vigil) -> None:
    def handle(job: ClaimedJob) -> object:
        job.progress(0.25, "a quarter")
        eventually(lambda: vigil.job(job.job_id)["message"] == "a quarter")
        # Longer than the lease: no other worker claimed the job meanwhile.
        assert not job.lost.wait(6)
        return vigil.job(job.job_id)["progress"]

    job_id = submit(vigil)
    with working(vigil, handle, concurrency=2, lease=3):
        job = ended(vigil, job_id)
    assert (job["status"], job["result"], job["attempt"]) == ("completed", 0.25, 1)


def test_cancel_request_reaches_the_worker_of_the_job(vigil: Vigil) -> None:
    def handle(job: ClaimedJob) -> object:
        vigil.cancel(job.job_id)
        assert job.cancel_requested.wait(DEADLINE_S)
        job.raise_if_cancelled()
        return "not reached"

    job_id = submit(vigil)
    with working(vigil, handle, lease=3):
        assert ended(vigil, job_id)["status"] == "cancelled"


def test_completion_with_a_lost_lease_is_refused(vigil: Vigil) -> None:
    """Resume a worker after a pause in which another worker claimed its job."""
    job_id = submit(vigil, retry={"max_attempts": 2})
    (stale,) = vigil.claim("q", lease=1, worker="cut off")
    with working(vigil, lambda job: job.attempt):
        # The lease has expired; a claim reclaims the job at once.
        assert ended(vigil, job_id)["result"] == 2
    with pytest.raises(VigilError) as refusal:
        vigil.complete(job_id, "stale", lease_token=stale["lease_token"])
    assert (refusal.value.status, vigil.result(job_id)) == (409, 2)


def test_repeated_claim_returns_the_same_jobs_and_tokens(vigil: Vigil) -> None:
    job_ids = {submit(vigil), submit(vigil)}
    first = vigil.claim("q", max=2, claim_id="c1")
    again = vigil.claim("q", max=2, claim_id="c1")
    assert {job["job_id"] for job in first} == job_ids
    tokens = {job["job_id"]: job["lease_token"] for job in first}
    assert {job["job_id"]: job["lease_token"] for job in again} == tokens
    assert vigil.claim("q", max=2, claim_id="c2") == []
    assert {job["attempt"] for job in again} == {1}


def test_worker_with_a_read_only_key_is_forbidden(stack: Stack, aws: Aws, key: Key) -> None:
    reader = aws.key("read", namespace=key.namespace)
    with Vigil(stack.api_url, reader.token) as vigil, pytest.raises(VigilError, match="FORBIDDEN"):
        Worker(vigil, "q", lambda job: job.payload).run()


def test_worker_command_finishes_its_jobs_on_sigterm_and_claims_no_more(
    vigil: Vigil, start: Start, tmp_path: Path
) -> None:
    first, second = submit(vigil, "stay"), submit(vigil, "left")
    worker = start()
    eventually((tmp_path / "begun").exists, DEADLINE_S)
    worker.send_signal(signal.SIGTERM)
    (tmp_path / "go on").touch()
    assert ended(vigil, first)["result"] == {"payload": "stay", "attempt": 1}
    assert worker.wait(DEADLINE_S) == 0
    assert vigil.status_only(second) == "pending"


def test_worker_command_releases_unfinished_jobs_after_the_grace_period(
    vigil: Vigil, start: Start, tmp_path: Path
) -> None:
    job_id = submit(vigil, "stay")
    worker = start("--grace", "0.5")
    eventually((tmp_path / "begun").exists, DEADLINE_S)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(DEADLINE_S) == 0
    assert (vigil.job(job_id)["status"], vigil.job(job_id)["attempt"]) == ("pending", 1)
    (tmp_path / "go on").touch()
    start()
    assert ended(vigil, job_id)["result"] == {"payload": "stay", "attempt": 1}


def test_job_of_a_killed_worker_is_run_by_another(vigil: Vigil, start: Start, tmp_path: Path) -> None:
    job_id = submit(vigil, "stay", retry={"max_attempts": 2})
    worker = start("--lease", "2")
    eventually((tmp_path / "begun").exists, DEADLINE_S)
    worker.kill()
    worker.wait()
    (tmp_path / "go on").touch()
    start("--lease", "2")
    assert ended(vigil, job_id)["result"] == {"payload": "stay", "attempt": 2}
