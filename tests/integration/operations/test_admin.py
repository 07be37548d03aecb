"""Operator requests to the admin function: API keys, and dead letters in a bucket and two queues, on moto."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from moto import mock_aws

from tests.support.events import sample
from tests.support.table import aws, create_table
from tests.support.world import World as UseCases
from vigil_core.api.admin import ACTIONS, Admin
from vigil_core.domain.access import TokenKind, parse_token
from vigil_core.gateways.dead_letter_bucket import DeadLetterBucket
from vigil_core.gateways.dead_letter_queue import DeadLetterQueue
from vigil_core.gateways.lambda_functions import LambdaFunctions
from vigil_core.services.auth.context import AuthContext
from vigil_core.services.operations.dead_letters import MAX_LISTED, DeadLettersContext
from vigil_core.store.auth.api_keys import ApiKeyStore
from vigil_core.store.auth.tickets import TicketStore
from vigil_core.store.namespaces import NamespaceStore

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
SOON = NOON + timedelta(minutes=5)
MATCHER = "arn:aws:lambda:us-east-1:123456789012:function:vigil-matcher"
NOTIFIER = "arn:aws:lambda:us-east-1:123456789012:function:vigil-notifier"
BUCKET = "dead-letters"
FIFO: Any = {"FifoQueue": "true"}
NOTHING_FAILED: dict[str, Any] = {"batchItemFailures": []}


class FakeLambda:
    """Lambda client with the operation `invoke`. The test sets the responses of the functions."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.answer: Callable[[str], Any] = lambda _function: NOTHING_FAILED

    def invoke(self, *, FunctionName: str, InvocationType: str, Payload: bytes) -> dict[str, Any]:
        assert InvocationType == "RequestResponse"
        self.calls.append((FunctionName, json.loads(Payload)))
        answer = self.answer(FunctionName)
        failed = isinstance(answer, dict) and "errorType" in answer
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        return {"Payload": io.BytesIO(body), **({"FunctionError": "Unhandled"} if failed else {})}


class World:
    """The admin function with its stores."""

    def __init__(self) -> None:
        self.now = NOON
        self.functions = FakeLambda()
        client: Any = self.functions
        self.s3 = aws("s3")
        self.s3.create_bucket(Bucket=BUCKET)
        self.sqs = aws("sqs")
        self.urls = {
            name: self.sqs.create_queue(QueueName=f"{name}{suffix}", Attributes=attributes)["QueueUrl"]
            for name, suffix, attributes in (
                ("fan_out", ".fifo", FIFO),
                ("fan_out-dead", ".fifo", FIFO),
                ("sweeper", "", {}),
                ("sweeper-dead", "", {}),
            )
        }
        numbers = count(1)
        table = create_table()
        keys = AuthContext(
            api_keys=ApiKeyStore(table),
            tickets=TicketStore(table),
            namespaces=NamespaceStore(table, now=lambda: self.now, concurrency=10),
            now=lambda: self.now,
            random_hex=lambda size: f"{next(numbers):0{2 * size}x}",
        )
        dead_letters = DeadLettersContext(
            bucket=DeadLetterBucket(self.s3, BUCKET),
            queues={
                name: DeadLetterQueue(
                    self.sqs, dead_letter_url=self.urls[f"{name}-dead"], source_url=self.urls[name], wait_time_s=0
                )
                for name in ("fan_out", "sweeper")
            },
            functions=LambdaFunctions(client),
            consumers=[MATCHER, NOTIFIER],
            now=lambda: self.now,
        )
        self.jobs = UseCases(table)
        self.jobs.time = NOON
        unused: Any = None
        self.admin = Admin(
            self.jobs.ctx,
            keys=keys,
            disconnect=lambda _namespace, _key_id: 3,
            dead_letters=dead_letters,
            contents=unused,
        )

    def ask(self, request: object) -> dict[str, Any]:
        answer = self.admin.handle(request, SOON)
        json.dumps(answer)  # Lambda must be able to serialize every response.
        return answer

    def store_dead_letter(self, key: str, function: str = MATCHER, payload: object = None) -> Any:
        """Store a dead letter as Lambda writes it when it discards a batch."""
        event = payload or {"Records": [{"eventID": key}]}
        dead_letter = {
            "requestContext": {"functionArn": function, "condition": "RetryAttemptsExhausted"},
            "payload": json.dumps(event),
        }
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=json.dumps(dead_letter).encode())
        return event

    def dead_letter_keys(self) -> list[str]:
        return [item["Key"] for item in self.s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])]

    def take(self, queue: str) -> list[tuple[str, str | None, Any]]:
        """Receive all messages of a queue: body, group and attributes of each."""
        received = []
        while messages := self.sqs.receive_message(
            QueueUrl=self.urls[queue],
            MaxNumberOfMessages=10,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["MessageGroupId"],
        ).get("Messages"):
            for message in messages:
                group = message.get("Attributes", {}).get("MessageGroupId")
                received.append((message["Body"], group, message.get("MessageAttributes", {})))
                self.sqs.delete_message(QueueUrl=self.urls[queue], ReceiptHandle=message["ReceiptHandle"])
        return received


@pytest.fixture
def world() -> Iterator[World]:
    with mock_aws():
        yield World()


def test_key_is_created_listed_and_revoked(world: World) -> None:
    created = world.ask(sample("admin_create_key"))
    token = parse_token(created["token"], TokenKind.API_KEY)
    assert token is not None
    assert created["key"] == {
        "namespace": "demo",
        "key_id": token.id,
        "name": "build farm",
        "scopes": ["submit", "work"],
        "created_at": "2026-11-21T12:00:00.000Z",
        "revoked_at": None,
    }

    assert world.ask(sample("admin_list_keys")) == {"keys": [created["key"]]}

    revoked = world.ask({**sample("admin_revoke_key"), "key_id": token.id})
    assert revoked == {"key": {**created["key"], "revoked_at": "2026-11-21T12:00:00.000Z"}, "disconnected": 3}
    assert world.ask(sample("admin_list_keys")) == {"keys": [revoked["key"]]}


@pytest.mark.parametrize(
    ("request_", "pointers"),
    [
        (None, [""]),
        ([], [""]),
        ("create_key", [""]),
        ({}, ["/action"]),
        ({"action": "drop_table"}, ["/action"]),
        ({"action": ["create_key"]}, ["/action"]),
        ({"action": "create_key"}, ["/namespace", "/scopes"]),
        ({"action": "create_key", "namespace": "demo", "scopes": ["read"], "token": "x"}, ["/token"]),
        ({"action": "create_key", "namespace": "demo#keys", "scopes": ["root"]}, ["/namespace", "/scopes/0"]),
        ({"action": "list_keys"}, ["/namespace"]),
        ({"action": "list_keys", "namespace": "demo", "page": 2}, ["/page"]),
        ({"action": "revoke_key", "namespace": "demo"}, ["/key_id"]),
        ({"action": "revoke_key", "namespace": {}, "key_id": "x"}, ["/namespace"]),
        ({"action": "list_dead_letters", "namespace": "demo"}, ["/namespace"]),
        ({"action": "redrive_dead_letters", "all": True}, ["/all"]),
        ({"action": "doctor", "namespace": "demo"}, ["/namespace"]),
        ({"action": "doctor", "fix": "yes"}, ["/fix"]),
        ({"action": "doctor", "fix": []}, ["/fix"]),
    ],
)
def test_invalid_admin_request_names_its_problems(world: World, request_: object, pointers: list[str]) -> None:
    answer = world.ask(request_)
    assert answer["error"] == "VALIDATION_FAILED"
    assert [problem["pointer"] for problem in answer["errors"]] == pointers
    assert world.ask({"action": "list_keys", "namespace": "demo"}) == {"keys": []}


@pytest.mark.parametrize("action", ACTIONS)
def test_every_documented_action_is_accepted(world: World, action: str) -> None:
    problems = world.ask({"action": action}).get("errors", [])
    assert "/action" not in [problem["pointer"] for problem in problems]


def test_dead_letters_are_listed_with_their_function_and_records(world: World) -> None:
    world.store_dead_letter("a", payload={"Records": [{}, {}]})
    world.store_dead_letter("b", NOTIFIER)
    world.s3.put_object(Bucket=BUCKET, Key="c", Body=b"somebody's notes")
    world.sqs.send_message(QueueUrl=world.urls["sweeper-dead"], MessageBody="{}")

    listed = world.ask(sample("admin_list_dead_letters"))
    assert [(batch["key"], batch["function"], batch["records"], batch["problem"]) for batch in listed["batches"]] == [
        ("a", MATCHER, 2, None),
        ("b", NOTIFIER, 1, None),
        ("c", None, None, "it is not valid JSON"),
    ]
    assert (listed["total"], listed["messages"]) == (3, {"fan_out": 0, "sweeper": 1})
    assert world.functions.calls == []


def test_long_dead_letter_list_is_truncated_with_its_total(world: World) -> None:
    for number in range(MAX_LISTED + 5):
        world.store_dead_letter(f"{number:04}")
    listed = world.ask(sample("admin_list_dead_letters"))
    assert (len(listed["batches"]), listed["total"]) == (MAX_LISTED, MAX_LISTED + 5)


def test_redrive_invokes_each_batch_on_its_function_and_removes_it(world: World) -> None:
    first, second = world.store_dead_letter("a"), world.store_dead_letter("b", f"{NOTIFIER}:$LATEST")
    report = world.ask(sample("admin_redrive_dead_letters"))
    assert report == {"batches": 2, "failed": [], "not_tried": 0, "messages": {"fan_out": 0, "sweeper": 0}}
    assert world.functions.calls == [(MATCHER, first), (NOTIFIER, second)]
    assert world.dead_letter_keys() == []


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"batchItemFailures": [{"itemIdentifier": "1"}]}, "1 records failed again"),
        ({"errorType": "KeyError", "errorMessage": "'pk'"}, "the function failed: KeyError: 'pk'"),
        (None, "the function did not report which records failed"),
        ({}, "the function did not report which records failed"),
        (b"<html>", "the response of the function is not valid JSON"),
    ],
)
def test_batch_that_fails_again_is_not_removed(world: World, answer: object, problem: str) -> None:
    world.store_dead_letter("bad")
    world.store_dead_letter("good", NOTIFIER)
    world.functions.answer = lambda function: answer if function == MATCHER else NOTHING_FAILED
    report = world.ask(sample("admin_redrive_dead_letters"))
    assert [(batch["key"], batch["problem"]) for batch in report["failed"]] == [("bad", problem)]
    assert report["batches"] == 1
    assert world.dead_letter_keys() == ["bad"]


def test_dead_letter_of_a_foreign_function_is_not_redriven(world: World) -> None:
    foreign_function = "arn:aws:lambda:us-east-1:123456789012:function:pay-everybody"
    world.store_dead_letter("a", foreign_function)
    report = world.ask(sample("admin_redrive_dead_letters"))
    assert report["failed"][0]["problem"] == f"{foreign_function} is not a consumer of this stack"
    assert world.functions.calls == []
    assert world.dead_letter_keys() == ["a"]


def test_redrive_stops_before_its_deadline_and_reports_the_rest(world: World) -> None:
    for key in ("a", "b", "c", "d", "e", "f"):
        world.store_dead_letter(key)

    def slow(function: str) -> object:
        world.now += timedelta(seconds=60)
        return NOTHING_FAILED

    world.functions.answer = slow
    report = world.ask(sample("admin_redrive_dead_letters"))
    assert (report["batches"], report["not_tried"]) == (4, 2)
    assert world.now <= SOON
    assert world.dead_letter_keys() == ["e", "f"]


def test_redriven_messages_return_to_their_queue_with_attributes(world: World) -> None:
    attributes: Any = {"kind": {"DataType": "String", "StringValue": "wide"}}
    for number in range(23):
        world.sqs.send_message(
            QueueUrl=world.urls["sweeper-dead"], MessageBody=f"due {number}", MessageAttributes=attributes
        )
    report = world.ask(sample("admin_redrive_dead_letters"))
    assert report["messages"] == {"fan_out": 0, "sweeper": 23}
    assert world.take("sweeper-dead") == []
    expected = [(f"due {number}", None, attributes) for number in range(23)]
    assert sorted(world.take("sweeper"), key=str) == sorted(expected, key=str)
    assert world.take("fan_out") == []


def test_redriven_fifo_messages_retain_group_and_order(world: World) -> None:
    for number in range(12):
        for group in ("a", "b"):
            world.sqs.send_message(
                QueueUrl=world.urls["fan_out-dead"],
                MessageBody=f"{group} {number}",
                MessageGroupId=group,
                MessageDeduplicationId=f"{group}{number}",
            )
    report = world.ask(sample("admin_redrive_dead_letters"))
    assert report["messages"] == {"fan_out": 24, "sweeper": 0}
    assert world.take("fan_out-dead") == []
    home = world.take("fan_out")
    for group in ("a", "b"):
        assert [body for body, of, _ in home if of == group] == [f"{group} {number}" for number in range(12)]


def test_redrive_within_the_deduplication_window_still_delivers(world: World) -> None:
    """Redrive a message while its queue still remembers the deduplication id of the first delivery."""
    message: Any = {"MessageBody": "page", "MessageGroupId": "a", "MessageDeduplicationId": "1"}
    world.sqs.send_message(QueueUrl=world.urls["fan_out"], **message)
    assert len(world.take("fan_out")) == 1
    world.sqs.send_message(QueueUrl=world.urls["fan_out-dead"], **message)
    world.ask(sample("admin_redrive_dead_letters"))
    assert len(world.take("fan_out")) == 1


def test_doctor_action_returns_findings_and_repair_outcomes(world: World) -> None:
    healthy = {"findings": [], "more": False, "examined": {"due": 0, "queues": 0, "jobs": 0}}
    assert world.ask(sample("admin_doctor")) == healthy

    job_id = world.jobs.job(scheduled_at=NOON + timedelta(minutes=1))
    world.jobs.pass_time(600)
    world.store_dead_letter("a")
    until = world.jobs.time + timedelta(minutes=5)
    overdue, dead = world.admin.handle(sample("admin_doctor"), until)["findings"]
    assert overdue == {
        "kind": "job_overdue",
        "namespace": "team",
        "id": job_id,
        "problem": "it is scheduled, and its timer is overdue",
        "since": "2026-11-21T12:01:00.000Z",
        "repair_hint": "apply its timers",
        "repaired": False,
        "outcome": None,
    }
    assert (dead["kind"], dead["namespace"], dead["id"]) == ("dead_letters", None, "dead-letters")

    report = world.admin.handle({"action": "doctor", "fix": True}, until)
    assert [(each["repaired"], each["outcome"]) for each in report["findings"]] == [
        (True, "done"),
        (True, "1 batches handled, 0 messages sent back"),
    ]
    assert world.dead_letter_keys() == []
    assert world.admin.handle({"action": "doctor"}, until)["findings"] == []
