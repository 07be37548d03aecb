"""Event source mappings: their settings, their events, and their reports on discarded records."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.local.streams import (
    BUCKET,
    FUNCTION,
    NOON,
    STREAM,
    described_mapping,
    mapping,
    raw_record,
    records,
)
from vigil.local.event_source_mapping import (
    MAX_PAYLOAD_BYTES,
    NO_LIMIT,
    Record,
    StreamMapping,
    failure_key,
    failure_record,
    payload,
    take_batch,
)


def test_absent_mapping_settings_have_the_aws_defaults() -> None:
    parsed = StreamMapping.parse(described_mapping())
    assert parsed.maximum_retries == NO_LIMIT
    assert parsed.maximum_age_s == NO_LIMIT
    assert parsed.parallelization == 1
    assert parsed.batching_window_s == 0
    assert not parsed.bisects
    assert not parsed.reports_item_failures
    assert parsed.failure_destination is None
    assert parsed.patterns == ()


def test_zero_retries_are_not_read_as_unlimited() -> None:
    assert mapping(MaximumRetryAttempts=0).maximum_retries == 0


@pytest.mark.parametrize(("state", "enabled"), [("Enabled", True), ("Updating", True), ("Disabled", False)])
def test_mapping_is_enabled_by_its_state(state: str, enabled: bool) -> None:
    assert mapping(State=state).enabled is enabled


def test_record_is_encoded_as_lambda_sends_it() -> None:
    record_with_bytes = raw_record(7, NewImage={"pk": {"S": "a"}, "raw": {"B": b"\x00\xff"}, "set": {"BS": [b"\x01"]}})
    record_with_bytes["userIdentity"] = {"PrincipalId": "dynamodb.amazonaws.com", "Type": "Service"}
    (event,) = json.loads(payload([Record.parse(record_with_bytes, mapping())]))["Records"]
    assert event == {
        "eventID": "event-7",
        "eventName": "INSERT",
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "us-east-1",
        "eventSourceARN": STREAM,
        "userIdentity": {"type": "Service", "principalId": "dynamodb.amazonaws.com"},
        "dynamodb": {
            "ApproximateCreationDateTime": int(NOON.timestamp()),
            "Keys": {"pk": {"S": "item-7"}, "sk": {"S": "A"}},
            "NewImage": {"pk": {"S": "a"}, "raw": {"B": "AP8="}, "set": {"BS": ["AQ=="]}},
            "SequenceNumber": "7",
            "SizeBytes": 26,
            "StreamViewType": "NEW_AND_OLD_IMAGES",
        },
    }


def test_records_with_the_same_partition_key_share_a_partition() -> None:
    first = Record.parse(raw_record(1, Keys={"pk": {"S": "a"}, "sk": {"S": "A"}}), mapping())
    second = Record.parse(raw_record(2, Keys={"pk": {"S": "a"}, "sk": {"S": "B"}}), mapping())
    assert first.partition == second.partition != records(3)[2].partition


def test_batch_ends_at_its_maximum_size() -> None:
    assert [record.sequence for record in take_batch(records(5), 3)] == ["1", "2", "3"]
    assert len(take_batch(records(2), 3)) == 2


def test_batch_ends_before_the_invocation_payload_limit() -> None:
    def large(sequence: int) -> dict[str, Any]:
        return raw_record(sequence, NewImage={"text": {"S": "ä" * (400_000 // 2)}})

    many = [Record.parse(large(sequence), mapping()) for sequence in range(40)]
    batch = take_batch(many, 40)
    assert len(payload(batch).encode()) <= MAX_PAYLOAD_BYTES < len(payload(many[: len(batch) + 1]).encode())


def test_single_record_over_the_payload_limit_is_still_sent() -> None:
    large = Record.parse(raw_record(1, NewImage={"text": {"S": "a" * (MAX_PAYLOAD_BYTES + 1)}}), mapping())
    assert take_batch([large, *records(1)], 10) == [large]


def test_failure_record_has_the_format_of_aws() -> None:
    report = failure_record(
        mapping(),
        "shardId-1",
        records(2),
        condition="RetryAttemptsExhausted",
        invocations=3,
        function_error="Unhandled",
        now=NOON,
    )
    request_id = report["requestContext"].pop("requestId")
    assert len(request_id) == 36
    assert report == {
        "requestContext": {
            "functionArn": FUNCTION,
            "condition": "RetryAttemptsExhausted",
            "approximateInvokeCount": 3,
        },
        "responseContext": {"statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled"},
        "version": "1.0",
        "timestamp": "2026-01-01T12:00:00.000Z",
        "DDBStreamBatchInfo": {
            "shardId": "shardId-1",
            "startSequenceNumber": "1",
            "endSequenceNumber": "2",
            "approximateArrivalOfFirstRecord": "2026-01-01T12:00:00Z",
            "approximateArrivalOfLastRecord": "2026-01-01T12:00:00Z",
            "batchSize": 2,
            "streamArn": STREAM,
        },
    }


def test_failure_object_key_has_the_format_of_aws() -> None:
    assert mapping().failure_destination == BUCKET
    prefix = "aws/lambda/99297037-1073-46e2-8ff8-edf56ea5aa5c/shardId-1/2026/01/01/2026-01-01T12.00.00-"
    assert failure_key(mapping(), "shardId-1", NOON).startswith(prefix)
    assert failure_key(mapping(), "shardId-1", NOON) != failure_key(mapping(), "shardId-1", NOON)
