"""The Python client and `vigil job` on a deployed stack, beyond `test_tracking`."""

from __future__ import annotations

import json
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.harness import VIGIL, Client, Key
from vigil.client import Vigil, VigilError
from vigil.local import Stack


def test_repeated_idempotency_key_or_unique_key_creates_one_job(tracker: Vigil, client: Client) -> None:
    first = tracker.submit("test", idempotency_key="nightly-7")
    assert tracker.submit("test", idempotency_key="nightly-7") == first
    unique = tracker.submit("test", unique_key="one")
    again = tracker.submit("test", unique_key="one")
    assert (again.job_id, again.existing, unique.existing) == (unique.job_id, True, False)
    assert len(client.get("/v1/jobs")["jobs"]) == 2


def test_client_waits_for_several_jobs_with_one_call(tracker: Vigil) -> None:
    jobs = [tracker.submit("test").job_id for _ in range(3)]
    ends = [threading.Timer(delay, tracker.cancel, [job_id]) for delay, job_id in enumerate(jobs)]
    for end in ends:
        end.start()
    answer = tracker.wait({"wait_on": dict.fromkeys(jobs)}, timeout=60)
    for end in ends:
        end.join()
    assert (answer["status"], sorted(answer["waited_jobs"])) == ("met", sorted(jobs))


def test_rejected_request_raises_error_with_every_problem(tracker: Vigil) -> None:
    with pytest.raises(VigilError) as refusal:
        tracker.submit("test", fields={"status": 1}, tags=[""])
    assert (refusal.value.status, refusal.value.code) == (422, "VALIDATION_FAILED")
    assert len(refusal.value.errors) == 2
    assert refusal.value.request_id


def test_job_commands_create_wait_cancel_retry_and_list(stack: Stack, key: Key, tmp_path: Path) -> None:
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
