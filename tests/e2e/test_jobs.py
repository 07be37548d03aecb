"""Jobs over HTTP."""

from __future__ import annotations

import time
from datetime import datetime
from decimal import Decimal

import pytest
import uuid6

from tests.e2e.harness import Aws, Client, Key, body_of, in_background, in_parallel, problem


@pytest.mark.smoke
def test_job_is_created_run_read_and_deleted(client: Client) -> None:
    answer = client.call(
        "POST",
        "/v1/jobs",
        {
            "job_type": "boot_test",
            "name": "nightly",
            "queue": "lab",
            "priority": "high",
            "payload": {"image": "f41", "factor": Decimal("1.10")},
            "fields": {"arch": "x86_64", "retries": 3},
            "tags": ["nightly", "lab"],
            "trace_id": "trace-1",
            "correlation_id": "report-7",
        },
    )
    job = body_of(answer, 202)
    path = f"/v1/jobs/{job['job_id']}"
    assert answer.headers["location"] == path
    assert job["message"] == "nightly job created"
    assert (job["status"], job["job_stage"], job["job_health"], job["progress"]) == ("pending", "submit", None, 0)

    assert client.start(job["job_id"])["status"] == "running"
    client.report(job["job_id"], job_stage="boot", milestones=["kernel-up"], fields={"arch": None, "boot_seconds": 45})
    client.report(job["job_id"], progress=0.5, message="halfway")
    assert client.report(job["job_id"], progress=0.25)["progress"] == Decimal("0.5"), "progress never goes back"
    light = client.get(f"{path}/status")
    assert light == {
        "job_id": job["job_id"],
        "status": "running",
        "job_stage": "boot",
        "job_health": None,
        "progress": Decimal("0.5"),
        "message": "halfway",
    }
    problem(client.call("GET", f"{path}/result"), 409, "JOB_NOT_COMPLETED")
    problem(client.call("PATCH", path, {"job_stage": "download"}), 409, "INVALID_TRANSITION")

    done = client.complete(job["job_id"], result={"rows": [1, 2.50]}, fields={"result_root": "/result/1"})
    assert (done["status"], done["job_stage"], done["job_health"]) == ("completed", "complete", "success")
    assert done["payload"] == {"image": "f41", "factor": Decimal("1.10")}
    assert done["fields"] == {"retries": 3, "boot_seconds": 45, "result_root": "/result/1"}
    assert done["milestones"] == ["kernel-up"]
    assert client.get(path) == done
    assert client.get(f"{path}/result") == {
        "job_id": job["job_id"],
        "status": "completed",
        "result": {"rows": [1, Decimal("2.50")]},
        "error": None,
    }
    history = client.get(f"{path}/events")["events"]
    assert [line["event"] for line in history] == ["created", "started", "updated", "completed"]
    assert history[2]["from"] == {"status": "running", "stage": "submit"}
    assert history[2]["to"] == {"status": "running", "stage": "boot"}

    problem(client.call("POST", f"{path}/start"), 409, "INVALID_TRANSITION")
    body_of(client.call("DELETE", path), 204)
    gone = problem(client.call("GET", path), 404, "JOB_NOT_FOUND")
    assert gone["message"] == f"Job with ID {job['job_id']} not found"


def test_retried_job_has_the_same_id_and_a_second_attempt(client: Client) -> None:
    job_id = client.running()
    failed = client.fail(job_id, "OUT_OF_DISK")
    assert (failed["status"], failed["job_stage"], failed["job_health"]) == ("failed", "incomplete", "failed")
    assert failed["error"] == {"code": "OUT_OF_DISK", "message": "it broke", "type": None, "traceback": None}
    again = client.post(f"/v1/jobs/{job_id}/retry")
    assert (again["status"], again["job_stage"], again["attempt"], again["error"]) == ("pending", "submit", 2, None)


def test_invalid_job_in_a_bulk_request_does_not_affect_the_others(client: Client) -> None:
    taken = client.job()
    answer = client.post(
        "/v1/jobs/bulk",
        {"jobs": [{"job_type": "a"}, {"job_type": "b", "retry": 3}, {"job_type": "c", "job_id": taken}, 7]},
    )
    first, later, twice, nonsense = answer["results"]
    assert client.get(f"/v1/jobs/{first['job_id']}")["job_type"] == "a"
    assert later["problem"]["errors"][0]["pointer"] == "/jobs/1/retry"
    assert twice["problem"]["error"] == "JOB_CREATION_FAILED"
    assert nonsense["problem"]["error"] == "VALIDATION_FAILED"
    assert len(client.get("/v1/jobs")["jobs"]) == 2


def test_job_list_is_filtered_and_paged_and_rejects_foreign_tokens(client: Client) -> None:
    made = [client.job(queue="odd" if number % 2 else "even", tags=[f"n{number}"]) for number in range(5)]
    client.start(made[0])
    assert [job["job_id"] for job in client.get("/v1/jobs")["jobs"]] == made[::-1], "newest first"
    assert [job["job_id"] for job in client.get("/v1/jobs?queue=odd")["jobs"]] == [made[3], made[1]]
    assert [job["job_id"] for job in client.get("/v1/jobs?status=running&status=failed")["jobs"]] == [made[0]]
    assert [job["job_id"] for job in client.get("/v1/jobs?tag=n4")["jobs"]] == [made[4]]

    seen: list[str] = []
    token = ""
    while True:
        page = client.get(f"/v1/jobs?page_size=2{token}")
        assert all({"payload", "result"}.isdisjoint(job) for job in page["jobs"])
        seen += [job["job_id"] for job in page["jobs"]]
        if page["next_page_token"] is None:
            break
        token = f"&page_token={page['next_page_token']}"
    assert seen == made[::-1]
    tampered = token[:-1] + ("A" if token[-1] != "A" else "B")
    problem(client.call("GET", f"/v1/jobs?page_size=2{tampered}"), 422, "VALIDATION_FAILED")
    problem(client.call("GET", f"/v1/jobs?queue=odd{token}"), 422, "VALIDATION_FAILED")


def test_matching_etag_returns_304_until_the_job_changes(client: Client) -> None:
    path = f"/v1/jobs/{client.running()}"
    etag = client.call("GET", path).headers["etag"]
    unchanged = client.call("GET", path, if_none_match=etag)
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    body_of(client.call("PATCH", path, {"message": "something new"}))
    assert client.call("GET", path, if_none_match=etag).status_code == 200


def test_long_poll_returns_when_the_job_ends(client: Client) -> None:
    job_id = client.running()
    with in_background(lambda: client.call("GET", f"/v1/jobs/{job_id}", prefer="wait=20")) as held:
        client.report(job_id, job_stage="boot")
        assert not held.done()
        client.complete(job_id)
        completed_at = time.monotonic()
        answer = held.result(timeout=20)
        assert time.monotonic() - completed_at < 1.5
    assert body_of(answer)["status"] == "completed"
    assert answer.headers["preference-applied"] == "wait=20"


def test_creation_with_prefer_wait_returns_the_result_or_202(client: Client) -> None:
    job_id = str(uuid6.uuid7())
    body = {"job_type": "test", "job_id": job_id}
    with in_background(lambda: client.call("POST", "/v1/jobs", body, prefer="wait=20")) as held:
        while client.call("POST", f"/v1/jobs/{job_id}/start").status_code != 200:
            assert not held.done()
        client.complete(job_id, result=[1])
        answer = held.result(timeout=20)
    assert (body_of(answer)["status"], answer.json()["result"]) == ("completed", [1])
    late = client.call("POST", "/v1/jobs", {"job_type": "test"}, prefer="wait=1")
    assert (body_of(late, 202)["status"], late.headers["preference-applied"]) == ("pending", "wait=1")


def test_concurrent_requests_with_one_idempotency_key_create_one_job(client: Client) -> None:
    def send(body: dict[str, object]) -> tuple[int, str]:
        answer = client.call("POST", "/v1/jobs", body, idempotency_key="once-and-for-all")
        return answer.status_code, answer.json().get("job_id") or answer.json()["error"]

    answers = in_parallel(send, [{"job_type": "test"}] * 8, at_once=8)
    ids = {told for status, told in answers if status == 202}
    assert len(ids) == 1
    assert all(status == 202 or (status, told) == (409, "IDEMPOTENCY_IN_PROGRESS") for status, told in answers)
    assert send({"job_type": "test"}) == (202, *ids)
    assert send({"job_type": "other"}) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert [job["job_id"] for job in client.get("/v1/jobs")["jobs"]] == [*ids]


def test_unique_key_returns_the_live_job_until_it_ends(client: Client) -> None:
    wanted = {"job_type": "test", "unique_key": "daily"}
    answers = in_parallel(lambda _: client.call("POST", "/v1/jobs", wanted), range(4), at_once=4)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 202]
    (job_id,) = {answer.json()["job_id"] for answer in answers}
    assert [answer.json()["existing"] for answer in answers if answer.status_code == 200] == [True] * 3
    client.post(f"/v1/jobs/{job_id}/cancel")
    assert body_of(client.call("POST", "/v1/jobs", wanted), 202)["job_id"] != job_id


@pytest.mark.smoke
def test_mutex_rejects_a_second_job_until_the_first_ends(client: Client) -> None:
    wanted = {"job_type": "test", "mutex": {"key": "disk", "on_conflict": "reject"}}
    answers = in_parallel(lambda _: client.call("POST", "/v1/jobs", wanted), range(4), at_once=4)
    assert sorted(answer.status_code for answer in answers) == [202, 409, 409, 409]
    refusals = [problem(answer, 409, "JOB_CREATION_FAILED") for answer in answers if answer.status_code == 409]
    assert {refusal["message"] for refusal in refusals} == {"Another operation is already running"}
    (holder,) = [answer.json()["job_id"] for answer in answers if answer.status_code == 202]
    client.start(holder)
    client.fail(holder)
    following = body_of(client.call("POST", "/v1/jobs", wanted), 202)["job_id"]
    problem(client.call("POST", f"/v1/jobs/{holder}/retry"), 409, "JOB_CREATION_FAILED")
    client.post(f"/v1/jobs/{following}/cancel")
    client.post(f"/v1/jobs/{holder}/retry")


def test_bad_input_is_refused_with_field_names_and_stores_nothing(client: Client) -> None:
    job_id = client.running()
    before = client.get(f"/v1/jobs/{job_id}")
    assert client.http.post("/v1/jobs", content=b'{"job_type": ').status_code == 400
    assert client.http.post("/v1/jobs", content=b"\xff\xfe").status_code == 400
    cases = [
        ("POST", "/v1/jobs", {}, "/job_type"),
        ("POST", "/v1/jobs", {"job_type": 7}, "/job_type"),
        ("POST", "/v1/jobs", {"job_type": "a\0b"}, "/job_type"),
        ("POST", "/v1/jobs", {"job_type": "t", "colour": "red"}, "/colour"),
        ("POST", "/v1/jobs", {"job_type": "t", "timeout": -1}, "/timeout"),
        ("POST", "/v1/jobs", {"job_type": "t", "fields": {"status": "x"}}, "/fields/status"),
        ("POST", "/v1/jobs", {"job_type": "x" * 1_000_000}, "/job_type"),
        ("PATCH", f"/v1/jobs/{job_id}", {"job_stage": "wash", "milestones": ["m"]}, "/job_stage"),
        ("PATCH", f"/v1/jobs/{job_id}", {"progress": 1.5}, "/progress"),
    ]
    for method, path, body, pointer in cases:
        refusal = problem(client.call(method, path, body), 422, "VALIDATION_FAILED")
        assert refusal["errors"][0]["pointer"].startswith(pointer), refusal
    for unknown in ("7", "x" * 2000, "%00", str(uuid6.uuid7())):
        problem(client.call("GET", f"/v1/jobs/{unknown}"), 404, "JOB_NOT_FOUND")
    problem(client.call("GET", "/nowhere"), 404, "NOT_FOUND")
    problem(client.call("POST", "/v1/jobs", {"job_type": "t", "payload": "x" * 2_500_000}), 413, "PAYLOAD_TOO_LARGE")
    assert client.get(f"/v1/jobs/{job_id}") == before
    assert [job["job_id"] for job in client.get("/v1/jobs")["jobs"]] == [job_id]


def test_ended_job_expires_with_all_its_rows(aws: Aws, client: Client, key: Key) -> None:
    job_id = client.running(payload={"a": 1}, fallback=2)
    for number in range(10):
        client.report(job_id, fields={"n": number})
    ended = client.complete(job_id, result=3)
    expires_at = int(datetime.fromisoformat(ended["finished_at"]).timestamp()) + 30 * 86_400
    rows = aws.rows(f"{key.namespace}#job#{job_id}")
    assert {row["entity"]["S"] for row in rows} == {"job", "payload", "result", "log"}
    assert {int(row["ttl"]["N"]) for row in rows} == {expires_at}
    aws.dynamodb.update_item(
        TableName=aws.stack.table_name,
        Key={"pk": rows[0]["pk"], "sk": {"S": "A"}},
        UpdateExpression="SET #ttl = :past",
        ExpressionAttributeNames={"#ttl": "ttl"},
        ExpressionAttributeValues={":past": {"N": str(int(time.time()) - 1)}},
    )
    problem(client.call("GET", f"/v1/jobs/{job_id}"), 404, "JOB_NOT_FOUND")
    assert client.get("/v1/jobs")["jobs"] == []
