"""The Python client and `vigil job` on a deployed stack: what a tracker of jobs has to be able to do."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.harness import VIGIL, Client, Key
from vigil.client import JobFailed, Vigil, VigilError, legacy_status
from vigil.local import Stack
from vigil_core.domain.ids import is_uuid7


@pytest.fixture
def tracker(stack: Stack, key: Key) -> Iterator[Vigil]:
    with Vigil(stack.api_url, key.token) as made:
        yield made


def test_a_job_is_tracked_by_its_reference(tracker: Vigil) -> None:
    reference = tracker.submit("boot_test", {"kernel": "6.12"}, name="aspen", priority="high", fields={"box": 7})
    assert is_uuid7(reference.job_id)
    assert (reference.job_type, reference.is_scheduled()) == ("boot_test", False)
    pending = tracker.status(reference.job_id)
    assert pending
    assert (pending.status, pending.legacy_status(), pending.is_active()) == ("pending", "PENDING", True)
    assert (pending.queue, pending.priority, pending.finished_at) == ("default", "high", None)
    tracker.start(reference.job_id)
    tracker.report(reference.job_id, stage="boot", progress=0.5, milestones=["up"], fields={"box": None, "cpus": 4})
    assert legacy_status(tracker.status_only(reference.job_id)) == "IN_PROGRESS"
    tracker.complete(reference.job_id, {"ratio": 0.1, "log": "ok"})
    ended = tracker.status(reference.job_id)
    assert ended
    assert (ended.status, ended.is_terminal(), ended.is_successful(), ended.progress) == ("completed", True, True, 1)
    assert ended.finished_at
    assert ended.created_at <= ended.finished_at
    assert (ended.document["fields"], ended.document["milestones"]) == ({"cpus": 4}, ["up"])
    assert tracker.result(reference.job_id) == {"ratio": 0.1, "log": "ok"}


def test_a_job_that_there_is_not(tracker: Vigil) -> None:
    for job_id in ("01980c4e-5a00-7c3b-9e21-3f6b0a1d2c4e", "nobody", "no body/at?all"):
        assert tracker.status(job_id) is None
        assert legacy_status(tracker.status_only(job_id)) == "NOT_FOUND"
        assert not tracker.exists(job_id)
        assert tracker.await_completion(job_id, timeout=5) is None


def test_completion_is_awaited_with_held_requests(tracker: Vigil) -> None:
    job_id = tracker.submit("test").job_id
    tracker.start(job_id)
    end = threading.Timer(1, tracker.fail, [job_id, "BROKEN", "it broke"])
    end.start()
    began = time.monotonic()
    info = tracker.await_completion(job_id, timeout=60)
    end.join()
    assert info
    assert time.monotonic() - began < 20
    assert (info.is_failed(), info.error_message, info.legacy_status()) == (True, "it broke", "FAILED")
    assert tracker.error_message(job_id) == "it broke"
    assert tracker.is_complete(job_id)
    with pytest.raises(JobFailed, match="it broke"):
        tracker.result(job_id)


def test_a_timeout_gives_the_last_status(tracker: Vigil) -> None:
    job_id = tracker.submit("test").job_id
    info = tracker.await_completion(job_id, timeout=1.5)
    assert info
    assert info.status == "pending"


def test_the_same_creation_twice_creates_once(tracker: Vigil, client: Client) -> None:
    first = tracker.submit("test", idempotency_key="nightly-7")
    assert tracker.submit("test", idempotency_key="nightly-7") == first
    unique = tracker.submit("test", unique_key="one")
    again = tracker.submit("test", unique_key="one")
    assert (again.job_id, again.existing, unique.existing) == (unique.job_id, True, False)
    assert len(client.get("/v1/jobs")["jobs"]) == 2


def test_waiting_for_many_is_one_call(tracker: Vigil) -> None:
    jobs = [tracker.submit("test").job_id for _ in range(3)]
    ends = [threading.Timer(delay, tracker.cancel, [job_id]) for delay, job_id in enumerate(jobs)]
    for end in ends:
        end.start()
    answer = tracker.wait({"wait_on": dict.fromkeys(jobs)}, timeout=60)
    for end in ends:
        end.join()
    assert (answer["status"], sorted(answer["waited_jobs"])) == ("met", sorted(jobs))


def test_a_refusal_says_what_is_wrong(tracker: Vigil) -> None:
    with pytest.raises(VigilError) as refusal:
        tracker.submit("test", fields={"status": 1}, tags=[""])
    assert (refusal.value.status, refusal.value.code) == (422, "VALIDATION_FAILED")
    assert len(refusal.value.errors) == 2
    assert refusal.value.request_id


def test_the_same_from_a_shell(stack: Stack, key: Key, tmp_path: Path) -> None:
    replace(stack, api_key=key.token, key_id=key.key_id).write(tmp_path / ".local/stack.json")

    def vigil(*arguments: str, code: int = 0) -> str:
        ran = subprocess.run(
            [VIGIL, "job", *arguments], cwd=tmp_path, env={}, capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == code, ran.stderr
        return ran.stdout.strip()

    job_id = vigil("create", "test", "--payload", "[0.5]", "--field", "box=aspen", "--tag", "x")
    shown = json.loads(vigil("show", job_id, "--json"))
    assert (shown["payload"], shown["fields"], shown["tags"]) == ([0.5], {"box": "aspen"}, ["x"])
    assert vigil("status", job_id) == "pending"
    vigil("wait", job_id, "--timeout", "0", code=4)
    vigil("cancel", job_id)
    vigil("wait", job_id, code=3)
    vigil("retry", job_id)
    assert job_id in vigil("list", "--status", "pending", "--tag", "x", "--json")
    vigil("result", job_id, code=1)
