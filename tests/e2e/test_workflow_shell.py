"""`vigil workflow` as an operator types it, and the client's builder, on a deployed stack."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias
from xml.etree import ElementTree

import pytest

from tests.e2e.harness import VIGIL, Key, eventually
from vigil.client import Vigil, VigilError
from vigil.local import Stack
from vigil.workflow import Workflow, race

pytestmark = pytest.mark.timeout(180)

Shell: TypeAlias = Callable[..., str]

PIPELINE = """\
{
  "name": "data_pipeline",
  "description": "Daily data processing pipeline",
  "failure_policy": "continue_on_failure",
  "jobs": [
    {"name": "extract", "queue": "etl_queue", "payload": {"source": "production_db"}, "depends_on": []},
    {"name": "transform", "queue": "etl_queue", "payload": {"rules": "business_logic.json"}, "depends_on": ["extract"]},
    {"name": "load", "queue": "etl_queue", "payload": {"destination": "data_warehouse"}, "depends_on": ["transform"]}
  ]
}
"""


@pytest.fixture
def vigil(stack: Stack, key: Key) -> Iterator[Vigil]:
    with Vigil(stack.api_url, key.token) as made:
        yield made


@pytest.fixture
def shell(stack: Stack, key: Key, tmp_path: Path) -> Shell:
    """Run a command with the expected exit code; return its output."""
    environment = {"VIGIL_API_URL": stack.api_url, "VIGIL_API_KEY": key.token, "HOME": str(tmp_path), "COLUMNS": "200"}

    def shell(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [VIGIL, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return shell


def work(vigil: Vigil, queue: str, name: str, *, fails: bool = False) -> None:
    """Claim and complete the job of this name, which is the next one."""
    (job,) = vigil.claim(queue, worker="w", wait=20)
    assert job["name"] == name
    if fails:
        vigil.fail(job["job_id"], "BROKEN", "as planned", lease_token=job["lease_token"])
    else:
        vigil.complete(job["job_id"], {name: 1}, lease_token=job["lease_token"])


def test_pipeline_file_is_validated_run_drawn_and_retried_by_command(
    shell: Shell, vigil: Vigil, tmp_path: Path
) -> None:
    (tmp_path / "workflow.json").write_text(PIPELINE)
    (tmp_path / "workflow.yaml").write_text(Workflow.from_text(PIPELINE).to_yaml())
    assert "3 jobs, 2 dependencies" in shell("workflow", "validate", "--file", "workflow.yaml")
    workflow_id = shell("workflow", "create", "--file", "workflow.json").strip()
    work(vigil, "etl_queue", "extract")
    work(vigil, "etl_queue", "transform", fails=True)
    assert "data_pipeline is failed" in shell("workflow", "status", workflow_id, "--watch", code=3)

    assert workflow_id in shell("workflow", "list", "--status", "failed", "--name", "data_pipeline")
    shown = shell("workflow", "show", workflow_id)
    assert "Daily data processing pipeline" in shown
    assert "BROKEN: as planned" in shown
    assert json.loads(shell("workflow", "stats", workflow_id, "--json")) == {
        "total": 3, "completed": 1, "failed": 1, "skipped": 1, "cancelled": 0, "waiting": 0, "scheduled": 0,
        "pending": 0, "running": 0, "completion_percentage": 100.0,
    }  # fmt: skip

    assert '["transform<br/>failed<br/>' in shell("workflow", "graph", workflow_id, "--format", "mermaid")
    assert "n0 -> n1;" in shell("workflow", "graph", workflow_id, "--format", "dot")
    graph = json.loads(shell("workflow", "graph", workflow_id, "--format", "json"))
    assert [(job["name"], job["status"]) for job in graph["jobs"]] == [
        *(("extract", "completed"), ("transform", "failed"), ("load", "skipped")),
    ]
    shell("workflow", "graph", workflow_id, "--format", "svg", "--output", "run.svg")
    assert ElementTree.parse(tmp_path / "run.svg").getroot().tag.endswith("svg")

    load = graph["jobs"][2]["job_id"]
    assert "transform" in shell("workflow", "dependencies", load)
    assert "transform" in shell("job", "show", load, "--include-dependencies")

    assert f"{workflow_id} is " in shell("workflow", "retry", workflow_id)
    work(vigil, "etl_queue", "transform")
    work(vigil, "etl_queue", "load")
    ended = vigil.await_workflow(workflow_id, timeout=60)
    assert ended is not None
    assert (ended["status"], ended["result"]) == ("completed", {"load": 1})


def test_decide_command_continues_a_run_that_awaits_a_decision(shell: Shell, vigil: Vigil) -> None:
    workflow = Workflow("manual_review_pipeline", failure_policy="manual")
    workflow.job("critical").then("dependent")
    workflow_id = vigil.create_workflow(workflow)["workflow_id"]
    stuck = shell("job", "list", "--status", "waiting", "--dependency-status", "waiting", "--workflow", workflow_id)
    assert "dependent" in stuck
    assert "critical" not in stuck
    work(vigil, "default", "critical", fails=True)
    assert shell("workflow", "resume", workflow_id, code=1).startswith("INVALID_TRANSITION")
    assert "awaiting a decision (vigil workflow decide): critical" in shell("workflow", "status", workflow_id)
    shell("workflow", "decide", workflow_id, "critical", "skip", "--note", "known to break")
    work(vigil, "default", "dependent")
    ended = vigil.await_workflow(workflow_id, timeout=60)
    assert ended is not None
    assert ended["status"] == "completed"


def test_pause_resume_and_cancel_commands_change_the_run(shell: Shell, vigil: Vigil) -> None:
    workflow = Workflow("nightly", correlation_id="c-1")
    workflow.job("first").then("second")
    one, other = (str(vigil.create_workflow(workflow)["workflow_id"]) for _ in range(2))
    assert shell("workflow", "pause", one) == f"{one} is paused.\n"
    assert shell("workflow", "resume", one) == f"{one} is running.\n"
    assert one in shell("workflow", "cancel", one)
    assert other in shell("workflow", "cancel", "--all", "--correlation-id", "c-1").split()
    for workflow_id in (one, other):
        ended = vigil.await_workflow(workflow_id, timeout=60)
        assert ended is not None
        assert ended["status"] == "cancelled"
    assert shell("workflow", "cancel", "nobody", code=1) == "WORKFLOW_NOT_FOUND: Workflow with ID nobody not found\n"


def test_race_of_the_builder_cancels_the_second_job(vigil: Vigil) -> None:
    workflow = Workflow("mirrors")
    mirrors = [{"name": name, "queue": name} for name in ("near", "far")]  # one queue would hand out either job first
    race(workflow.parallel(mirrors), name="fastest").then("use")
    workflow_id = vigil.create_workflow(workflow)["workflow_id"]
    work(vigil, "near", "near")
    eventually(lambda: vigil.workflow_stats(workflow_id)["cancelled"] == 1)
    work(vigil, "default", "use")
    ended = vigil.await_workflow(workflow_id, timeout=60)
    assert ended is not None
    assert ended["status"] == "completed"
    jobs = {job["name"]: job["status"] for job in vigil.workflow_jobs(workflow_id)}
    assert jobs == {"near": "completed", "far": "cancelled", "fastest": "completed", "use": "completed"}


def test_builder_and_api_report_the_same_validation_errors(vigil: Vigil) -> None:
    workflow = Workflow("test")
    workflow.job("a", depends_on="c")
    workflow.job("b", depends_on="a", condition="==")
    workflow.job("c", depends_on=["b", "d"])
    with pytest.raises(VigilError) as here:
        workflow.validate()
    with pytest.raises(VigilError) as there:
        vigil.validate_workflow(workflow)
    assert here.value.code == there.value.code == "VALIDATION_FAILED"
    assert sorted(map(str, here.value.errors)) == sorted(map(str, there.value.errors))
