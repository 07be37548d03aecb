"""Standalone jobs with dependencies, on the deployed stack."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.e2e.harness import VIGIL, Client, Key, eventually, problem
from vigil.local import Stack

pytestmark = pytest.mark.timeout(120)


def status(client: Client, job_id: str) -> str:
    return str(client.get(f"/v1/jobs/{job_id}/status")["status"])


def test_released_job_receives_the_results_of_its_dependencies(client: Client) -> None:
    extract, validate = client.running(), client.running()
    report = client.job(
        queue="reports", depends_on=[extract, validate], condition="validation_status == 'valid' && rows > `0`"
    )
    client.complete(extract, result={"rows": 3})
    eventually(lambda: client.get(f"/v1/jobs/{report}")["waiting_for"]["jobs"] == [validate])
    shown = client.get(f"/v1/jobs/{report}")
    assert (shown["status"], shown["waiting_for"]) == ("waiting", {"mutex": None, "jobs": [validate], "workflow": None})
    assert client.post("/v1/queues/reports/claim", {}, prefer="wait=0")["jobs"] == []
    client.complete(validate, result={"validation_status": "valid"})
    (job,) = client.post("/v1/queues/reports/claim", {}, prefer="wait=10")["jobs"]
    assert job["dependencies"][extract] == {
        "job_id": extract, "status": "completed", "job_health": "success", "result": {"rows": 3}, "truncated": False,
    }  # fmt: skip
    assert job["verdict"]["inputs"] == {"total": 2, "success": 2, "failed": 0, "skipped": 0, "cancelled": 0}


def test_failed_dependency_skips_the_chain_unless_a_rule_runs_it(client: Client) -> None:
    first = client.running()
    second = client.job(depends_on=[first])
    third = client.job(depends_on=[second])
    anyway = client.job(depends_on=[second], trigger_rule="all_done")
    waiting = client.wait({third: None})
    client.fail(first)
    assert client.ended(waiting)["waited_jobs"] == {third: {"job_stage": "incomplete"}}
    skipped = client.get(f"/v1/jobs/{third}")
    assert (skipped["status"], skipped["job_health"], skipped["dependency_status"]) == ("skipped", "skipped", "failed")
    assert skipped["verdict"]["reason"] == f"all_success can no longer hold: of 1 dependencies 1 failed ({second})"
    eventually(lambda: status(client, anyway) == "pending")
    history = client.get(f"/v1/jobs/{anyway}/events")["events"]
    assert [(line["event"], line["why"]) for line in history] == [("created", None), ("ready", "dependencies")]


def test_dependencies_route_shows_upstream_and_downstream_jobs(client: Client) -> None:
    first = client.job(name="first")
    second = client.job(name="second", depends_on=[first])
    eventually(lambda: client.get(f"/v1/jobs/{first}/dependencies")["dependents"])
    (behind,) = client.get(f"/v1/jobs/{first}/dependencies")["dependents"]
    assert (behind["job_id"], behind["status"], behind["dependency_status"]) == (second, "waiting", "waiting")
    (before,) = client.get(f"/v1/jobs/{second}/dependencies")["depends_on"]
    assert (before["job_id"], before["name"], before["status"]) == (first, "first", "pending")


def test_dependency_runs_before_a_job_of_higher_priority(client: Client) -> None:
    first = client.job(priority="low")
    client.job(priority="critical", depends_on=[first])
    (job,) = client.post("/v1/queues/default/claim", {"max": 10}, prefer="wait=5")["jobs"]
    assert job["job_id"] == first


def test_job_of_another_namespace_is_refused_as_dependency(client: Client, other_tenant: Client) -> None:
    job_id = client.job()
    answer = other_tenant.call("POST", "/v1/jobs", {"job_type": "t", "depends_on": [job_id]})
    assert problem(answer, 422, "MISSING_DEPENDENCY")["errors"][0]["pointer"] == "/depends_on/0"


def test_job_commands_create_and_show_dependencies(key: Key, stack: Stack) -> None:
    def vigil(*arguments: str) -> str:
        where = {"VIGIL_API_URL": stack.api_url, "VIGIL_API_KEY": key.token}
        found = subprocess.run(
            [VIGIL, "job", *arguments],
            env={**os.environ, **where},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return found.stdout.strip()

    first = vigil("create", "extract", "--name", "first")
    second = vigil("create", "report", "--after", first, "--name", "second")
    assert first in vigil("dependencies", second)
    eventually(lambda: second in vigil("dependencies", first))
