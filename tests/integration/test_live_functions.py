"""The WebSocket function and the notifier, invoked with the sample payloads on moto."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from moto import mock_aws

from functions.notifier import handler as notifier
from functions.websocket import handler as websocket
from tests.support.dead_letters import FUNCTION, FakeDeadLetters
from tests.support.events import sample
from tests.support.live import FakeSockets, envelopes, stored, types
from tests.support.table import TABLE_NAME, aws, create_table
from vigil_core import wiring
from vigil_core.domain.access import ApiKey, Scope
from vigil_core.domain.timestamps import to_epoch_s
from vigil_core.runtime.settings import MissingSetting
from vigil_core.store.auth.api_keys import ApiKeyStore
from vigil_core.store.jobs.job_rows import job_from_row, job_to_row
from vigil_core.store.stream import progress_from_row, stream_records
from vigil_core.store.table import DynamoTable, Put
from vigil_core.store.waits.wait_rows import wait_from_row, wait_to_row

CONNECTION = sample("websocket_connect")["requestContext"]["connectionId"]
KEY = sample("websocket_connect")["requestContext"]["authorizer"]["key_id"]
NOTIFIER_SAMPLES = ["notifier_job_completed", "notifier_progress", "notifier_wait_met"]
CACHED = (wiring.dynamodb, wiring.context, wiring.api_keys, wiring.sns_topic)


class Deployed:
    """The functions, a table with the rows of the samples, and a queue that receives every message of the SNS topic."""

    def __init__(self, table: DynamoTable, queue_url: str, sockets: FakeSockets) -> None:
        self.table = table
        self.sockets = sockets
        self._queue_url = queue_url

    @property
    def received(self) -> list[Any]:
        return self.sockets.frames.get(CONNECTION, [])

    def send_sample(self, name: str) -> list[Any]:
        """Send the message of a sample and return the response frames."""
        before = len(self.received)
        assert websocket.handler(sample(name), None) == {"statusCode": 200}
        return self.received[before:]

    def sns_messages(self) -> list[Any]:
        """Return the messages of the SNS topic."""
        answer: Any = aws("sqs").receive_message(QueueUrl=self._queue_url, MaxNumberOfMessages=10)
        return [json.loads(message["Body"]) for message in answer.get("Messages", [])]


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployed]:
    with mock_aws():
        table = create_table()
        for name in NOTIFIER_SAMPLES:
            (record,) = stream_records(sample(name))
            row = record.new()
            assert row is not None
            # The samples have an old date, but their rows must not be expired.
            table.put(Put(row=row | {"ttl": to_epoch_s(datetime.now(UTC)) + 86_400}))
        ApiKeyStore(table).add(
            ApiKey(
                namespace="demo",
                key_id=KEY,
                secret_hash="",
                scopes=frozenset({Scope.READ}),
                name=None,
                created_at=datetime.now(UTC),
            )
        )
        topic = aws("sns").create_topic(Name="vigil")["TopicArn"]
        queue = aws("sqs").create_queue(QueueName="heard")["QueueUrl"]
        aws("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint="arn:aws:sqs:us-east-1:123456789012:heard")
        monkeypatch.setenv("TABLE_NAME", TABLE_NAME)
        monkeypatch.setenv("TOPIC_ARN", topic)
        sockets = FakeSockets()
        monkeypatch.setattr(websocket, "web_sockets", lambda: sockets)
        monkeypatch.setattr(notifier, "web_sockets", lambda: sockets)
        for built in CACHED:
            built.cache_clear()
        yield Deployed(table, queue, sockets)
        for built in CACHED:
            built.cache_clear()


def test_websocket_samples_get_their_responses_and_leave_no_rows(deployed: Deployed) -> None:
    assert websocket.handler(sample("websocket_connect"), None) == {"statusCode": 200}
    assert deployed.send_sample("websocket_ping") == [{"type": "pong", "id": "p1", "data": {}}]
    ack, *frames = deployed.send_sample("websocket_subscribe")
    assert (ack["type"], ack["id"], len(ack["data"]["topics"])) == ("ack", "s1", 4)
    # The job started more than 24 hours ago, so its start is not replayed.
    assert types(frames) == ["job.completed", "wait.met"]
    ack, *frames = deployed.send_sample("websocket_wait")
    assert (ack["id"], ack["data"]["status"]) == ("w1", "met")
    assert types(frames) == ["wait.met"]
    assert deployed.send_sample("websocket_unsubscribe")[0]["type"] == "ack"
    assert websocket.handler(sample("websocket_disconnect"), None) == {"statusCode": 200}
    assert not [row for row in stored(deployed.table) if row["entity"]["S"] in ("connection", "subscription")]


def test_revoked_key_gets_no_socket(deployed: Deployed) -> None:
    ApiKeyStore(deployed.table).revoke("demo", KEY, datetime.now(UTC))
    assert websocket.handler(sample("websocket_connect"), None) == {"statusCode": 403}


@pytest.mark.parametrize("route", ["$connect", "$disconnect", "subscribe"])
def test_message_action_cannot_choose_the_route(deployed: Deployed, route: str) -> None:
    """Check that the action in a message is not used as the route of API Gateway."""
    event = sample("websocket_ping")
    event["requestContext"]["routeKey"] = route
    assert websocket.handler({**event, "body": json.dumps({"action": route})}, None) == {"statusCode": 200}
    assert [frame["type"] for frame in deployed.received] == ["error"]


def test_message_without_a_body_is_malformed(deployed: Deployed) -> None:
    event = sample("websocket_ping")
    del event["body"]
    assert websocket.handler(event, None) == {"statusCode": 200}
    assert deployed.received[0]["data"]["error"] == "MALFORMED_REQUEST"


def test_notifier_samples_are_published_to_sockets_and_sns(deployed: Deployed) -> None:
    websocket.handler(sample("websocket_connect"), None)
    replayed = envelopes(deployed.send_sample("websocket_subscribe")[1:])
    before = len(deployed.received)
    for name in NOTIFIER_SAMPLES:
        assert notifier.handler(sample(name), FUNCTION) == {"batchItemFailures": []}
    published = envelopes(deployed.received[before:])
    assert [envelope["type"] for envelope in published] == [
        "vigil.job.completed",
        "vigil.job.progress",
        "vigil.wait.met",
    ]
    assert [published[0], published[2]] == replayed
    announced = deployed.sns_messages()
    assert [json.loads(message["Message"]) for message in announced] == [published[0], published[2]]
    attributes = [
        {name: attribute["Value"] for name, attribute in message["MessageAttributes"].items()} for message in announced
    ]
    job_id, wait_id = published[0]["subject"], published[2]["subject"]
    assert attributes == [
        {"type": "vigil.job.completed", "namespace": "demo", "job_type": "build", "job_id": job_id},
        {"type": "vigil.wait.met", "namespace": "demo", "wait_id": wait_id},
    ]


def test_all_job_events_go_to_sns_when_enabled(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    event = sample("notifier_job_completed")
    image = event["Records"][0]["dynamodb"]
    image["NewImage"] = image.pop("OldImage")
    notifier.handler(event, FUNCTION)
    assert deployed.sns_messages() == []
    monkeypatch.setenv("SNS_JOB_EVENTS", "all")
    notifier.handler(event, FUNCTION)
    assert [json.loads(message["Message"])["type"] for message in deployed.sns_messages()] == ["vigil.job.started"]


def test_unreadable_record_is_a_dead_letter_and_others_are_published(
    deployed: Deployed, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead_letters = FakeDeadLetters()
    monkeypatch.setattr(notifier, "dead_letters", lambda: dead_letters)
    good, bad = sample("notifier_job_completed")["Records"] + sample("notifier_progress")["Records"]
    bad["dynamodb"]["NewImage"] = {"entity": {"S": "live"}}
    assert notifier.handler({"Records": [good, bad]}, FUNCTION) == {"batchItemFailures": []}
    assert list(dead_letters.stored) == [f"vigil/notifier/{bad['dynamodb']['SequenceNumber']}"]
    assert len(deployed.sns_messages()) == 1
    _, error = caplog.records
    assert (error.levelname, vars(error)["row"]) == ("ERROR", (bad["dynamodb"]["Keys"]["pk"]["S"], "B"))


@pytest.mark.parametrize("name", [*NOTIFIER_SAMPLES, "websocket_subscribe", "websocket_ping", "websocket_disconnect"])
def test_each_invocation_logs_one_line_without_private_data(
    deployed: Deployed, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    if name.startswith("notifier"):
        notifier.handler(sample(name), FUNCTION)
    else:
        websocket.handler(sample(name), None)
    (line,) = caplog.records
    assert line.levelname == "INFO"
    assert not [word for word in ("half way", "arm64", "nightly") if word in str(vars(line))]


@pytest.mark.parametrize("missing", ["TABLE_NAME", "TOPIC_ARN"])
def test_missing_setting_is_named(deployed: Deployed, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.delenv(missing)
    with pytest.raises(MissingSetting, match=missing):
        notifier.handler(sample("notifier_job_completed"), FUNCTION)


def test_notifier_samples_have_the_shape_of_stored_rows() -> None:
    """Check the samples against the stores: a row that no store writes would be a useless sample."""
    (job,), (live,), (wait,) = (stream_records(sample(name)) for name in NOTIFIER_SAMPLES)
    for row in (job.old(), job.new()):
        assert row is not None
        assert {name: value for name, value in job_to_row(job_from_row(row)).items() if value is not None} == row
    ended, progress_row = wait.new(), live.new()
    assert ended is not None
    assert progress_row is not None
    rewritten = {name: value for name, value in wait_to_row(wait_from_row(ended)).items() if value is not None}
    assert {name: rewritten[name] for name in ended} == ended
    assert progress_from_row(progress_row).message == "half way"
