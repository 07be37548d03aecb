"""Workflows on the deployed stack: over HTTP, through the stream and Step Functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.e2e.harness import Client, eventually

pytestmark = pytest.mark.timeout(180)


def work(client: Client, until: Any, outcomes: Mapping[str, Any] | None = None, *, queue: str = "default") -> list[str]:
    """Work as a worker until the condition holds; return the names of the jobs in order."""
    done: list[str] = []
    while not until():
        for job in client.post(f"/v1/queues/{queue}/claim", {"max": 5, "worker": "w"}, prefer="wait=1")["jobs"]:
            outcome = (outcomes or {}).get(job["name"])
            token = {"lease_token": job["lease_token"]}
            if isinstance(outcome, Exception):
                error = {"code": str(outcome), "message": "as planned"}
                client.post(f"/v1/jobs/{job['job_id']}/fail", {**token, "error": error})
            else:
                client.post(f"/v1/jobs/{job['job_id']}/complete", {**token, "result": outcome})
            done.append(job["name"])
    return done


def create(client: Client, *jobs: Mapping[str, Any], **rest: Any) -> str:
    run = client.call("POST", "/v1/workflows", {"name": "test", "jobs": list(jobs), **rest})
    assert run.status_code == 202, run.text
    return str(run.json()["workflow_id"])


def ended(client: Client, workflow_id: str) -> Any:
    return client.get(f"/v1/workflows/{workflow_id}")["status"] in ("completed", "failed", "cancelled")


@pytest.mark.smoke
def test_chain_of_jobs_completes_with_the_last_result(client: Client) -> None:
    run = create(client, {"name": "a"}, {"name": "b", "depends_on": ["a"]}, {"name": "c", "depends_on": ["b"]})
    assert work(client, lambda: ended(client, run), {"c": {"rows": 3}}) == ["a", "b", "c"]
    found = client.get(f"/v1/workflows/{run}")
    assert (found["status"], found["result"]) == ("completed", {"rows": 3})
    stats = client.get(f"/v1/workflows/{run}/stats")
    assert (stats["total"], stats["completed"], stats["completion_percentage"]) == (3, 3, 100.0)
    eventually(lambda: client.get(f"/v1/workflows/{run}/stats")["completed"] == 3)
