"""The local cloud survives `kill -9` and a start on another port: data, open work, queues and timers."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import ROOT, free_port
from tests.e2e.harness import Aws, Client, eventually
from tests.support.receiver import Receiver
from vigil.local import StateDir
from vigil.local.cloud import down, up
from vigil.local.health import health

pytestmark = [pytest.mark.alone, pytest.mark.timeout(600)]

# The timer of `b` is due after the kill.
CHAIN = [{"name": "a"}, {"name": "b", "depends_on": ["a"], "start_delay": 4}, {"name": "c", "depends_on": ["b"]}]
REPAIR_S = 120
PARAMETERS = {"AllowedPrivateHosts": "127.0.0.1"}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[StateDir]:
    """Start an emulator of the test's own, to kill and restart it."""
    home = StateDir.of(ROOT, tmp_path / ".local")
    yield home
    down(home)
    shutil.rmtree(tmp_path)


class Load(threading.Thread):
    """Create jobs until the stack ends. `acknowledged` contains each job that has a response."""

    def __init__(self, client: Client) -> None:
        super().__init__(daemon=True)
        self._client = client
        self.acknowledged: list[str] = []

    def run(self) -> None:
        """Create one job after the other. A refusal by the request rate is no end."""
        while True:
            try:
                response = self._client.call("POST", "/v1/jobs", {"job_type": "test", "queue": "load"})
            except httpx.HTTPError:
                return
            if response.status_code == 202:
                self.acknowledged.append(response.json()["job_id"])


def work_until(client: Client, is_done: Callable[[], bool], within_s: float) -> None:
    """Complete every job of the default queue, as a worker does, until the condition is true."""

    def done() -> bool:
        for job in client.post("/v1/queues/default/claim", {"max": 10, "worker": "w"}, prefer="wait=1")["jobs"]:
            client.call("POST", f"/v1/jobs/{job['job_id']}/complete", {"lease_token": job["lease_token"]})
        return is_done()

    eventually(done, within_s, what="the open work ended")


def run_of(client: Client, jobs: list[Any]) -> str:
    return str(client.post("/v1/workflows", {"name": "test", "jobs": jobs}, status=202)["workflow_id"])


def is_found(client: Client, job_id: str) -> bool:
    return client.call("GET", f"/v1/jobs/{job_id}").status_code == 200


def complete_job(client: Client) -> None:
    """Complete the next job of the default queue."""
    [job] = client.post("/v1/queues/default/claim", {"max": 1, "worker": "w"}, prefer="wait=20")["jobs"]
    client.complete(job["job_id"], lease_token=job["lease_token"])


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def test_data_and_open_work_survive_a_kill_and_a_start_on_another_port(home: StateDir, receiver: Receiver) -> None:
    before = up(home, port=free_port(), parameters=PARAMETERS)
    aws = Aws(before)
    revoked, loader = aws.key(), aws.key()
    with (
        Client(before, before.api_key) as client,
        Client(before, revoked.token) as other,
        Client(before, loader.token) as load_client,
    ):
        client.put_webhook("hook", receiver, "vigil.wait.met")
        chain = run_of(client, CHAIN)
        complete_job(client)
        watched = client.job(queue="watched")
        payload = {"text": "x" * 400_000}
        large = client.job(queue="watched", payload=payload)
        waits = [client.wait({watched: None}) for _ in range(3)]
        other.get("/v1/jobs")
        aws.admin("revoke_key", namespace=revoked.namespace, key_id=revoked.key_id)
        load = Load(load_client)
        load.start()
        eventually(lambda: len(load.acknowledged) > 20, 60, what="some jobs created")
        wide = run_of(client, [{"name": f"n{i}", "queue": "wide"} for i in range(300)])
        os.kill(int((home.emulator.holder() or {})["pid"]), signal.SIGKILL)
        load.join(60)

    steps: list[str] = []
    after = up(home, port=free_port(), parameters=PARAMETERS, say=steps.append)
    assert any("ended without a stop" in step for step in steps), steps
    assert after.endpoint_url != before.endpoint_url
    assert (after.http_api_id, after.api_key) == (before.http_api_id, before.api_key)
    with Client(after, after.api_key) as client, Client(after, revoked.token) as other:
        assert client.get(f"/v1/jobs/{large}")["payload"] == payload
        assert other.call("GET", "/v1/jobs").status_code in {401, 403}
        client.start(watched)
        client.complete(watched)
        work_until(
            client,
            lambda: (
                client.get(f"/v1/workflows/{chain}")["status"] == "completed"
                and client.get(f"/v1/workflows/{wide}")["status"] == "running"
                and all(client.get(f"/v1/waits/{wait['wait_id']}")["status"] == "met" for wait in waits)
                and len(receiver.posts) >= len(waits)
            ),
            REPAIR_S,
        )
        # Every acknowledged write is in the journal. Only a crash of the machine loses the last two seconds.
        with Client(after, loader.token) as load_client:
            for job in load.acknowledged:
                eventually(partial(is_found, load_client, job), what=job)
    condition = health(home)
    assert condition.is_healthy, condition
