"""Stream mappings and records for the tests of the local stack."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from vigil.local.event_source_mapping import Record, StreamMapping

FUNCTION = "arn:aws:lambda:us-east-1:000000000000:function:vigil-matcher"
STREAM = "arn:aws:dynamodb:us-east-1:000000000000:table/vigil/stream/2026-01-01T00:00:00.000"
BUCKET = "arn:aws:s3:::dead-letters"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def described_mapping(**more: Any) -> dict[str, Any]:
    """Return a mapping in the format of `list_event_source_mappings`."""
    return {
        "UUID": "99297037-1073-46e2-8ff8-edf56ea5aa5c",
        "FunctionArn": FUNCTION,
        "EventSourceArn": STREAM,
        "State": "Enabled",
        "StartingPosition": "TRIM_HORIZON",
        "BatchSize": 100,
        **more,
    }


def mapping(**more: Any) -> StreamMapping:
    """Return a mapping that reports item failures and sends discarded batches to a bucket."""
    settings = {
        "FunctionResponseTypes": ["ReportBatchItemFailures"],
        "DestinationConfig": {"OnFailure": {"Destination": BUCKET}},
        **more,
    }
    return StreamMapping.parse(described_mapping(**settings))


def raw_record(sequence: int, **more: Any) -> dict[str, Any]:
    """Return a record of a separate item in the format of `get_records`."""
    change = {
        "ApproximateCreationDateTime": NOON,
        "Keys": {"pk": {"S": f"item-{sequence}"}, "sk": {"S": "A"}},
        "NewImage": {"pk": {"S": f"item-{sequence}"}, "sk": {"S": "A"}, "entity": {"S": "job"}},
        "SequenceNumber": str(sequence),
        "SizeBytes": 26,
        "StreamViewType": "NEW_AND_OLD_IMAGES",
        **more,
    }
    return {
        "eventID": f"event-{sequence}",
        "eventName": "INSERT",
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "us-east-1",
        "dynamodb": change,
    }


def records(count: int) -> list[Record]:
    """Return the records 1 to `count`."""
    return [Record.parse(raw_record(sequence), mapping()) for sequence in range(1, count + 1)]
