"""`vigil worker run` as a separate process, on a fake Vigil server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.support.fake_vigil import API_KEY, FakeVigil
from tests.unit.client.conftest import Run
from vigil.client import Vigil

DEADLINE_S = 30

TASKS = """
import multiprocessing
import time
from pathlib import Path

processes = multiprocessing.get_context("fork")

def terminate(job):
    child = processes.Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(10)
    is_alive = child.is_alive()
    child.kill()
    return "alive" if is_alive else "ended"

def pool(job):
    with processes.Pool(2) as pool:
        pool.map(abs, [-1, -2, -3])
    return "ended"

def work(job):
    if job.payload == "stay":
        Path("begun").touch()
        while not Path("go on").exists() and not job.lost.is_set():
            time.sleep(0.01)
    job.report(milestones=["worked"])
    return {"payload": job.payload}
"""
Start: TypeAlias = Callable[..., subprocess.Popen[str]]


def submit(client: Vigil, payload: object = None, **wanted: Any) -> str:
    return client.submit("test", payload, queue="q", **wanted).job_id


def wait_for_output(worker: subprocess.Popen[str], text: str) -> None:
    assert worker.stderr
    assert any(text in line for line in worker.stderr)


@pytest.fixture
def start(tmp_path: Path, fake: FakeVigil) -> Iterator[Start]:
    """Start `vigil worker run` in a directory with a module of tasks."""
    (tmp_path / "tasks.py").write_text(TASKS)
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, url: str = fake.url) -> subprocess.Popen[str]:
        environment = {**os.environ, "VIGIL_API_URL": url, "VIGIL_API_KEY": API_KEY}
        vigil = Path(sys.executable).parent / "vigil"
        process = subprocess.Popen(
            [vigil, "worker", "run", "--queue", "q", *arguments],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_worker_command_runs_jobs_until_sigterm(start: Start, client: Vigil, fake: FakeVigil, tmp_path: Path) -> None:
    job_id, staying, left = submit(client, payload=7), submit(client, payload="stay"), submit(client)
    worker = start("--concurrency", "1", "--hold", "1", "--name", "w1", "tasks:work")
    assert fake.ended(job_id)["result"] == {"payload": 7}
    claim = fake.requests_to("POST", "/v1/queues/q/claim")[0]
    assert (claim.body["worker"], claim.headers["prefer"]) == ("w1", "wait=1")
    fake.until((tmp_path / "begun").exists)
    worker.send_signal(signal.SIGTERM)
    wait_for_output(worker, "stopping")
    (tmp_path / "go on").touch()
    worker.communicate(timeout=DEADLINE_S)
    assert worker.returncode == 0
    assert (fake.job(staying)["status"], fake.job(left)["status"]) == ("completed", "pending")


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_worker_command_releases_unfinished_jobs(
    start: Start, client: Vigil, fake: FakeVigil, tmp_path: Path, signals: list[signal.Signals]
) -> None:
    staying = submit(client, payload="stay")
    worker = start("--grace", "0.3" if len(signals) == 1 else "3600", "tasks:work")
    fake.until((tmp_path / "begun").exists)
    worker.send_signal(signals[0])
    if signals[1:]:
        wait_for_output(worker, "stopping")
        worker.send_signal(signals[1])
    worker.communicate(timeout=DEADLINE_S)
    assert worker.returncode == 0
    assert fake.reported(staying) == ["release"]
    assert fake.job(staying)["status"] == "pending"


def test_lease_of_a_killed_worker_expires(start: Start, client: Vigil, fake: FakeVigil, tmp_path: Path) -> None:
    job_id = submit(client, payload="stay", retry={"max_attempts": 2})
    worker = start("--lease", "1", "tasks:work")
    fake.until((tmp_path / "begun").exists)
    worker.kill()
    worker.communicate()
    fake.until(lambda: fake.expired_leases == [job_id])
    assert (fake.job(job_id)["status"], fake.job(job_id)["attempt"]) == ("pending", 2)
    (tmp_path / "go on").touch()
    start("tasks:work")
    assert fake.ended(job_id)["result"] == {"payload": "stay"}


def test_worker_command_prints_why_claims_are_refused(start: Start, fake: FakeVigil) -> None:
    fake.refuse("POST", "claim", 403, times=100)
    worker = start("tasks:work")
    _, said = worker.communicate(timeout=DEADLINE_S)
    assert worker.returncode == 1
    assert "FORBIDDEN" in said.splitlines()[-1]
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("errands", "module:function"),
        ("nowhere:work", "No module named 'nowhere'"),
        ("errands:nothing", "errands has no nothing"),
        ("errands:LIST", "LIST cannot be called"),
        ("broken:work", "broken cannot be imported: SyntaxError"),
    ],
)
def test_unknown_task_function_prints_one_error_line(run: Run, tmp_path: Path, task: str, says: str) -> None:
    (tmp_path / "errands.py").write_text("LIST = []")
    (tmp_path / "broken.py").write_text("def (")
    said = run("worker", "run", "--queue", "q", task, code=2)
    assert says in said.stderr
    assert len(said.stderr.splitlines()) == 1


@pytest.mark.parametrize("task", ["terminate", "pool"])
def test_child_processes_of_a_job_end_on_sigterm(client: Vigil, fake: FakeVigil, start: Start, task: str) -> None:
    job_ids = [submit(client) for _ in range(8)]
    worker = start(f"tasks:{task}", "--hold", "0")
    assert [fake.ended(job_id)["result"] for job_id in job_ids] == ["ended"] * 8
    worker.terminate()
    assert worker.wait(DEADLINE_S) == 0
