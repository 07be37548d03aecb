"""Invalid input: the response is a 4xx problem that names each invalid field, and nothing is stored."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api import Client
from tests.support.table import TABLE_NAME
from vigil_core import wiring
from vigil_core.domain.errors import ValidationFailed
from vigil_core.domain.exact_json import dumps
from vigil_core.schemas.base import NoContent
from vigil_core.schemas.validation import parse_body

WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"job_type": None}, ["/job_type"]),
    ({"job_type": ""}, ["/job_type"]),
    ({"job_type": 5}, ["/job_type"]),
    ({"job_type": ["t"]}, ["/job_type"]),
    ({"job_type": "x" * 129}, ["/job_type"]),
    ({"job_type": "x" * 1_000_000}, ["/job_type"]),
    ({"job_type": "a\x00b"}, ["/job_type"]),
    ({"job_type": "a\nb"}, ["/job_type"]),
    ({"job_id": 7}, ["/job_id"]),
    ({"job_id": "7"}, ["/job_id"]),
    ({"job_id": "01980C4E-5A00-7C3B-9E21-3F6B0A1D2C4E"}, ["/job_id"]),
    ({"job_id": "01980c4e-5a00-4c3b-9e21-3f6b0a1d2c4e"}, ["/job_id"]),
    ({"queue": "a/b"}, ["/queue"]),
    ({"queue": "50%"}, ["/queue"]),
    ({"scheduled_at": "tomorrow"}, ["/scheduled_at"]),
    ({"scheduled_at": "2030-01-01T00:00:00"}, ["/scheduled_at"]),
    ({"scheduled_at": 1893456000}, ["/scheduled_at"]),
    ({"timeout": 0, "heartbeat_timeout": -1}, ["/timeout", "/heartbeat_timeout"]),
    ({"timeout": 1.5, "heartbeat_timeout": "60"}, ["/timeout", "/heartbeat_timeout"]),
    ({"timeout": 10**12}, ["/timeout"]),
    ({"retry": 3}, ["/retry"]),
    ({"retry": {"max_attempts": 0, "initial_delay": -1}}, ["/retry/max_attempts", "/retry/initial_delay"]),
    ({"retry": {"max_delay": "1", "multiplier": 101}}, ["/retry/max_delay", "/retry/multiplier"]),
    ({"retry": {"jitter": "yes", "attempts": 3}}, ["/retry/jitter", "/retry/attempts"]),
    ({"name": 1, "queue": True, "priority": "urgent"}, ["/name", "/queue", "/priority"]),
    ({"priority": 1}, ["/priority"]),
    ({"fields": []}, ["/fields"]),
    ({"fields": {"": 1}}, ["/fields/"]),
    ({"fields": {"status": 1, "ok": 1, "a/b~c": 2, "x" * 129: 3}}, ["/fields/status", "/fields/" + "x" * 129]),
    ({"fields": {"a\x00/~": 1}}, ["/fields/a\x00~1~0"]),
    ({"fields": {"big": "x" * 40_000}}, ["/fields"]),
    ({"fields": {"big": "x" * 1_000_000}}, ["/fields"]),
    ({"tags": "nightly"}, ["/tags"]),
    ({"tags": ["", 5, "x" * 1025, "ok", "a\x00"]}, ["/tags/0", "/tags/1", "/tags/2", "/tags/4"]),
    ({"tags": ["t"] * 21}, ["/tags"]),
    ({"unique_key": "", "trace_id": "x" * 1025}, ["/unique_key", "/trace_id"]),
    ({"correlation_id": "a\x00"}, ["/correlation_id"]),
    ({"depends_on": "j", "trigger_rule": "most"}, ["/depends_on", "/trigger_rule"]),
    ({"depends_on": ["x"] * 101}, ["/depends_on"]),
    ({"condition": "a ="}, ["/condition"]),
    ({"condition": "(" * 1_000}, ["/condition"]),
    ({"condition": "a" * 1_025}, ["/condition"]),
    ({"condition": ""}, ["/condition"]),
    ({"mutex": "m"}, ["/mutex"]),
    ({"mutex": {}}, ["/mutex/key"]),
    ({"mutex": {"key": "m", "on_conflict": "explode", "more": 1}}, ["/mutex/on_conflict", "/mutex/more"]),
    ({"batch": []}, ["/batch"]),
    ({"batch": "x"}, ["/batch"]),
    ({"batch": {"a": 1}}, ["/batch"]),
    ({"batch": [1] * 1_001}, ["/batch"]),
    ({"batch": [1], "payload": 1}, ["/payload"]),
    ({"batch": [1], "payload_ref": "01980c4e-5a00-7c3b-9e21-3f6b0a1d2c4e"}, ["/payload_ref"]),
    ({"batch": [1], "on_item_failure": "explode"}, ["/on_item_failure"]),
    ({"on_item_failure": "collect"}, ["/on_item_failure"]),
    ({"jobtype": "x", "status": "completed"}, ["/jobtype", "/status"]),
]  # fmt: skip


def stored() -> int:
    return int(wiring.dynamodb().scan(TableName=TABLE_NAME)["Count"])


@pytest.mark.parametrize(("wrong", "pointers"), WRONG, ids=[str(pointers)[:60] for _, pointers in WRONG])
def test_each_invalid_field_is_named_in_the_error(client: Client, wrong: dict[str, Any], pointers: list[str]) -> None:
    reply = client.post("/v1/jobs", {"job_type": "t", **wrong})
    assert sorted(reply.pointers()) == sorted(pointers)
    assert stored() == 0
    assert all(error["detail"] and error["code"] == "VALIDATION_FAILED" for error in reply.json["errors"])
    assert len(reply.text) < 2_000


def test_unknown_members_are_refused_by_name() -> None:
    with pytest.raises(ValidationFailed) as refused:
        parse_body(NoContent, {"never": 2, "a/b": 1})
    assert {problem.pointer: problem.detail for problem in refused.value.problems} == {
        "/never": "is not known here",
        "/a~1b": "is not known here",
    }


@pytest.mark.parametrize(
    "body",
    [
        "", " ", "{", "nul", "{'a': 1}", '{"job_type": NaN}', '{"job_type": Infinity}', '{"job_type": "t"} x',
        "[" * 100_000, '{"job_type":' * 5_000,
        b"\xff\xfe", b"\x00", "\ud800",
    ],
    ids=lambda body: ascii(body)[:24],
)  # fmt: skip
def test_malformed_json_returns_400(client: Client, body: str | bytes) -> None:
    for target in ("/v1/jobs", "/v1/jobs/bulk", "/v1/waits", "/scheduler/wait-jobs"):
        client.post(target, body=body).problem(400, "MALFORMED_REQUEST")
    assert stored() == 0


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ('{"job_type": "\\ud800"}', ["/job_type"]),
        ('{"\\udfff": 1}', ["/\ufffd"]),
        ('{"payload": {"a/b": ["\\ud800", {"\\ud800": "\\udfff"}]}}',
         ["/payload/a~1b/0", "/payload/a~1b/1/\ufffd", "/payload/a~1b/1/\ufffd"]),
        ("9" * 5_000, [""]),
        ('{"payload": [0, 1e10000, {"n": -1e-10000}], "timeout": 1e99999999999999999999999}',
         ["/payload/1", "/payload/2/n", "/timeout"]),
    ],
    ids=lambda value: ascii(value)[:24],
)  # fmt: skip
def test_refused_numbers_and_texts_are_named_by_pointers(client: Client, body: str, pointers: list[str]) -> None:
    for target in ("/v1/jobs", "/v1/jobs/bulk", "/v1/waits", "/scheduler/wait-jobs", "/v1/workflows"):
        assert client.post(target, body=body).pointers() == pointers
    assert stored() == 0


@pytest.mark.parametrize("body", ["null", "[]", "5", '"text"', "true", '[{"job_type": "t"}]'])
def test_json_that_is_not_an_object_is_refused(client: Client, body: str) -> None:
    for target in ("/v1/jobs", "/v1/jobs/bulk", "/v1/waits"):
        assert client.post(target, body=body).pointers() == [""]


def test_invalid_base64_returns_400(client: Client) -> None:
    from functions.api.handler import handler
    from tests.support.api import LambdaContext, event

    request = event(client, "POST", "/v1/jobs", "%%%", {})
    assert handler({**request, "isBase64Encoded": True}, LambdaContext())["statusCode"] == 400


def test_all_problems_of_a_report_are_returned_together(client: Client) -> None:
    path = f"/v1/jobs/{client.running()['job_id']}"
    wrong = {
        "job_stage": 5, "milestones": ["", "ok", 7], "progress": 1.5, "message": "x" * 1025, "fields": {"result": 1},
        "job_health": "x",
    }  # fmt: skip
    assert sorted(client.patch(path, wrong).pointers()) == sorted(
        ["/job_stage", "/milestones/0", "/milestones/2", "/progress", "/message", "/fields/result", "/job_health"]
    )
    assert client.get(path).ok()["milestones"] == []


@pytest.mark.parametrize("progress", ["-0.1", "1.0000001", "true", '"0.5"', "1e400", "[]", "-1e-300"])
def test_invalid_progress_is_refused(client: Client, progress: str) -> None:
    path = f"/v1/jobs/{client.running()['job_id']}"
    assert client.call("PATCH", path, body=f'{{"progress": {progress}}}').pointers() == ["/progress"]


@pytest.mark.parametrize(
    ("progress", "expected"), [("0", 0), ("1", 1), ("1.0", 1), ("1e-400", 0), ("-0.0", 0), ("0." + "3" * 90, 1 / 3)]
)
def test_progress_is_accepted_in_every_number_format(client: Client, progress: str, expected: float) -> None:
    path = f"/v1/jobs/{client.running()['job_id']}"
    assert float(client.call("PATCH", path, body=f'{{"progress": {progress}}}').ok()["progress"]) == expected


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, ["/error"]),
        ({"error": None}, ["/error"]),
        ({"error": "boom"}, ["/error"]),
        ({"error": {"code": "E"}}, ["/error/message"]),
        ({"error": {"code": "", "message": "x" * 1025, "stack": 1}}, ["/error/code", "/error/message", "/error/stack"]),
        ({"error": {"code": "E", "message": "m"}, "retryable": "yes"}, ["/retryable"]),
    ],
)
def test_failure_with_an_invalid_error_object_is_refused(client: Client, body: Any, pointers: list[str]) -> None:
    path = f"/v1/jobs/{client.running()['job_id']}"
    assert sorted(client.post(f"{path}/fail", body).pointers()) == sorted(pointers)
    assert client.get(path).ok()["status"] == "running"


@pytest.mark.parametrize("verb", ["start", "cancel", "retry"])
def test_unexpected_body_is_refused(client: Client, verb: str) -> None:
    path = f"/v1/jobs/{client.create()['job_id']}/{verb}"
    assert client.post(path, {"force": True}).pointers() == ["/force"]
    assert client.post(path, body="[]").pointers() == [""]
    client.post(path, body="{").problem(400, "MALFORMED_REQUEST")


def test_milestones_over_the_limit_are_refused(client: Client) -> None:
    path = f"/v1/jobs/{client.running()['job_id']}"
    assert client.patch(path, {"milestones": [str(n) for n in range(257)]}).pointers() == ["/milestones"]
    client.patch(path, {"milestones": [str(n) for n in range(256)]}).ok()
    assert client.patch(path, {"milestones": ["one more"]}).pointers() == ["/milestones"]


def test_error_response_lists_at_most_one_hundred_problems(client: Client) -> None:
    reply = client.post("/v1/jobs", {f"unknown{number}": 1 for number in range(1_000)})
    assert len(reply.pointers()) == 100


@pytest.mark.parametrize("letter", ["x", "é", "\x00", "/", "🚀"])
def test_error_response_for_huge_names_fits_the_lambda_limit(client: Client, letter: str) -> None:
    """Check the size of error responses that quote huge names: they must fit Lambda's response limit."""
    name = letter * (3_000_000 // len(dumps(letter).encode()))
    for target, body in [
        ("/v1/jobs", {"job_type": "t", name: 1}),
        ("/v1/jobs", {"job_type": "t", "fields": {name: 1}}),
        ("/v1/jobs", {"job_type": "t", "mutex": {"key": "m", name: 1}}),
        ("/v1/jobs/bulk", {"jobs": [{"job_type": "t", name: 1}]}),
        ("/v1/waits", {"wait_on": {"x": None}, name: 1}),
        ("/v1/waits", {"wait_on": {name: None}}),
        ("/v1/waits", {"wait_on": {"x": {name: None}}}),
        ("/v1/waits", {"wait_on": {"x": None}, "wait_options": {"get_fields": {name: None}}}),
    ]:
        reply = client.post(target, body, headers={"prefer": "wait=0"})
        assert reply.status in (200, 404, 422), (target, reply.status)
    assert stored() == 0


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_unknown_query_parameters_are_refused(client: Client, method: str) -> None:
    job = client.create()
    target = f"/v1/jobs/{job['job_id']}"
    assert client.call(method, f"{target}?force=1", {}).pointers() == ["?force"]
    assert client.get(target).ok()["status"] == "pending"
