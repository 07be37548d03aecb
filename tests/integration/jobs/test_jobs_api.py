"""Jobs over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api import KEY_ID, SOME_ID, Client, pages, run_at_each_pause
from vigil_core.domain.exact_json import dumps
from vigil_core.store.table import DynamoTable

JOB_KEYS = {
    "job_id", "name", "job_type", "queue", "priority", "status", "dependency_status", "job_stage", "job_health",
    "progress", "message", "milestones", "fields", "tags", "payload", "result", "error", "attempt", "max_attempts",
    "executor", "retry", "timeout", "heartbeat_timeout", "unique_key", "mutex", "trigger_rule", "condition",
    "depends_on", "depends_on_truncated", "waiting_for", "verdict", "workflow_id", "batch_id", "trace_id",
    "correlation_id", "cancel_requested",
    "created_at", "updated_at", "scheduled_at", "started_at", "finished_at",
}  # fmt: skip
BIG_NUMBERS = '{"a": 1.10, "b": 12345678901234567890123, "c": 0.1234567890123456789012345678901234567890, "d": 1e400}'


def test_created_job_has_every_documented_key(client: Client) -> None:
    reply = client.post("/v1/jobs", {"job_type": "boot_test", "name": "boot it", "tags": ["nightly"]})
    job = reply.ok(202)
    assert job.keys() == JOB_KEYS | {"timestamp"}
    assert reply.headers["location"] == f"/v1/jobs/{job['job_id']}"
    assert job["message"] == "boot it job created"
    absent = {name for name in JOB_KEYS if job[name] is None}
    assert absent == {
        "job_health", "payload", "result", "error", "waiting_for", "verdict", "workflow_id", "batch_id", "trace_id",
        "correlation_id", "scheduled_at", "started_at", "finished_at",
        "retry", "timeout", "heartbeat_timeout", "unique_key", "mutex", "trigger_rule", "condition",
    }  # fmt: skip
    assert (job["status"], job["job_stage"], job["progress"]) == ("pending", "submit", 0)
    assert (job["queue"], job["priority"], job["dependency_status"]) == ("default", "normal", "none")
    assert (job["fields"], job["milestones"], job["depends_on"]) == ({}, [], [])
    assert (job["attempt"], job["max_attempts"], job["cancel_requested"]) == (1, 1, False)


def test_message_of_a_job_without_name_contains_its_type(client: Client) -> None:
    assert client.create()["message"] == "boot_test job created"


def test_payload_numbers_are_returned_exactly(client: Client) -> None:
    fields = '{"n": 1.50, "unicode": "größe 🚀", "nul": "\\u0000"}'
    text = f'{{"job_type": "t", "payload": {BIG_NUMBERS}, "fields": {fields}}}'
    created = client.post("/v1/jobs", body=text)
    job_id = created.ok(202)["job_id"]
    read_back = client.get(f"/v1/jobs/{job_id}")
    assert read_back.ok().keys() == JOB_KEYS
    for number in ("12345678901234567890123", "0.1234567890123456789012345678901234567890", "1E+400"):
        assert number in created.text
        assert number in read_back.text
    assert read_back.json["fields"] == {"n": read_back.json["fields"]["n"], "unicode": "größe 🚀", "nul": "\x00"}
    assert '"n":1.50' in read_back.text


def test_job_is_created_started_reported_and_completed(client: Client) -> None:
    job = client.create(payload={"image": "x"}, trace_id="t-1", correlation_id="c-1")
    path = f"/v1/jobs/{job['job_id']}"
    assert client.post(f"{path}/start").ok()["status"] == "running"
    report = {
        "job_stage": "boot",
        "milestones": ["kernel"],
        "progress": 0.25,
        "message": "booting",
        "fields": {"s": 45},
    }
    reported = client.patch(path, report).ok()
    assert reported.keys() == JOB_KEYS
    assert {name: reported[name] for name in report} == {**report, "progress": reported["progress"]}
    assert float(reported["progress"]) == 0.25
    assert client.patch(path, {"progress": 0.1}).ok()["progress"] == reported["progress"]
    assert client.patch(path, {"fields": {"s": None, "t": 1}}).ok()["fields"] == {"t": 1}
    completed = client.post(
        f"{path}/complete", {"result": {"rows": 3}, "job_health": "degraded", "fields": {"u": 2}}
    ).ok()
    assert (completed["status"], completed["job_stage"], completed["job_health"]) == (
        "completed",
        "complete",
        "degraded",
    )
    assert (completed["result"], completed["payload"], completed["progress"]) == ({"rows": 3}, {"image": "x"}, 1)
    assert completed["fields"] == {"t": 1, "u": 2}
    light = client.get(f"{path}/status").ok()
    assert light == {name: completed[name] for name in light}
    assert light.keys() == {"job_id", "status", "job_stage", "job_health", "progress", "message"}
    result = client.get(f"{path}/result").ok()
    assert result == {"job_id": job["job_id"], "status": "completed", "result": {"rows": 3}, "error": None}


def test_history_lists_actor_reason_time_and_transition(client: Client) -> None:
    job = client.running()
    path = f"/v1/jobs/{job['job_id']}"
    client.patch(path, {"job_stage": "boot"}).ok()
    client.post(f"{path}/fail", {"error": {"code": "OUT_OF_DISK", "message": "no room"}}).ok()
    events = client.get(f"{path}/events").ok()["events"]
    assert [event["event"] for event in events] == ["created", "started", "updated", "failed"]
    assert [event["version"] for event in events] == [1, 2, 3, 4]
    assert [event["from"] for event in events] == [None, *(event["to"] for event in events[:-1])]
    assert events[-1]["to"] == {"status": "failed", "stage": "incomplete"}
    assert [event["why"] for event in events[2:]] == ["stage", "OUT_OF_DISK"]
    assert {event["by"] for event in events} == {KEY_ID}
    assert sorted(event["at"] for event in events) == [event["at"] for event in events]


def test_history_longer_than_the_state_row_is_in_order(client: Client) -> None:
    path = f"/v1/jobs/{client.running()['job_id']}"
    for number in range(30):
        client.patch(path, {"milestones": [f"m{number}"]}).ok()
    versions = [event["version"] for event in client.get(f"{path}/events").ok()["events"]]
    assert versions == list(range(1, 33))


@pytest.mark.parametrize("page_size", [1, 7, 8, 9, 50])
def test_pages_of_a_history_are_equal_to_the_whole(client: Client, page_size: int) -> None:
    job_id = client.running()["job_id"]
    for number in range(40):
        client.patch(f"/v1/jobs/{job_id}", {"milestones": [f"m{number}"], "job_stage": f"s{number % 3}"})
    path = f"/v1/jobs/{job_id}/events"
    whole = client.get(path, page_size=200).ok()
    assert whole["next_page_token"] is None
    listed = pages(client, path, page_size=page_size)
    assert [event for page in listed for event in page["events"]] == whole["events"]
    assert {len(page["events"]) for page in listed[:-1]} <= {page_size}


def test_page_of_a_history_reads_only_its_own_rows(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = client.running()["job_id"]
    for number in range(120):
        client.patch(f"/v1/jobs/{job_id}", {"milestones": [f"m{number % 5}"], "fields": {"n": number}}).ok()
    path = f"/v1/jobs/{job_id}/events"
    token = client.get(path, page_size=60).ok()["next_page_token"]
    rows_read: list[int] = []
    query_page = DynamoTable.query_page

    def counted(self: DynamoTable, pk: str, **bounds: Any) -> Any:
        page = query_page(self, pk, **bounds)
        rows_read.append(len(page.rows))
        return page

    monkeypatch.setattr(DynamoTable, "query_page", counted)
    page = client.get(path, page_size=10, page_token=token).ok()
    assert [event["version"] for event in page["events"]] == list(range(61, 71))
    assert sum(rows_read) <= 6, "the state row, the row before the page, and the rows of the page"


def test_failed_job_shows_its_error_and_can_be_retried(client: Client) -> None:
    job = client.running()
    path = f"/v1/jobs/{job['job_id']}"
    error = {"code": "E", "message": "m", "type": "java.io.IOException", "traceback": "at Main.java:1"}
    failed = client.post(f"{path}/fail", {"error": error, "retryable": False}).ok()
    assert (failed["status"], failed["job_stage"], failed["job_health"]) == ("failed", "incomplete", "failed")
    assert client.get(f"{path}/result").ok()["error"] == error
    retried = client.post(f"{path}/retry").ok()
    assert (retried["status"], retried["attempt"], retried["error"]) == ("pending", 2, None)
    client.post(f"{path}/retry").problem(409, "INVALID_TRANSITION")


def test_job_shows_the_options_of_its_creation(client: Client) -> None:
    options = {
        "retry": {"max_attempts": 5, "initial_delay": 0.5, "max_delay": 60, "multiplier": 1.5, "jitter": False},
        "timeout": 30, "heartbeat_timeout": 20, "unique_key": "u", "mutex": {"key": "m", "on_conflict": "queue"},
        "trigger_rule": "all_done", "condition": "`true`",
    }  # fmt: skip
    dependency = client.create()["job_id"]
    job = client.create(depends_on=[dependency], **options)
    assert {name: job[name] for name in options} == options
    assert job["executor"] == "worker"
    (listed,) = client.get("/v1/jobs?status=waiting").ok()["jobs"]
    assert {name: listed[name] for name in options} == options


def test_cancel_ends_a_pending_job_and_requests_the_end_of_a_running_one(client: Client) -> None:
    assert client.post(f"/v1/jobs/{client.create()['job_id']}/cancel").ok(200)["status"] == "cancelled"
    path = f"/v1/jobs/{client.running()['job_id']}"
    cancelling = client.post(f"{path}/cancel").ok(202)
    assert (cancelling["status"], cancelling["cancel_requested"]) == ("running", True)
    stopped = client.post(f"{path}/fail", {"error": {"code": "STOPPED", "message": "as asked"}}).ok()
    assert stopped["status"] == "cancelled"
    client.post(f"{path}/cancel").problem(409, "INVALID_TRANSITION")


def test_result_of_an_open_job_returns_409(client: Client) -> None:
    job = client.running()
    problem = client.get(f"/v1/jobs/{job['job_id']}/result").problem(409, "JOB_NOT_COMPLETED")
    assert problem["message"] == f"Job {job['job_id']} is not yet completed"


def test_only_an_ended_job_can_be_deleted_and_its_id_stays_taken(client: Client) -> None:
    job = client.running()
    path = f"/v1/jobs/{job['job_id']}"
    client.delete(path).problem(409, "INVALID_TRANSITION")
    client.post(f"{path}/complete").ok()
    assert client.delete(path).ok(204) is None
    client.delete(path).problem(404, "JOB_NOT_FOUND")
    client.get(path).problem(404, "JOB_NOT_FOUND")
    assert client.get("/v1/jobs").ok()["jobs"] == []
    client.post("/v1/jobs", {"job_type": "t", "job_id": job["job_id"]}).problem(409, "JOB_CREATION_FAILED")


def test_client_chosen_id_is_accepted_once(client: Client) -> None:
    assert client.create(job_id=SOME_ID)["job_id"] == SOME_ID
    client.post("/v1/jobs", {"job_type": "t", "job_id": SOME_ID}).problem(409, "JOB_CREATION_FAILED")


@pytest.mark.parametrize("name", ["", "/status", "/result", "/events"])
@pytest.mark.parametrize("job_id", [SOME_ID, SOME_ID.upper(), "7", "absent", "a%00b", "x" * 2000, "ü", "null"])
def test_unknown_or_malformed_job_id_returns_404(client: Client, job_id: str, name: str) -> None:
    reply = client.get(f"/v1/jobs/{job_id}{name}")
    assert reply.status == 404
    assert reply.headers["content-type"] == "application/problem+json"


def test_error_message_contains_the_unknown_job_id(client: Client) -> None:
    problem = client.get(f"/v1/jobs/{SOME_ID}").problem(404, "JOB_NOT_FOUND")
    assert problem["message"] == problem["detail"] == f"Job with ID {SOME_ID} not found"
    assert "hint" not in problem


@pytest.mark.parametrize(
    ("target", "body", "kind"),
    [
        ("/v1/jobs/job123", None, "Job"),
        ("/v1/waits/job123", None, "Wait"),
        ("/v1/workflows/job123", None, "Workflow"),
        ("/v1/waits", {"wait_on": {"job123": None}}, "Job"),
        ("/v1/waits", {"wait_on": {"job123": None}, "wait_options": {"allow_missing": True}}, "Job"),
    ],
)
def test_hint_states_the_form_of_ids(client: Client, target: str, body: Any, kind: str) -> None:
    reply = client.get(target) if body is None else client.post(target, body)
    problem = reply.problem(404, f"{kind.upper()}_NOT_FOUND")
    assert problem["message"] == f"{kind} with ID job123 not found"
    assert "UUIDv7" in problem["hint"]


@pytest.mark.parametrize(
    ("method", "name", "body"),
    [
        ("GET", "", None), ("GET", "/status", None), ("GET", "/result", None), ("GET", "/events", None),
        ("PATCH", "", {}), ("DELETE", "", None), ("POST", "/start", None), ("POST", "/complete", None),
        ("POST", "/fail", {"error": {"code": "E", "message": "m"}}), ("POST", "/cancel", None),
        ("POST", "/retry", None),
    ],
)  # fmt: skip
def test_job_of_another_namespace_returns_404(client: Client, method: str, name: str, body: Any) -> None:
    job = client.create()
    Client(namespace="other").call(method, f"/v1/jobs/{job['job_id']}{name}", body).problem(404, "JOB_NOT_FOUND")
    assert client.get(f"/v1/jobs/{job['job_id']}").ok()["status"] == "pending"


def test_report_with_an_unknown_lease_token_is_refused(client: Client) -> None:
    job = client.create()
    path = f"/v1/jobs/{job['job_id']}"
    client.post(f"{path}/start", {"lease_token": "x"}).problem(409, "LEASE_LOST")
    client.post(f"{path}/start", {"lease_token": None}).ok()
    client.patch(path, {"lease_token": "x", "message": "m"}).problem(409, "LEASE_LOST")
    client.post(f"{path}/complete", {"lease_token": "x"}).problem(409, "LEASE_LOST")
    failure = {"error": {"code": "E", "message": "m"}, "lease_token": "x"}
    client.post(f"{path}/fail", failure).problem(409, "LEASE_LOST")
    client.post(f"/v1/jobs/{SOME_ID}/start", {"lease_token": "x"}).problem(404, "JOB_NOT_FOUND")
    job = client.get(path).ok()
    assert (job["status"], job["message"]) == ("running", None)


def test_report_against_the_job_status_returns_409(client: Client) -> None:
    path = f"/v1/jobs/{client.create()['job_id']}"
    client.patch(path, {"job_stage": "boot"}).problem(409, "INVALID_TRANSITION")
    client.patch(path, {"progress": 0.5}).problem(409, "INVALID_TRANSITION")
    client.patch(path, {"message": "queued", "fields": {"a": 1}, "milestones": ["m"]}).ok()
    client.post(f"{path}/complete").problem(409, "INVALID_TRANSITION")
    client.post(f"{path}/start").ok()
    client.patch(path, {"job_stage": "setup", "fields": {"a": 2}}).ok()
    client.patch(path, {"job_stage": "boot", "fields": {"a": 3}}).problem(409, "INVALID_TRANSITION")
    assert client.get(path).ok()["fields"] == {"a": 2}
    client.post(f"{path}/complete").ok()
    client.patch(path, {"message": "late"}).problem(409, "INVALID_TRANSITION")


@pytest.mark.parametrize("stage", ["complete", "incomplete", "bakery"])
def test_terminal_and_unknown_stages_are_refused(client: Client, stage: str) -> None:
    path = f"/v1/jobs/{client.running()['job_id']}"
    assert client.patch(path, {"job_stage": stage}).pointers() == ["/job_stage"]


def test_taken_unique_key_returns_the_existing_job(client: Client) -> None:
    first = client.create(unique_key="nightly", payload=[1])
    reply = client.post("/v1/jobs", {"job_type": "other", "unique_key": "nightly", "payload": [2]})
    existing = reply.ok(200)
    assert (existing["job_id"], existing["existing"], existing["payload"]) == (first["job_id"], True, [1])
    assert existing.keys() == JOB_KEYS | {"existing", "timestamp"}
    assert reply.headers["location"] == f"/v1/jobs/{first['job_id']}"
    assert Client(namespace="other").create(unique_key="nightly")["job_id"] != first["job_id"]
    client.post(f"/v1/jobs/{first['job_id']}/cancel").ok()
    assert client.create(unique_key="nightly")["job_id"] != first["job_id"]


def test_mutex_refuses_the_second_job_until_the_first_ends(client: Client) -> None:
    first = client.create(mutex={"key": "deploy"})
    body = {"job_type": "t", "mutex": {"key": "deploy", "on_conflict": "reject"}}
    problem = client.post("/v1/jobs", body).problem(409, "JOB_CREATION_FAILED")
    assert problem["message"] == "Another operation is already running"
    client.post(f"/v1/jobs/{first['job_id']}/cancel").ok()
    client.post("/v1/jobs", body).ok(202)
    client.post(f"/v1/jobs/{first['job_id']}/retry").problem(409, "JOB_CREATION_FAILED")


def test_matching_etag_returns_304(client: Client) -> None:
    path = f"/v1/jobs/{client.running()['job_id']}"
    etag = client.get(path).headers["etag"]
    same = client.get(path, headers={"If-None-Match": f'"x", W/{etag}'})
    assert (same.status, same.text, same.headers["etag"]) == (304, "", etag)
    assert client.get(path, headers={"if-none-match": "*"}).status == 304
    client.patch(path, {"message": "only told"}).ok()
    unchanged = client.get(path, headers={"if-none-match": etag})
    assert unchanged.ok()["message"] == "only told"
    client.patch(path, {"milestones": ["m"]}).ok()
    assert client.get(path).headers["etag"] not in (etag, unchanged.headers["etag"])


def test_bulk_results_are_in_the_order_of_the_request(client: Client) -> None:
    client.create(mutex={"key": "m"}, unique_key="u")
    bodies = [
        {"job_type": "a", "payload": 1},
        {"job_type": 5, "nonsense": 1},
        {"job_type": "b", "mutex": {"key": "m"}},
        {"job_type": "c", "unique_key": "u"},
        "not a job",
        {"job_type": "d", "fields": {"x": "y" * 40_000}},
        {"job_type": "e", "payload": "z" * 2_200_000},
    ]
    results = client.post("/v1/jobs/bulk", {"jobs": bodies}).ok()["results"]
    assert [result.get("problem", {}).get("error") for result in results] == [
        None, "VALIDATION_FAILED", "JOB_CREATION_FAILED", None, "VALIDATION_FAILED", "VALIDATION_FAILED",
        "PAYLOAD_TOO_LARGE",
    ]  # fmt: skip
    assert [error["pointer"] for error in results[1]["problem"]["errors"]] == ["/jobs/1/job_type", "/jobs/1/nonsense"]
    assert [error["pointer"] for error in results[4]["problem"]["errors"]] == ["/jobs/4"]
    assert [error["pointer"] for error in results[5]["problem"]["errors"]] == ["/jobs/5/fields"]
    assert results[0]["job"].keys() == JOB_KEYS - {"payload", "result"}
    assert results[0].keys() == {"job_id", "job"}
    assert results[3]["existing"] is True
    assert client.get(f"/v1/jobs/{results[0]['job_id']}").ok()["payload"] == 1
    assert len(client.get("/v1/jobs").ok()["jobs"]) == 2


@pytest.mark.parametrize("jobs", [[], [{"job_type": "t"}] * 101, None, {}])
def test_bulk_request_outside_1_to_100_jobs_is_refused(client: Client, jobs: Any) -> None:
    assert client.post("/v1/jobs/bulk", {"jobs": jobs}).pointers() == ["/jobs"]
    assert client.get("/v1/jobs").ok()["jobs"] == []


def test_payload_or_result_over_2_mb_is_refused(client: Client) -> None:
    client.post("/v1/jobs", {"job_type": "t", "payload": "x" * 2_200_000}).problem(413, "PAYLOAD_TOO_LARGE")
    path = f"/v1/jobs/{client.running(payload='y' * 300_000)['job_id']}"
    client.post(f"{path}/complete", {"result": "x" * 2_200_000}).problem(413, "PAYLOAD_TOO_LARGE")
    assert client.post(f"{path}/complete", {"result": "x" * 300_000}).ok()["result"] == "x" * 300_000


@pytest.mark.parametrize("letter", ["x", "é", '"', "\x00"])
def test_largest_responses_fit_the_lambda_limit(client: Client, letter: str) -> None:
    size = len(dumps(letter).encode()) - 2
    payload, field = letter * (2_090_000 // size), letter * (31_000 // size)
    path = f"/v1/jobs/{client.running(payload=payload, fields={'f': field})['job_id']}"
    completed = client.post(f"{path}/complete", {"result": payload}).ok()
    assert (completed["payload"], completed["result"]) == (payload, payload)
    results = client.post("/v1/jobs/bulk", {"jobs": [{"job_type": "t", "fields": {"f": field}}] * 90}).ok()["results"]
    assert {len(result["job"]["fields"]["f"]) for result in results} == {len(field)}
    assert len(client.get("/v1/jobs", page_size=200).ok()["jobs"]) > 40


def test_request_over_3_mb_is_refused(client: Client) -> None:
    client.post("/v1/jobs", body='"' + "x" * 3 * 1024 * 1024 + '"').problem(413, "PAYLOAD_TOO_LARGE")


def test_creation_with_prefer_wait_returns_202_after_the_timeout(client: Client) -> None:
    reply = client.post("/v1/jobs", {"job_type": "t"}, headers={"Prefer": "respond-async, wait=0"})
    assert reply.ok(202)["status"] == "pending"
    assert reply.headers["preference-applied"] == "wait=0"


def test_prefer_wait_returns_when_the_job_ends(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start and complete the job in the pauses between two reads of the long poll."""
    slept: list[float] = []
    meanwhile = iter(["start", "complete"])

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        job = client.get("/v1/jobs").ok()["jobs"][0]
        client.post(f"/v1/jobs/{job['job_id']}/{next(meanwhile)}").ok()

    run_at_each_pause(monkeypatch, sleep)
    reply = client.post("/v1/jobs", {"job_type": "t"}, headers={"prefer": "wait=60"})
    assert (reply.ok(200)["status"], reply.headers["preference-applied"]) == ("completed", "wait=25")
    assert reply.json.keys() == JOB_KEYS
    assert len(slept) == 2
    assert slept == sorted(slept)

    job = client.running()
    meanwhile = iter(["complete"])
    polled = client.get(f"/v1/jobs/{job['job_id']}", headers={"prefer": "wait=10"})
    assert (polled.ok()["status"], polled.headers["preference-applied"]) == ("completed", "wait=10")


def test_created_job_shows_its_dependencies_and_rule(client: Client) -> None:
    first = client.create()["job_id"]
    body = {"depends_on": [first, first], "trigger_rule": "all_done", "condition": "rows > `1`"}
    job = client.post("/v1/jobs", {"job_type": "t", **body}).ok(202)
    assert (job["status"], job["dependency_status"], job["depends_on"]) == ("waiting", "waiting", [first])
    assert (job["waiting_for"], job["verdict"]) == ({"mutex": None, "jobs": [first], "workflow": None}, None)
    listed = client.get("/v1/jobs?dependency_status=waiting").ok()["jobs"]
    assert [each["job_id"] for each in listed] == [job["job_id"]]
    neighbours = client.get(f"/v1/jobs/{job['job_id']}/dependencies").ok()
    assert (neighbours["trigger_rule"], neighbours["condition"], neighbours["dependents"]) == (
        "all_done",
        "rows > `1`",
        [],
    )
    assert [(each["job_id"], each["status"]) for each in neighbours["depends_on"]] == [(first, "pending")]


def test_condition_outside_its_view_is_refused(client: Client) -> None:
    first, other = (client.post("/v1/jobs", {"job_type": "x"}).ok(202)["job_id"] for _ in range(2))
    jobs: list[dict[str, Any]] = [
        {"condition": "`false`"},
        {"condition": "rows > `0`"},
        {"depends_on": [first], "condition": f'"{other}".result.rows > `0`'},
    ]
    for members in jobs:
        assert client.post("/v1/jobs", {"job_type": "x", **members}).pointers() == ["/condition"]
    client.post("/v1/jobs", {"job_type": "x", "depends_on": [first], "condition": f'"{first}".result.rows'}).ok(202)


def test_unknown_dependency_is_refused_with_its_pointer(client: Client) -> None:
    unknown_id = "01980c4e-5a00-7c3b-9e21-3f6b0a1d2c4e"
    reply = client.post("/v1/jobs", {"job_type": "t", "depends_on": [unknown_id, "7"]})
    problem = reply.problem(422, "MISSING_DEPENDENCY")
    assert [error["pointer"] for error in problem["errors"]] == ["/depends_on/0", "/depends_on/1"]
    assert {error["code"] for error in problem["errors"]} == {"MISSING_DEPENDENCY"}
    bulk = client.post(
        "/v1/jobs/bulk", {"jobs": [{"job_type": "t"}, {"job_type": "t", "depends_on": [unknown_id]}]}
    ).ok()
    assert bulk["results"][1]["problem"]["error"] == "MISSING_DEPENDENCY"
    assert bulk["results"][1]["problem"]["errors"][0]["pointer"] == "/jobs/1/depends_on/0"
