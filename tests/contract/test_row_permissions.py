"""The roles limit kinds of rows: each function reaches the keys that it needs, and no credentials that it does not."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

import functions.admin.handler
import functions.http_executor.handler
import functions.webhooks.handler
import functions.websocket.handler
from benchmarks.harness import NAMESPACE, Harness, open_harness
from tests.support.api import BODIES, LambdaContext
from tests.support.events import sample
from tests.support.row_expiry import require_ttls
from tests.support.template import resources
from vigil_core import wiring
from vigil_core.gateways.lambda_functions import LambdaExecutors
from vigil_core.gateways.outbound_http import HttpResponse
from vigil_core.gateways.websocket import WebSockets
from vigil_core.services.auth.api_keys import create_key
from vigil_core.services.background import sweeper
from vigil_core.store import keys
from vigil_core.store.table import DynamoTable, Put

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).resolve().parents[2]
TIMER_ARNS = {
    "TIMER_ROLE": "arn:aws:iam::123456789012:role/timer",
    "SWEEPER_FUNCTION": "arn:aws:lambda:us-east-1:123456789012:function:vigil-sweeper",
}
ACTION_OF = {
    "get": "dynamodb:GetItem",
    "batch_get": "dynamodb:BatchGetItem",
    "query_page": "dynamodb:Query",
    "count": "dynamodb:Query",
    "put": "dynamodb:PutItem",
    "update": "dynamodb:UpdateItem",
    "delete": "dynamodb:DeleteItem",
    "batch_write": "dynamodb:BatchWriteItem",
    "transact": "dynamodb:PutItem",
}
"""The action of each call to the table. The actions of a transaction are permitted one by one; most are puts."""


class Recorder:
    """The partition keys that each function has read or written."""

    def __init__(self) -> None:
        self.function = "nobody"
        self.touched: set[tuple[str, str, str, str | None]] = set()
        self.entities: set[str] = set()

    @contextmanager
    def running(self, function: str) -> Iterator[None]:
        before, self.function = self.function, function
        # In this process, an earlier function has filled the cache. In a process of its own, each function reads.
        wiring.context().limits.namespaces._cache.clear()
        try:
            yield
        finally:
            self.function = before

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ACTION_OF:
            monkeypatch.setattr(DynamoTable, name, self._recorded(name))

    def _recorded(self, name: str) -> Any:
        call = getattr(DynamoTable, name)

        def recorded(table: DynamoTable, *args: Any, **named: Any) -> Any:
            for pk in partition_keys(name, args, named):
                self.touched.add((self.function, name, pk, named.get("index")))
            return call(table, *args, **named)

        return recorded


def partition_keys(name: str, args: Sequence[Any], named: Any) -> Iterator[str]:
    match name:
        case "get":
            yield args[0].pk
        case "batch_get":
            yield from (key.pk for key in args[0])
        case "query_page" | "count":
            yield args[0]
        case "batch_write":
            yield from (row["pk"] for row in named.get("puts", args[0] if args else ()))
            yield from (key.pk for key in named.get("deletes", args[1] if len(args) > 1 else ()))
        case "transact":
            for action in args[0]:
                yield action.row["pk"] if isinstance(action, Put) else action.key.pk
        case _:
            yield args[0].row["pk"] if isinstance(args[0], Put) else args[0].key.pk


def statements(function: str) -> list[dict[str, Any]]:
    """Return the statements of the role of a function."""
    (properties,) = (
        properties
        for properties in resources("AWS::Serverless::Function").values()
        if properties["CodeUri"] == f"functions/{function}/"
    )
    return [statement for policy in properties["Policies"] for statement in policy["Statement"]]


def _leading_keys(statement: dict[str, Any]) -> list[str]:
    condition = statement.get("Condition", {}).get("ForAllValues:StringLike", {})
    return list(condition.get("dynamodb:LeadingKeys", []))


def _actions(statement: dict[str, Any]) -> list[str]:
    return statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]


def allows(function: str, pk: str) -> bool:
    """Return whether any statement of a function allows a partition key."""
    return any(fnmatchcase(pk, pattern) for statement in statements(function) for pattern in _leading_keys(statement))


def allows_call(function: str, call: str, pk: str, index: str | None) -> bool:
    """Return whether a statement of a function allows a call, on the table or on an index."""
    resource = "Table.Arn" if index is None else f"index/{index}"
    return any(
        fnmatchcase(pk, pattern)
        for statement in statements(function)
        if ACTION_OF[call] in _actions(statement)
        and resource in json.dumps(statement["Resource"])
        and (index is not None or "index/" not in json.dumps(statement["Resource"]))
        for pattern in _leading_keys(statement)
    )


RARE = frozenset(
    {"namespace", "postponed_record", "recount", "record_attempts", "request_window", "socket_backlog", "work_slots"}
)
"""Rows that limits, failures and slow receivers cause. Their own tests write them, with the same check."""
LIMITED = (
    "authorizer", "api", "websocket", "matcher", "notifier", "fan_out", "sweeper", "http_executor", "supervisor",
    "webhooks",
)  # fmt: skip
"""The functions with patterns. The admin function examines and deletes rows of every kind for operators."""
CREDENTIALS = {
    "demo#keys": {"authorizer", "websocket"},
    "demo#ticket#t": {"authorizer", "api"},
    "demo#signing-key": {"api"},
    "demo#key#k": {"websocket", "notifier", "fan_out"},
    "demo#webhooks": {"api", "websocket", "notifier", "sweeper", "webhooks"},
}
"""The rows with secrets, and the functions that may reach them."""


@pytest.mark.parametrize("pk", CREDENTIALS)
def test_only_the_named_functions_reach_rows_with_secrets(pk: str) -> None:
    assert {function for function in LIMITED if allows(function, pk)} == CREDENTIALS[pk]


@pytest.mark.parametrize("function", LIMITED)
def test_each_statement_on_the_table_limits_the_kinds_of_rows(function: str) -> None:
    for statement in statements(function):
        if set(_actions(statement)) & set(ACTION_OF.values()):
            assert _leading_keys(statement), (function, statement["Sid"])


def test_authorizer_and_webhooks_write_only_what_they_need() -> None:
    def writable(function: str) -> set[tuple[str, str]]:
        return {
            (action.removeprefix("dynamodb:"), pattern)
            for statement in statements(function)
            for action in _actions(statement)
            if action.startswith(("dynamodb:Put", "dynamodb:Update", "dynamodb:Delete", "dynamodb:BatchWrite"))
            for pattern in _leading_keys(statement)
        }

    assert writable("authorizer") == {("DeleteItem", "*#ticket#*")}
    assert writable("webhooks") == {
        ("PutItem", "*#deliveries#*"),
        ("PutItem", "*#webhooks"),
        ("UpdateItem", "*#slots"),
    }


NAMED_SAMPLES = {"namespace": "demo", "group": "notifier#job#x"}


def every_key() -> Iterator[str]:
    """Build a partition key with each function of `keys`, from sample arguments."""
    samples: dict[str, Any] = {
        "date": date(2026, 1, 31), "datetime": datetime(2026, 1, 31, tzinfo=UTC), "int": 1, "LockKind": "mutex",
        "ListName": "jobs", "DueKind": "run", "CounterName": "jobs",
    }  # fmt: skip
    for name, build in inspect.getmembers(keys, inspect.isfunction):
        if build.__module__ != keys.__name__ or name.startswith("_"):
            continue
        signature = inspect.signature(build)
        if signature.return_annotation != "Key":
            continue
        arguments = [
            NAMED_SAMPLES.get(parameter.name) or samples.get(parameter.annotation, "x")
            for parameter in signature.parameters.values()
            if parameter.default is inspect.Parameter.empty
        ]
        yield build(*arguments).pk


def test_each_kind_of_row_is_reachable_by_a_function() -> None:
    for pk in every_key():
        assert any(allows(function, pk) for function in LIMITED), f"no role allows {pk}: add its kind to the template"


# What the functions really touch


LISTS = (
    "jobs", "jobs?correlation_id=c", "waits", "workflows", "queues", "queues/default", "usage",
    "job-types", "schedules", "webhooks", "webhooks/hook/deliveries",
)  # fmt: skip


class Target:
    """HTTP client that answers every request."""

    def request(self, *_: object, **__: object) -> HttpResponse:
        return HttpResponse(status=200, headers={}, body=b"{}")


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    """Run every capability through the functions, and record the keys that each of them touches."""
    recorder = Recorder()
    calls: list[str] = []
    with pytest.MonkeyPatch.context() as monkeypatch, mock_aws():
        monkeypatch.setattr(LambdaExecutors, "call_http", lambda _, event: calls.append(event))
        monkeypatch.setattr(LambdaExecutors, "invoke_lambda", lambda *_: None)
        monkeypatch.setattr(wiring, "outbound_http", Target)
        monkeypatch.setattr(wiring, "secret_values", lambda: None)
        monkeypatch.setattr(WebSockets, "post", lambda *_: True)
        monkeypatch.setattr(WebSockets, "close", lambda *_: True)
        url = boto3.client("sqs").create_queue(QueueName="webhooks")["QueueUrl"]
        boto3.client("s3").create_bucket(Bucket=BODIES)
        boto3.client("scheduler").create_schedule_group(Name="timers")
        for name, value in {
            "WEBHOOKS_QUEUE_URL": url,
            "TIMER_GROUP": "timers",
            "PAYLOAD_BUCKET": BODIES,
            **TIMER_ARNS,
        }.items():
            monkeypatch.setenv(name, value)
        with open_harness() as harness:
            record(harness, recorder, monkeypatch)
            exercise(harness, recorder, calls)
    return recorder


def record(harness: Harness, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Record the calls to the table under the function that the harness runs, and check that each row expires."""
    require_ttls(monkeypatch, record=lambda row: recorder.entities.add(row["entity"]))
    recorder.install(monkeypatch)
    run = harness._run

    def recorded_run(function: str, work: Any) -> Any:
        with recorder.running(function):
            return run(function, work)

    monkeypatch.setattr(harness, "_run", recorded_run)


def exercise(harness: Harness, recorder: Recorder, calls: list[str]) -> None:
    """Use every capability once."""
    with recorder.running("admin"):
        key, token = create_key(wiring.auth_context(), NAMESPACE, ["admin"])
    access = {"namespace": NAMESPACE, "scopes": "admin", "key_id": key.key_id}
    websocket(recorder, access, "CONNECT")
    websocket(recorder, access, "MESSAGE", '{"action": "subscribe", "id": "s", "topics": ["namespace"]}')
    harness.authorize({**sample("authorizer_http"), "headers": {"authorization": f"Bearer {token.to_text()}"}})
    ticket = harness.call("POST", "/v1/tickets", {}).ok(201)
    event = sample("authorizer_websocket_ticket")
    harness.authorize({**event, "queryStringParameters": {"ticket": ticket["ticket"]}})
    harness.call("PUT", "/v1/webhooks/hook", {"url": "https://a.example/", "events": ["*"]}).ok(201)
    harness.call("PUT", "/v1/job-types/post", {"executor": "http", "target": {"url": "https://a.example/"}}).ok(201)
    harness.call("PUT", "/v1/job-types/call", {"executor": "lambda", "target": {"function": "f-task"}}).ok(201)
    for job_type in ("post", "call", "plain"):
        harness.call("POST", "/v1/jobs", {"job_type": job_type, "payload": {"a": 1}, "correlation_id": "c"}).ok(202)
    harness.settle_all()
    for call in calls:
        with recorder.running("http_executor"):
            functions.http_executor.handler.handler(json.loads(call), LambdaContext())
    exercise_jobs(harness)
    exercise_runs(harness)
    with recorder.running("api"):
        harness.client.post("/v1/jobs", {"job_type": "plain"}, headers={"idempotency-key": "once"}).ok(202)
    harness.call("PUT", "/v1/schedules/s", {"cron": "* * * * *", "job": {"job_type": "plain"}})
    harness.settle_all()
    exercise_time(recorder)
    websocket(recorder, access, "DISCONNECT")
    for path in LISTS:
        harness.call("GET", f"/v1/{path}").ok()


def websocket(recorder: Recorder, access: dict[str, str], kind: str, body: str | None = None) -> None:
    context = {"authorizer": access, "connectionId": "c1", "eventType": kind}
    with recorder.running("websocket"):
        functions.websocket.handler.handler({"requestContext": context, "body": body}, LambdaContext())


def exercise_jobs(harness: Harness) -> None:
    first = harness.call("POST", "/v1/jobs", {"job_type": "plain", "unique_key": "u"}).ok(202)
    mutex = {"job_type": "plain", "mutex": {"key": "m", "on_conflict": "queue"}}
    for _ in range(2):
        harness.call("POST", "/v1/jobs", mutex)
    harness.call("POST", "/v1/jobs", {"job_type": "plain", "depends_on": [first["job_id"]]}).ok(202)
    harness.call("POST", "/v1/jobs", {"job_type": "plain", "batch": [1, 2]}).ok(202)
    others = [harness.call("POST", "/v1/jobs", {"job_type": "plain"}).ok(202)["job_id"] for _ in range(6)]
    harness.call("POST", "/v1/waits", {"wait_on": dict.fromkeys(others[:2])}, wait_s=0).ok()
    harness.call("POST", "/v1/waits", {"wait_on": dict.fromkeys(others)}, wait_s=0).ok()
    harness.settle_all()
    claim = {"worker": "w", "lease": 60, "claim_id": "x", "max": 10}
    for _ in range(3):
        for job in harness.call("POST", "/v1/queues/default/claim", claim, wait_s=0).ok()["jobs"]:
            path = f"/v1/jobs/{job['job_id']}"
            harness.call("POST", f"{path}/heartbeat", {"lease_token": job["lease_token"]}).ok()
            harness.call("POST", f"{path}/complete", {"lease_token": job["lease_token"], "result": 1})
        claim = {**claim, "claim_id": f"{claim['claim_id']}x"}
        harness.settle_all()
    harness.call("GET", f"/v1/jobs/{first['job_id']}/events").ok()
    harness.call("DELETE", f"/v1/jobs/{first['job_id']}")
    harness.call("POST", "/v1/queues/other/pause").ok()
    waited = {others[0]: {"job_stage": "complete"}}
    harness.call("POST", "/v1/waits", {"wait_on": {others[5]: None}, "waited_jobs": waited}, wait_s=0).ok()
    tracked = harness.call("POST", "/v1/jobs", {"job_type": "plain"}).ok(202)["job_id"]
    harness.call("POST", f"/v1/jobs/{tracked}/start").ok()
    for number in range(12):
        harness.call("PATCH", f"/v1/jobs/{tracked}", {"milestones": [f"m{number}"]}).ok()
    upload = harness.call("POST", "/v1/uploads", {"size": 1}).ok(201)["reference"]
    boto3.client("s3").put_object(Bucket=BODIES, Key=f"uploads/{NAMESPACE}/{upload}", Body=b"1")
    harness.call("POST", f"/v1/jobs/{tracked}/complete", {"result_ref": upload}).ok()
    harness.settle_all()


def exercise_runs(harness: Harness) -> None:
    jobs = [{"name": "a"}, {"name": "other"}, {"name": "b", "depends_on": ["a"]}]
    body = {"name": "r", "jobs": jobs, "max_concurrency": 1, "output": "a.result"}
    run_id = harness.call("POST", "/v1/workflows", body).ok(202)["workflow_id"]
    harness.settle_all()
    for _ in range(4):
        complete_claimed(harness)
    harness.call("GET", f"/v1/workflows/{run_id}").ok()
    harness.call("GET", f"/v1/jobs?workflow_id={run_id}").ok()
    other = harness.call("POST", "/v1/workflows", body).ok(202)["workflow_id"]
    harness.call("POST", f"/v1/workflows/{other}/cancel")
    harness.settle_all()
    manual = {"name": "m", "jobs": [{"name": "a", "queue": "manual"}], "failure_policy": "manual"}
    paused = harness.call("POST", "/v1/workflows", manual).ok(202)["workflow_id"]
    harness.settle_all()
    (job,) = harness.call("POST", "/v1/queues/manual/claim", {"worker": "w", "lease": 60}, wait_s=0).ok()["jobs"]
    error = {"error": {"code": "BROKEN", "message": "it broke"}, "lease_token": job["lease_token"]}
    harness.call("POST", f"/v1/jobs/{job['job_id']}/fail", error).ok()
    harness.settle_all()
    harness.call("POST", f"/v1/workflows/{paused}/decisions", {"job": "a", "action": "skip"}).ok()
    harness.settle_all()


def complete_claimed(harness: Harness) -> None:
    for job in harness.call("POST", "/v1/queues/default/claim", {"worker": "w", "lease": 60}, wait_s=0).ok()["jobs"]:
        report = {"lease_token": job["lease_token"], "result": {"rows": 1}}
        harness.call("POST", f"/v1/jobs/{job['job_id']}/complete", report).ok()
    harness.settle_all()


def exercise_time(recorder: Recorder) -> None:
    """Process each row of the due index as the sweeper does, whether or not it is due."""
    ctx = wiring.context()
    with recorder.running("sweeper"):
        for partition in range(keys.DUE_PARTITIONS):
            sweeper.sweep(ctx, partition)
            for due in list(ctx.due_index.overdue(partition, datetime(9000, 1, 1, tzinfo=UTC))):
                sweeper.process_due(ctx, due)
    with recorder.running("webhooks"):
        queue = os.environ["WEBHOOKS_QUEUE_URL"]
        messages = boto3.client("sqs").receive_message(QueueUrl=queue, MaxNumberOfMessages=10)["Messages"]
        records = [{"messageId": message["MessageId"], "body": message["Body"]} for message in messages]
        functions.webhooks.handler.handler({"Records": records}, LambdaContext())


def test_functions_touch_only_the_rows_of_their_patterns(recorder: Recorder) -> None:
    recorded = {function for function, *_ in recorder.touched}
    assert set(LIMITED) <= recorded, "the scenario runs every function"
    refused = sorted(
        (function, ACTION_OF[call], pk, index or "")
        for function, call, pk, index in recorder.touched
        if function in LIMITED and not allows_call(function, call, pk, index)
    )
    kinds = {(function, action, pk.split("#")[1], index) for function, action, pk, index in refused}
    assert not refused, kinds


def test_each_documented_kind_of_row_is_written_and_expires(recorder: Recorder) -> None:
    """Note: the recorder checks each written row for a TTL."""
    text = (ROOT / "docs" / "data_model.md").read_text().partition("## Rows")[2].partition("Indexes contain")[0]
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE))
    assert recorder.entities <= documented, "the table of rows in docs/data_model.md lacks a kind"
    missing = documented - recorder.entities
    assert missing <= RARE, f"extend the scenario, so that it writes {sorted(missing - RARE)}"
