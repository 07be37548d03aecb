"""Operations that exclude each other, by the example's own function, template and job types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import ROOT
from tests.e2e.harness import Aws, Client, body_of, eventually, problem
from vigil.client import Vigil
from vigil.demo import examples
from vigil.demo.examples import OPERATIONS
from vigil.local import Stack

COLONY = ROOT / "examples/colony"
BUSY = "Another operation is already running"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def colony(stack: Stack, aws: Aws, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Deploy the example as its page describes; return a client in its namespace."""
    key = aws.key()
    worker = aws.key("work", namespace=key.namespace)
    directory = tmp_path_factory.mktemp("colony")
    examples.deploy_colony(ROOT, stack, directory, key=worker.token, tags={"of": "the-tests"})
    with Client(stack, key.token) as client:
        for name in OPERATIONS:
            body_of(client.call("PUT", f"/v1/job-types/{name}", json.loads((COLONY / f"{name}.json").read_text())), 201)
        yield client


def start(client: Client, operation: str, payload: Any = None, *, status: int = 202, hold_s: int = 0) -> Any:
    """Start an operation once no other operation runs; return the response, which has this status."""

    def ask() -> httpx.Response:
        wanted = {"job_type": operation, "payload": payload}
        answer = client.call("POST", "/v1/jobs", wanted, prefer=f"wait={hold_s}")
        assert answer.status_code != 409
        return answer

    return body_of(eventually(ask, 40), status)


def ended_job(client: Client, job_id: str) -> Any:
    return eventually(lambda: (job := client.get(f"/v1/jobs/{job_id}"))["finished_at"] and job, 40)


def test_operation_reports_progress_and_returns_its_result(colony: Client) -> None:
    started = start(colony, "cache_refresh", {"depth": 5})
    job_id = started["job_id"]
    assert (started["status"], started["message"]) == ("pending", "cache_refresh job created")
    assert started["timestamp"]
    unfinished = problem(colony.call("GET", f"/v1/jobs/{job_id}/result"), 409, "JOB_NOT_COMPLETED")
    assert unfinished["message"] == f"Job {job_id} is not yet completed"
    halfway = eventually(lambda: (s := colony.get(f"/v1/jobs/{job_id}/status"))["progress"] and s, 30)
    assert halfway["status"] == "running"
    assert 0 < halfway["progress"] < 1
    assert halfway["message"].startswith("Refreshing level")
    assert ended_job(colony, job_id)["progress"] == 1
    assert colony.get(f"/v1/jobs/{job_id}/result") == {
        "job_id": job_id,
        "status": "completed",
        "result": {"status": "success", "message": "Cache refreshed successfully"},
        "error": None,
    }


def test_second_operation_is_refused_while_one_runs(colony: Client) -> None:
    job_id = start(colony, "cache_refresh", {"depth": 6})["job_id"]
    for operation in OPERATIONS:
        wanted = {"job_type": operation, "payload": {"subject": "ada"} if operation == "search_subject" else None}
        refused = problem(colony.call("POST", "/v1/jobs", wanted), 409, "JOB_CREATION_FAILED")
        assert refused["message"] == BUSY
    assert ended_job(colony, job_id)["status"] == "completed"
    assert ended_job(colony, start(colony, "cache_upload")["job_id"])["result"] == {"uploaded": 3}


def test_creation_with_prefer_wait_returns_the_result_of_the_operation(colony: Client) -> None:
    job = start(colony, "search_subject", {"subject": "ada"}, status=200, hold_s=25)
    assert (job["status"], job["result"]["found"]) == ("completed", ["Notes on the engine", "Letters"])


def test_failed_operation_reports_its_error_and_releases_the_mutex(colony: Client) -> None:
    job = ended_job(colony, start(colony, "search_subject", {"subject": "nobody"})["job_id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "Permanent")
    assert job["error"]["message"].startswith("nothing is known of nobody")
    result = colony.get(f"/v1/jobs/{job['job_id']}/result")
    assert (result["status"], result["result"], result["error"]) == ("failed", None, job["error"])
    assert ended_job(colony, start(colony, "search_subject", {"subject": "grace"})["job_id"])["status"] == "completed"


def test_cancelled_operation_releases_the_mutex(colony: Client) -> None:
    job_id = start(colony, "cache_refresh", {"depth": 100})["job_id"]
    eventually(lambda: colony.get(f"/v1/jobs/{job_id}/status")["progress"], 30)
    colony.post(f"/v1/jobs/{job_id}/cancel", status=202)
    assert ended_job(colony, job_id)["status"] == "cancelled"
    assert ended_job(colony, start(colony, "cache_upload")["job_id"])["status"] == "completed"


def test_unknown_job_ids_and_requests_without_key_are_refused(colony: Client, stack: Stack) -> None:
    unknown = problem(colony.call("GET", "/v1/jobs/abc123"), 404, "JOB_NOT_FOUND")
    assert unknown["message"] == "Job with ID abc123 not found"
    problem(colony.call("GET", "/v1/jobs/abc123/result"), 404, "JOB_NOT_FOUND")
    with Client(stack, None) as anonymous:
        assert anonymous.call("POST", "/v1/jobs", {"job_type": "cache_refresh"}).status_code == 401


def test_colony_demo_shows_the_refusal_and_the_result(colony: Client, stack: Stack) -> None:
    token = colony.http.headers["authorization"].removeprefix("Bearer ")
    examples.define_job_types(ROOT, examples.COLONY, OPERATIONS, stack.api_url, token)
    with Vigil(stack.api_url, token) as client:
        lines = list(examples.play_colony(client))
    assert lines[1] == f"search_subject is refused: {BUSY}"
    assert lines[-1].endswith("Notes on the engine, Letters")
