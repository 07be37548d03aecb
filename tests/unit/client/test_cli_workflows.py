"""`vigil workflow`, and the client's part of it, on a fake Vigil server."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from uuid6 import uuid7

from tests.support.fake_vigil import FakeVigil
from tests.unit.client.conftest import Run
from vigil.client import Vigil, VigilError
from vigil.workflow import Workflow


def pipeline(name: str = "data_pipeline") -> Workflow:
    workflow = Workflow(name, correlation_id="daily-001")
    workflow.job("extract").then("transform", "spark").then("load")
    return workflow


@pytest.fixture
def workflow_id(client: Vigil) -> str:
    return str(client.create_workflow(pipeline())["workflow_id"])


@pytest.fixture
def yaml_file(tmp_path: Path) -> str:
    (tmp_path / "pipeline.yaml").write_text(pipeline().to_yaml())
    return "pipeline.yaml"


def test_run_is_created_once_despite_a_lost_response(client: Vigil, fake: FakeVigil) -> None:
    fake.drop("POST", "/v1/workflows")
    run = client.create_workflow(pipeline())
    assert list(fake.runs) == [run["workflow_id"]]
    first, again = fake.requests_to("POST", "/v1/workflows")
    assert first.body == again.body == pipeline().to_dict()
    assert client.create_workflow(pipeline().to_dict(), idempotency_key="k") == client.create_workflow(
        pipeline(), idempotency_key="k"
    )


def test_client_reads_all_jobs_of_a_run_page_by_page(client: Vigil) -> None:
    wide = Workflow("wide")
    wide.parallel([f"chunk_{n}" for n in range(450)])
    workflow_id = client.create_workflow(wide)["workflow_id"]
    assert [job["name"] for job in client.workflow_jobs(workflow_id)] == [f"chunk_{n}" for n in range(450)]
    assert len(client.get_workflow(workflow_id, page_size=7)["jobs"]) == 7


def test_client_detects_a_run_change_whose_response_was_lost(client: Vigil, fake: FakeVigil, workflow_id: str) -> None:
    fake.drop("POST", "/cancel")
    assert client.cancel_workflow(workflow_id)["status"] == "cancelled"
    fake.drop("POST", "/retry")
    with pytest.raises(VigilError) as caught:
        client.retry_workflow(workflow_id)
    assert caught.value.maybe_done
    assert len(fake.requests_to("POST", f"/v1/workflows/{workflow_id}/retry")) == 1
    fake.drop("POST", "/pause")
    fake.refuse("POST", "/pause", 409)
    assert client.pause_workflow(workflow_id)["status"] == "paused"


def test_await_workflow_returns_the_ended_run_or_none(client: Vigil, fake: FakeVigil, workflow_id: str) -> None:
    running = client.await_workflow(workflow_id, timeout=0)
    assert running is not None
    assert running["status"] == "running"
    end = threading.Timer(0.1, fake.runs[workflow_id].update, [{"status": "completed"}])
    end.start()
    ended = client.await_workflow(workflow_id, timeout=10)
    end.join()
    assert fake.requests[-1].headers["prefer"].startswith("wait=")
    assert ended is not None
    assert ended["status"] == "completed"
    assert client.await_workflow(str(uuid7()), timeout=10) is None
    assert client.await_workflow("nobody", timeout=10) is None


def test_matching_runs_are_cancelled_page_by_page(client: Vigil, fake: FakeVigil) -> None:
    ids = [client.create_workflow(pipeline(name))["workflow_id"] for name in ("a", "b", "a")]
    assert list(client.cancel_workflows(name="a")) == [ids[0], ids[2]]
    assert [run["status"] for run in fake.runs.values()] == ["cancelled", "running", "cancelled"]
    list(client.cancel_workflows(created_before=datetime(2026, 1, 31, tzinfo=UTC)))
    assert fake.requests_to("POST", "/v1/workflows/cancel")[-1].body == {"created_before": "2026-01-31T00:00:00.000Z"}


def test_create_command_reads_the_definition_from_file_or_stdin(run: Run, fake: FakeVigil, yaml_file: str) -> None:
    made = run("workflow", "create", "--file", yaml_file)
    assert made.stdout == f"{next(iter(fake.runs))}\n"
    shown = json.loads(
        run("workflow", "create", "--file", "-", "--json", stdin=json.dumps(pipeline().to_dict())).stdout
    )
    assert shown["name"] == "data_pipeline"
    assert [ask.body for ask in fake.requests_to("POST", "/v1/workflows")] == [pipeline().to_dict()] * 2


@pytest.mark.parametrize(("ends", "code"), [("completed", 0), ("failed", 3), ("running", 4)])
def test_create_command_with_wait_exits_by_the_outcome(
    run: Run, fake: FakeVigil, yaml_file: str, monkeypatch: pytest.MonkeyPatch, ends: str, code: int
) -> None:
    start_run = fake._start_run
    monkeypatch.setattr(fake, "_start_run", lambda body: start_run({**body, "status": ends}))
    made = run("workflow", "create", "--file", yaml_file, "--wait", "--timeout", "0.1", code=code)
    workflow_id = next(iter(fake.runs))
    assert made.stdout == f"{workflow_id}\n{workflow_id} is {ends}.\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "No such file"), ("a: [", "not YAML"), ("name: x\nname: y", "a second time"), ("[]", "not a workflow def")],
)
def test_invalid_definition_file_prints_one_error_line(
    run: Run, fake: FakeVigil, tmp_path: Path, text: str | None, says: str
) -> None:
    if text is not None:
        (tmp_path / "file").write_text(text)
    said = run("workflow", "create", "--file", "file", code=2)
    assert says in said.stderr
    assert len(said.stderr.splitlines()) == 1
    assert fake.runs == {}


def test_validate_command_works_with_the_api_and_offline(
    run: Run, fake: FakeVigil, tmp_path: Path, yaml_file: str
) -> None:
    assert run("workflow", "validate", "--file", yaml_file).stdout == (
        "data_pipeline is valid: 3 jobs, 7 dependencies.\n"
    )
    assert json.loads(run("workflow", "validate", "--file", yaml_file, "--offline", "--json").stdout) == {
        "valid": True, "jobs": 3, "edges": 2
    }  # fmt: skip
    assert len(fake.requests) == 1
    (tmp_path / "circle.yaml").write_text(
        "name: x\njobs:\n- {name: a, depends_on: [b]}\n- {name: b, depends_on: [a, c]}\n"
    )
    said = run("workflow", "validate", "--file", "circle.yaml", "--offline", code=1).stderr
    assert "/jobs/0/depends_on/0: closes a cycle: a -> b -> a" in said
    assert "/jobs/1/depends_on/1: no job has the name 'c'" in said
    (tmp_path / "empty.yaml").write_text("name: x")
    assert run("workflow", "validate", "--file", "empty.yaml", code=1).stderr.startswith("VALIDATION_FAILED: /jobs")


def test_list_and_show_commands_print_runs(run: Run, client: Vigil, fake: FakeVigil, workflow_id: str) -> None:
    other = client.create_workflow(pipeline("[bold]"))["workflow_id"]
    fake.runs[other]["status"] = "failed"
    fake.runs[other]["jobs"][0] |= {"status": "failed", "error": {"code": "BROKEN", "message": "it [broke]"}}
    fake.runs[other]["jobs"][1] |= {"status": "skipped", "verdict": {"reason": "extract failed"}}
    listed = run("workflow", "list").stdout
    assert listed.index("[bold]") < listed.index("data_pipeline")
    assert workflow_id not in run("workflow", "list", "--status", "failed", "--status", "paused").stdout
    assert (
        json.loads(run("workflow", "list", "--name", "data_pipeline", "--json").stdout)[0]["workflow_id"] == workflow_id
    )
    assert run("workflow", "list", "--correlation-id", "other").stdout == "No workflows.\n"
    shown = run("workflow", "show", other).stdout
    assert all(
        text in shown
        for text in ("[bold]", "daily-001", "created", "BROKEN: it [broke]", "extract failed", "spark", "load")
    )
    short = run("workflow", "show", other, "--limit", "1").stdout
    assert "first 1" in short
    assert "load" not in short
    assert len(json.loads(run("workflow", "show", other, "--json").stdout)["jobs"]) == 3
    assert run("workflow", "show", "nobody", code=1).stderr == "WORKFLOW_NOT_FOUND: Workflow with ID nobody not found\n"


def test_status_and_stats_commands_print_the_progress(run: Run, fake: FakeVigil, workflow_id: str) -> None:
    jobs: list[dict[str, Any]] = fake.runs[workflow_id]["jobs"]
    jobs[0]["status"] = "failed"
    jobs[0]["error"] = {"code": "BROKEN", "message": "it [broke]"}
    jobs[1]["status"] = "running"
    fake.runs[workflow_id] |= {"undecided": ["[extract]"], "error": {"code": "JOB_FAILED", "message": "[x]"}}
    seen = run("workflow", "status", workflow_id).stdout
    assert "data_pipeline is running" in seen
    assert "33.3%" in seen
    assert "1 of 3 jobs have ended" in seen
    assert "1 running, 1 waiting, 1 failed" in seen
    assert "running: transform" in seen
    assert "awaiting a decision (vigil workflow decide): [extract]" in seen
    assert "JOB_FAILED [x]" in seen
    assert "failed extract: BROKEN: it [broke]" in seen
    stats = json.loads(run("workflow", "stats", workflow_id, "--json").stdout)
    assert json.loads(run("workflow", "status", workflow_id, "--json").stdout) == {
        "workflow_id": workflow_id, "name": "data_pipeline", "status": "running", "statistics": stats
    }  # fmt: skip
    assert "completion_percentage" in run("workflow", "stats", workflow_id).stdout


@pytest.mark.parametrize(("ends", "code"), [("completed", 0), ("cancelled", 3)])
def test_status_watch_ends_with_the_run(run: Run, fake: FakeVigil, workflow_id: str, ends: str, code: int) -> None:
    looks = f"/v1/workflows/{workflow_id}/stats"

    def end() -> None:
        fake.until(lambda: len(fake.requests_to("GET", looks)) > 1)
        fake.runs[workflow_id]["status"] = ends

    ending = threading.Thread(target=end)
    ending.start()
    seen = run("workflow", "status", workflow_id, "--watch", "--interval", "0.1", code=code).stdout
    ending.join()
    assert f"data_pipeline is {ends}" in seen


def test_graph_command_prints_or_writes_the_drawing(run: Run, tmp_path: Path, workflow_id: str) -> None:
    assert run("workflow", "graph", workflow_id).stdout == "mermaid of data_pipeline\n"
    assert run("workflow", "graph", workflow_id, "--format", "dot").stdout == "dot of data_pipeline\n"
    assert run("workflow", "graph", workflow_id, "--format", "svg", "--output", "run.svg").stdout == ""
    assert (tmp_path / "run.svg").read_text() == "svg of data_pipeline\n"
    assert "No such file" in run("workflow", "graph", workflow_id, "--output", "no/run.svg", code=2).stderr
    run("workflow", "graph", workflow_id, "--format", "png", code=2)


def test_pause_resume_retry_and_decide_commands_send_their_requests(
    run: Run, fake: FakeVigil, workflow_id: str
) -> None:
    def last() -> tuple[str, Any]:
        ask = fake.requests[-1]
        return ask.path.removeprefix(f"/v1/workflows/{workflow_id}/"), ask.body

    assert run("workflow", "pause", workflow_id).stdout == f"{workflow_id} is paused.\n"
    assert run("workflow", "resume", workflow_id).stdout == f"{workflow_id} is running.\n"
    assert run("workflow", "cancel", workflow_id).stdout == f"{workflow_id} is cancelled.\n"
    run("workflow", "retry", workflow_id)
    assert last() == ("retry", {})
    fake.runs[workflow_id]["jobs"][0]["status"] = "running"
    assert run("workflow", "cancel", workflow_id).stdout == f"{workflow_id} is running. It was asked to cancel.\n"
    assert json.loads(run("workflow", "retry", workflow_id, "--from", "load", "--json").stdout)["status"] == "running"
    assert last() == ("retry", {"from": "load"})
    run("workflow", "decide", workflow_id, "extract", "skip", "--note", "known")
    assert last() == ("decisions", {"job": "extract", "action": "skip", "note": "known"})
    run("workflow", "decide", workflow_id, "extract", "forget", code=2)


def test_cancel_of_many_runs_requires_the_all_option(run: Run, client: Vigil, fake: FakeVigil) -> None:
    ids = [client.create_workflow(pipeline(name))["workflow_id"] for name in ("a", "b", "a")]
    for wrong in ([], ["--all"], [ids[0], "--all"], ["--name", "a"], [ids[0], "--name", "a"]):
        assert "--all" in run("workflow", "cancel", *wrong, code=2).stderr
    assert run("workflow", "cancel", "--all", "--name", "a").stdout == f"{ids[0]}\n{ids[2]}\n"
    assert json.loads(run("workflow", "cancel", "--all", "--status", "running", "--json").stdout) == [ids[1]]
    run("workflow", "cancel", "--all", "--status", "failed", code=2)


def test_dependencies_command_prints_both_directions(
    run: Run, fake: FakeVigil, client: Vigil, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = client.submit("test").job_id
    neighbour = {"status": "completed", "job_id": "before", "job_type": "boot", "name": "[x]"}
    found = {
        "verdict": None, "trigger_rule": "all_done", "dependency_status": "waiting", "depends_on": [neighbour],
        "dependents": [],
    }  # fmt: skip
    monkeypatch.setattr(Vigil, "dependencies", lambda _, asked: found if asked == job_id else None)
    seen = run("workflow", "dependencies", job_id).stdout
    assert "dependencies waiting: all_done" in seen
    assert "[x]" in seen
    shown = run("job", "show", job_id, "--include-dependencies").stdout
    assert "job_type" in shown
    assert seen in shown
    whole = json.loads(run("job", "show", job_id, "--include-dependencies", "--json").stdout)
    assert (whole["dependencies"], whole["dependents"], whole["status"]) == ([neighbour], [], "pending")
    assert "dependencies" not in json.loads(run("job", "show", job_id, "--json").stdout)


def test_list_command_sends_every_filter(run: Run, fake: FakeVigil) -> None:
    run(
        "job",
        "list",
        "--status",
        "waiting",
        "--dependency-status",
        "waiting",
        "--correlation-id",
        "c",
        "--workflow",
        "w",
    )
    assert fake.requests[-1].path == (
        "/v1/jobs?page_size=50&status=waiting&dependency_status=waiting&workflow_id=w&correlation_id=c"
    )
