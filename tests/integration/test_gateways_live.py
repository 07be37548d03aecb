"""Requests to SNS and to the WebSocket API, and the treatment of their responses."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber
from moto import mock_aws

from tests.support.table import aws
from vigil_core.domain.events.event import Event
from vigil_core.gateways.sns import SnsTopic
from vigil_core.gateways.websocket import WebSockets


def event(number: int, *, size: int = 10, job_type: str = "build") -> Event:
    return Event(
        event_id=f"job.{number}",
        type="vigil.job.completed",
        namespace="demo",
        subject="job",
        time=datetime(2026, 1, 31, tzinfo=UTC),
        data={"text": "x" * size},
        topics=(),
        audience="ending",
        attributes={"job_type": job_type, "job_id": "job"},
    )


class FakeSns:
    """SNS client with the operation `publish_batch`. It refuses the messages whose ids the test sets."""

    def __init__(self, refuse: set[str]) -> None:
        self.requests: list[list[Any]] = []
        self._refuse = refuse

    def publish_batch(self, *, TopicArn: str, PublishBatchRequestEntries: list[Any]) -> Any:
        assert TopicArn == "arn"
        self.requests.append(PublishBatchRequestEntries)
        refused = [e for e in PublishBatchRequestEntries if json.loads(e["Message"])["id"] in self._refuse]
        return {"Failed": [{"Id": entry["Id"], "Code": "InternalError", "SenderFault": False} for entry in refused]}


def publish(*events: Event, refuse: tuple[str, ...] = ()) -> tuple[list[list[str]], list[str]]:
    """Publish events. Return the event ids of each request, and the ids of the refused events."""
    client: Any = FakeSns(set(refuse))
    failed = SnsTopic(client, "arn").publish(events)
    ids = [[json.loads(entry["Message"])["id"] for entry in request] for request in client.requests]
    for request in client.requests:
        assert len({entry["Id"] for entry in request}) == len(request) <= 10
        assert len(json.dumps(request)) < 260 * 1024
    return ids, list(failed)


class TestSns:
    def test_events_are_published_in_requests_of_ten(self) -> None:
        ids, failed = publish(*(event(number) for number in range(23)))
        assert [len(request) for request in ids] == [10, 10, 3]
        assert [event_id for request in ids for event_id in request] == [f"job.{number}" for number in range(23)]
        assert failed == []

    def test_publish_request_stays_below_256_kb(self) -> None:
        ids, _ = publish(*(event(number, size=60 * 1024) for number in range(9)))
        assert [len(request) for request in ids] == [4, 4, 1]

    def test_no_events_make_no_request(self) -> None:
        assert publish() == ([], [])

    def test_events_refused_by_sns_are_returned(self) -> None:
        _, failed = publish(*(event(number) for number in range(12)), refuse=("job.3", "job.11"))
        assert failed == ["job.3", "job.11"]

    @pytest.mark.parametrize("odd", ["\uffff", "\ufffe", "\U0001f525", "ü"])
    def test_text_invalid_in_xml_is_delivered_through_a_filter_policy(self, odd: str) -> None:
        with mock_aws():
            sns, sqs = aws("sns"), aws("sqs")
            arn = sns.create_topic(Name="vigil")["TopicArn"]
            queue = sqs.create_queue(QueueName="heard")["QueueUrl"]
            policy = {"type": [{"prefix": "vigil.job."}], "job_type": [{"prefix": "build"}]}
            sns.subscribe(
                TopicArn=arn,
                Protocol="sqs",
                Endpoint="arn:aws:sqs:us-east-1:123456789012:heard",
                Attributes={"FilterPolicy": json.dumps(policy)},
            )
            assert SnsTopic(sns, arn).publish([event(1, job_type=f"build{odd}"), event(2, job_type="test")]) == {}
            (message,) = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10)["Messages"]
            body = json.loads(message["Body"])
            assert body["Message"].isascii()
            assert json.loads(body["Message"])["id"] == "job.1"
            assert body["MessageAttributes"]["job_type"]["Value"] in {f"build{odd}", "build\ufffd"}


class TestWebSockets:
    @pytest.mark.parametrize("operation", ["post_to_connection", "delete_connection"])
    def test_gone_connection_returns_false_and_other_errors_raise(self, operation: str) -> None:
        client = boto3.client("apigatewaymanagementapi", endpoint_url="http://localhost/live")
        sockets = WebSockets(client)
        posts = operation == "post_to_connection"

        def do() -> bool:
            return sockets.post("c1", '"hé"') if posts else sockets.close("c1")

        with Stubber(client) as stubber:
            stubber.add_response(operation, {}, {"ConnectionId": "c1", **({"Data": b'"h\\u00e9"'} if posts else {})})
            assert do()
            stubber.add_client_error(operation, "GoneException", http_status_code=410)
            assert not do()
            stubber.add_client_error(operation, "ForbiddenException", http_status_code=403)
            with pytest.raises(ClientError):
                do()
            stubber.assert_no_pending_responses()
