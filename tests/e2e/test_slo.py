"""Two thousand jobs and twenty workers; again with workers that are killed. Too long for CI: `make test-slow`."""

from __future__ import annotations

import logging
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import VIGIL, Aws, Client, Key, eventually, in_parallel
from tests.e2e.test_doctor import found
from tests.e2e.test_queues import claim, complete
from vigil.local import Stack
from vigil_core.services.operations.doctor import GRACE
from vigil_core.store import keys

WORKERS = 20
JOBS = 2_000
MUTEXES = ("red", "green", "blue", "white")
ONE_IN = 20
"""One job in this many has a mutex."""
KILL_EVERY_S = 3.0
LEASE_S = 20
MAX_DURATION_S = 1_200

TASKS = """
import os, random, time

def work(job):
    with open(f"ran.{os.getpid()}", "a") as log:
        log.write(f"{job.job_id} {job.attempt}\\n")
    time.sleep(random.uniform(0, 0.5))
    return {"attempt": job.attempt, "by": os.getpid()}
"""

logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * MAX_DURATION_S)]


def histories(client: Client, ids: list[str]) -> dict[str, list[Any]]:
    """Return the history of each job, oldest first."""
    told = in_parallel(lambda job_id: client.get(f"/v1/jobs/{job_id}/events")["events"], ids, 4)
    return dict(zip(ids, told, strict=True))


def kinds(history: list[Any]) -> Counter[str]:
    return Counter(event["event"] for event in history)


def test_twenty_workers_complete_two_thousand_jobs_exactly_once(stack: Stack, key: Key, client: Client) -> None:
    ids = client.jobs(JOBS)
    done: list[str] = []
    began = time.monotonic()

    def work(number: int) -> None:
        with Client(stack, key.token) as own:
            while len(done) < JOBS and time.monotonic() - began < MAX_DURATION_S:
                for job in claim(own, 3, worker=f"w{number}", hold_s=1):
                    complete(own, job)
                    done.append(job["job_id"])

    in_parallel(work, range(WORKERS), WORKERS)
    logger.warning("%d jobs by %d workers: %.0f s", JOBS, WORKERS, time.monotonic() - began)
    assert sorted(done) == sorted(ids)
    assert client.get("/v1/queues/default")["depth"] == {"pending": 0, "scheduled": 0, "waiting": 0, "running": 0}
    for job_id, history in histories(client, ids).items():
        assert kinds(history) == {"created": 1, "claimed": 1, "completed": 1}, (job_id, history)


class WorkerPool:
    """Run twenty processes of `vigil worker run`; kill and replace one at intervals."""

    def __init__(self, stack: Stack, key: Key, directory: Path) -> None:
        (directory / "tasks.py").write_text(TASKS)
        self._directory = directory
        self._environment = {"VIGIL_API_URL": stack.api_url, "VIGIL_API_KEY": key.token}
        self._workers: list[subprocess.Popen[bytes]] = []
        self._chance = random.Random(2_000)
        self.killed: set[int] = set()

    def grow(self) -> None:
        """Start the processes one after the other, each once the previous one has begun a job, to spare the machine."""
        while len(self._workers) < WORKERS:
            self._workers.append(self._start())
            eventually(lambda: len(list(self._directory.glob("ran.*"))) == len(self._workers), 60)

    def kill_one(self) -> None:
        """Kill a process without notice, whatever it does."""
        at = self._chance.randrange(WORKERS)
        victim = self._workers[at]
        assert victim.poll() is None, "no worker ends by itself"
        victim.kill()
        victim.wait()
        self.killed.add(victim.pid)
        self._workers[at] = self._start()

    def ran(self) -> list[tuple[int, str, int]]:
        """Return every attempt that began, as (process, job, attempt)."""
        begun: list[tuple[int, str, int]] = []
        for log in self._directory.glob("ran.*"):
            for line in log.read_text().splitlines():
                job_id, attempt = line.split()
                begun.append((int(log.suffix[1:]), job_id, int(attempt)))
        return begun

    def stop(self) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        command: list[str | Path] = [
            VIGIL,
            "worker",
            "run",
            "--queue",
            "default",
            "--lease",
            str(LEASE_S),
            "--hold",
            "2",
            "tasks:work",
        ]
        return subprocess.Popen(
            command, cwd=self._directory, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )


@contextmanager
def worker_pool(stack: Stack, key: Key, directory: Path) -> Iterator[WorkerPool]:
    made = WorkerPool(stack, key, directory)
    try:
        yield made
    finally:
        made.stop()


def test_jobs_of_killed_workers_complete_and_are_announced_once(
    stack: Stack, aws: Aws, key: Key, client: Client, directory: Path, tmp_path: Path
) -> None:
    retry = {"max_attempts": 50, "initial_delay": 0}
    ids = client.jobs(JOBS - JOBS // ONE_IN, retry=retry)
    for number in range(JOBS // ONE_IN):
        mutex = {"key": MUTEXES[number % len(MUTEXES)], "on_conflict": "queue"}
        ids.append(client.job(retry=retry, mutex=mutex, priority="high"))

    def all_over() -> bool:
        return not any(client.get("/v1/queues/default")["depth"].values())

    began = time.monotonic()
    with worker_pool(stack, key, tmp_path) as workers:
        workers.grow()
        while left := set(ids) - {job_id for _, job_id, _ in workers.ran()}:
            assert time.monotonic() - began < MAX_DURATION_S, left
            workers.kill_one()
            time.sleep(KILL_EVERY_S)
        # Killed workers began some of these attempts and did not complete them.
        eventually(all_over, 300, every_s=1)
        took_s = time.monotonic() - began
        ended = datetime.now(UTC)
    ran = workers.ran()
    told = histories(client, ids)
    lapsed = sum(kinds(history)["claimed"] - 1 for history in told.values())
    logger.warning(
        "%d jobs by %d workers, of which %d were killed: %.0f s, %d attempts, %d begun",
        JOBS, WORKERS, len(workers.killed), took_s, JOBS + lapsed, len(ran),
    )  # fmt: skip
    assert lapsed > 0, "some had a job when they were killed"
    begun = {(process, job_id, attempt) for process, job_id, attempt in ran}
    assert len(begun) == len(ran), "no attempt began twice in one process"
    for job_id, history in told.items():
        assert kinds(history)["completed"] == 1, (job_id, history)
        assert history[-1]["event"] == "completed", (job_id, history)
    for job in in_parallel(lambda job_id: client.get(f"/v1/jobs/{job_id}"), ids, 4):
        result = job["result"]
        assert job["status"] == "completed"
        assert result["attempt"] == job["attempt"]
        assert (result["by"], job["job_id"], job["attempt"]) in begun, "whose result it is has run it"
    for name in MUTEXES:
        assert aws.rows(keys.mutex_queue(key.namespace, name)) == [], "nobody is left in line"
    # The doctor does not report younger problems, because they may still heal without it.
    eventually(lambda: datetime.now(UTC) - ended > GRACE + timedelta(seconds=5), 300, every_s=5)
    assert found(directory, key) == []
