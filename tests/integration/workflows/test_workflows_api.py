"""Workflows over HTTP: accepted requests, refused requests, and responses."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api import SOME_ID, Client, pages
from vigil_core import wiring
from vigil_core.api.workflows import routes as workflow_routes
from vigil_core.services.workflows.apply import apply_transitions
from vigil_core.services.workflows.commands import find_run, load_run_state
from vigil_core.services.workflows.supervisor import supervise

CHAIN: dict[str, Any] = {
    "name": "etl",
    "jobs": [
        {"name": "extract", "queue": "q", "payload": {"n": 1.5}},
        {"name": "transform", "depends_on": ["extract"], "condition": "rows > `0`"},
        {"name": "load", "job_type": "spark", "depends_on": ["transform"], "trigger_rule": "all_done"},
    ],
}


def create(client: Client, **changed: Any) -> Any:
    return client.post("/v1/workflows", {**CHAIN, **changed}).ok(202)


def begin(workflow_id: str) -> None:
    """Run the first steps of the supervisor and the matcher."""
    ctx = wiring.context()
    supervise(ctx, {"action": "start", "namespace": "demo", "workflow_id": workflow_id, "supervisor_id": "1-1"})
    run = find_run(ctx, "demo", workflow_id)
    apply_transitions(ctx, run, load_run_state(ctx, run), [0])


def test_created_run_shows_its_settings_and_jobs(client: Client) -> None:
    run = create(client, description="d", correlation_id="c", priority="high", timeout=60)
    assert (run["status"], run["total"], run["failure_policy"], run["timeout"]) == ("pending", 3, "fail_fast", 60)
    read_back = client.get(f"/v1/workflows/{run['workflow_id']}").ok()
    assert [job["name"] for job in read_back["jobs"]] == ["extract", "transform", "load"]
    assert [job["depends_on"] for job in read_back["jobs"]] == [[], ["extract"], ["transform"]]
    assert [job["job_type"] for job in read_back["jobs"]] == ["extract", "transform", "spark"]
    assert [job["dependency_status"] for job in read_back["jobs"]] == ["none", "waiting", "waiting"]
    assert {(job["workflow_id"], job["correlation_id"], job["priority"]) for job in read_back["jobs"]} == {
        (run["workflow_id"], "c", "high")
    }
    assert read_back["jobs"][1]["waiting_for"] == {"mutex": None, "jobs": ["extract"], "workflow": None}
    job = client.get(f"/v1/jobs/{read_back['jobs'][0]['job_id']}").ok()
    assert str(job["payload"]["n"]) == "1.5"
    assert [event["event"] for event in read_back["events"]] == ["created"]


def test_jobs_of_a_run_are_listed_page_by_page(client: Client) -> None:
    workflow_id = create(client, jobs=[{"name": f"j{n}"} for n in range(130)])["workflow_id"]
    run_pages = pages(client, f"/v1/workflows/{workflow_id}", page_size=50)
    assert [len(page["jobs"]) for page in run_pages] == [50, 50, 30]
    assert [job["name"] for page in run_pages for job in page["jobs"]] == [f"j{n}" for n in range(130)]


def test_many_jobs_of_a_run_are_created_by_fan_out(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow_routes, "PREPARE_TIMEOUT_S", 0)
    workflow_id = create(client, jobs=[{"name": f"j{n}"} for n in range(300)])["workflow_id"]
    read_back = client.get(f"/v1/workflows/{workflow_id}").ok()
    assert (read_back["status"], read_back["jobs"], read_back["next_page_token"] is not None) == ("pending", [], True)
    stats = client.get(f"/v1/workflows/{workflow_id}/stats").ok()
    assert (stats["total"], stats["waiting"]) == (300, 300)


@pytest.mark.parametrize(
    ("changed", "pointers"),
    [
        ({"name": None}, ["/name"]),
        ({"jobs": []}, ["/jobs"]),
        ({"jobs": None}, ["/jobs"]),
        ({"jobs": ["a"]}, ["/jobs/0"]),
        ({"jobs": [{"name": "a", "unique_key": "u"}]}, ["/jobs/0/unique_key"]),
        ({"jobs": [{"name": "a", "job_id": SOME_ID}]}, ["/jobs/0/job_id"]),
        ({"jobs": [{"name": "a"}, {"name": "a"}]}, ["/jobs/1/name"]),
        ({"jobs": [{"name": "a", "condition": "a ="}]}, ["/jobs/0/condition"]),
        ({"jobs": [{"name": "a", "executor": "join", "payload": 1}]}, ["/jobs/0/executor"]),
        ({"jobs": [{"name": "a", "executor": "worker"}]}, ["/jobs/0/executor"]),
        ({"jobs": [{"name": "a", "batch": []}]}, ["/jobs/0/batch"]),
        ({"jobs": [{"name": "a", "cancel_losers": True}]}, ["/jobs/0/cancel_losers"]),
        ({"jobs": [{"name": "a", "start_delay": -1}]}, ["/jobs/0/start_delay"]),
        ({"failure_policy": "hope"}, ["/failure_policy"]),
        ({"version": "2"}, ["/version"]),
        ({"max_concurrency": 0}, ["/max_concurrency"]),
        ({"output": "a ="}, ["/output"]),
        ({"soon": 1}, ["/soon"]),
    ],
)
def test_invalid_members_of_a_workflow_are_named(client: Client, changed: dict[str, Any], pointers: list[str]) -> None:
    for path in ("/v1/workflows", "/v1/workflows/validate"):
        assert client.post(path, {**CHAIN, **changed}).pointers() == pointers


def test_all_problems_of_a_workflow_are_returned_together(client: Client) -> None:
    jobs = [
        {"name": "a", "depends_on": ["c"]},
        {"name": "b", "depends_on": ["a"]},
        {"name": "c", "depends_on": ["b", "absent"]},
        {"name": "d", "timeout": "soon"},
    ]
    problem = client.post("/v1/workflows/validate", {"name": "w", "jobs": jobs}).problem(422, "VALIDATION_FAILED")
    errors = {error["pointer"]: (error["code"], error["detail"]) for error in problem["errors"]}
    assert errors["/jobs/2/depends_on/1"][0] == "MISSING_DEPENDENCY"
    assert errors["/jobs/3/timeout"][0] == "VALIDATION_FAILED"
    (circle,) = [detail for code, detail in errors.values() if code == "CIRCULAR_DEPENDENCY"]
    assert "a -> b -> c -> a" in circle
    circular = client.post("/v1/workflows", {"name": "w", "jobs": [{"name": "a", "depends_on": ["a"]}]})
    circular.problem(422, "CIRCULAR_DEPENDENCY")


def test_validation_stores_nothing(client: Client) -> None:
    assert client.post("/v1/workflows/validate", CHAIN).ok() == {"valid": True, "jobs": 3, "edges": 2}
    assert client.get("/v1/workflows").ok()["workflows"] == []


def test_conditions_over_the_total_limit_are_refused(client: Client) -> None:
    condition = "a." * 500 + "a"
    jobs = [{"name": f"j{n}", "condition": f"{condition}{n}"} for n in range(2_000)]
    reply = client.post("/v1/workflows/validate", {"name": "w", "jobs": jobs})
    assert reply.pointers()[-1] == "/jobs"


def test_repeated_idempotency_key_creates_one_run(client: Client) -> None:
    headers = {"idempotency-key": "k"}
    first, repeated = (client.post("/v1/workflows", CHAIN, headers=headers).ok(202) for _ in range(2))
    assert first["workflow_id"] == repeated["workflow_id"]
    client.post("/v1/workflows", {**CHAIN, "name": "x"}, headers=headers).problem(422, "IDEMPOTENCY_KEY_REUSED")
    assert len(client.get("/v1/workflows").ok()["workflows"]) == 1


def test_run_list_is_filtered(client: Client) -> None:
    first = create(client, name="first", correlation_id="x")["workflow_id"]
    second = create(client, name="second", trace_id="t")["workflow_id"]

    def listed(**query: Any) -> list[str]:
        return [run["workflow_id"] for run in client.get("/v1/workflows", **query).ok()["workflows"]]

    assert listed() == [second, first]
    assert listed(name="first") == listed(correlation_id="x") == [first]
    assert listed(trace_id="t") == [second]
    assert listed(status="pending") == [second, first]
    assert listed(status=["running", "failed"]) == []
    assert [page["workflows"][0]["name"] for page in pages(client, "/v1/workflows", page_size=1) if page["workflows"]]
    assert client.get("/v1/jobs", workflow_id=first).ok()["jobs"][0]["workflow_id"] == first


def test_jobs_of_a_run_cannot_be_changed_against_the_run(client: Client) -> None:
    run = create(client)
    begin(run["workflow_id"])
    (job, *_) = client.get(f"/v1/workflows/{run['workflow_id']}").ok()["jobs"]
    assert job["status"] == "pending"
    assert job["verdict"]["reason"] == "it depends on no other job"
    client.post(f"/v1/jobs/{job['job_id']}/start").ok()
    client.post(f"/v1/jobs/{job['job_id']}/cancel").ok(202)
    client.post(f"/v1/jobs/{job['job_id']}/fail", {"error": {"code": "E", "message": "m"}}).ok()
    problem = client.post(f"/v1/jobs/{job['job_id']}/retry").problem(409, "INVALID_TRANSITION")
    assert run["workflow_id"] in problem["message"]
    client.delete(f"/v1/jobs/{job['job_id']}").problem(409, "INVALID_TRANSITION")
    near = client.get(f"/v1/jobs/{job['job_id']}/dependencies").ok()
    assert [each["name"] for each in near["dependents"]] == ["transform"]


def test_paused_run_grants_no_jobs(client: Client) -> None:
    run = create(client)["workflow_id"]
    client.post(f"/v1/workflows/{run}/pause").problem(409, "INVALID_TRANSITION")
    begin(run)
    (job, *_) = client.get(f"/v1/workflows/{run}").ok()["jobs"]
    assert client.post(f"/v1/workflows/{run}/pause").ok()["status"] == "paused"
    client.post(f"/v1/jobs/{job['job_id']}/start").problem(409, "INVALID_TRANSITION")
    assert client.post("/v1/queues/q/claim", {}, headers={"prefer": "wait=0"}).ok()["jobs"] == []
    waiting_job = client.get(f"/v1/jobs/{job['job_id']}").ok()
    assert (waiting_job["status"], waiting_job["waiting_for"]["workflow"]) == ("waiting", run)
    assert client.post(f"/v1/workflows/{run}/resume").ok()["status"] == "running"
    client.post(f"/v1/workflows/{run}/resume").problem(409, "INVALID_TRANSITION")


def test_decision_for_a_job_without_failure_is_refused(client: Client) -> None:
    run = create(client, failure_policy="manual")["workflow_id"]
    begin(run)
    decide = f"/v1/workflows/{run}/decisions"
    client.post(decide, {"job": "extract", "action": "skip"}).problem(409, "INVALID_TRANSITION")
    assert client.post(decide, {"job": "absent", "action": "skip"}).pointers() == ["/job"]
    assert client.post(decide, {"job": "extract", "action": "hope"}).pointers() == ["/action"]


def test_bulk_cancel_affects_only_matching_runs(client: Client) -> None:
    matching_ids = [create(client, correlation_id="mine")["workflow_id"] for _ in range(2)]
    other = create(client)["workflow_id"]
    assert client.post("/v1/workflows/cancel", {}).pointers() == [""]
    response = client.post("/v1/workflows/cancel", {"correlation_id": "mine"}).ok()
    assert sorted(response["cancelled"]) == sorted(matching_ids)
    assert client.get(f"/v1/workflows/{matching_ids[0]}").ok()["cancel_requested"]
    assert not client.get(f"/v1/workflows/{other}").ok()["cancel_requested"]


@pytest.mark.parametrize(
    ("image_format", "kind", "begins"),
    [
        ("mermaid", "text/plain; charset=utf-8", "---"),
        ("dot", "text/plain; charset=utf-8", "digraph"),
        ("svg", "image/svg+xml", "<svg"),
    ],
)
def test_graph_is_drawn_in_the_requested_format(client: Client, image_format: str, kind: str, begins: str) -> None:
    run = create(client)["workflow_id"]
    picture = client.get(f"/v1/workflows/{run}/graph", format=image_format)
    assert (picture.status, picture.headers["content-type"]) == (200, kind)
    assert picture.text.startswith(begins)
    assert "extract" in picture.text
    assert client.get(f"/v1/workflows/{run}/graph", format="png").pointers() == ["?format"]


def test_graph_as_json_lists_jobs_dependencies_and_conditions(client: Client) -> None:
    run = create(client)["workflow_id"]
    drawn = client.get(f"/v1/workflows/{run}/graph").ok()
    assert [(job["name"], job["depends_on"], job["condition"]) for job in drawn["jobs"]] == [
        ("extract", [], None), ("transform", ["extract"], "rows > `0`"), ("load", ["transform"], None),
    ]  # fmt: skip


@pytest.mark.parametrize("workflow_id", [SOME_ID, "x", "%00", "a" * 300])
@pytest.mark.parametrize("path", ["", "/stats", "/graph"])
def test_unknown_workflow_id_returns_404(client: Client, workflow_id: str, path: str) -> None:
    client.get(f"/v1/workflows/{workflow_id}{path}").problem(404, "WORKFLOW_NOT_FOUND")


def test_retry_of_an_open_run_is_refused(client: Client) -> None:
    run = create(client)["workflow_id"]
    client.post(f"/v1/workflows/{run}/retry").problem(409, "INVALID_TRANSITION")
    assert client.post(f"/v1/workflows/{run}/retry", {"from": "absent"}).pointers() == ["/from"]


def test_too_large_payload_is_named(client: Client) -> None:
    jobs = [{"name": "a"}, {"name": "b", "payload": "x" * 2_200_000}]
    problem = client.post("/v1/workflows", {"name": "w", "jobs": jobs}).problem(413, "PAYLOAD_TOO_LARGE")
    assert "/jobs/1/payload" in problem["message"]


def test_jobs_of_a_run_follow_their_types(client: Client) -> None:
    client.call("PUT", "/v1/job-types/extract", {"queue": "etl", "payload_schema": {"required": ["source"]}}).ok(201)
    wrong = client.post("/v1/workflows", {"name": "w", "jobs": [{"name": "extract", "payload": {}}]})
    assert wrong.pointers() == ["/jobs/0/payload"]
    run = client.post("/v1/workflows", {"name": "w", "jobs": [{"name": "extract", "payload": {"source": 1}}]}).ok(202)
    (job,) = client.get(f"/v1/workflows/{run['workflow_id']}").ok()["jobs"]
    assert job["queue"] == "etl"


def test_wait_conditions_and_get_fields_know_the_workflow_of_a_job(client: Client) -> None:
    run = create(client)
    job_id = client.get(f"/v1/workflows/{run['workflow_id']}").ok()["jobs"][0]["job_id"]
    body = {
        "wait_on": {job_id: {"workflow_id": run["workflow_id"]}},
        "wait_options": {"get_fields": {"workflow_id": None}},
    }
    wait = client.post("/v1/waits", body, headers={"prefer": "wait=0"}).ok()
    assert wait["status"] == "met"
    assert wait["waited_jobs"][job_id]["workflow_id"] == run["workflow_id"]
