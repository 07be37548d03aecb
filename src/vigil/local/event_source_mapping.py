"""The event source mapping of a DynamoDB stream: its settings, and the records that it delivers to its function."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self
from uuid import uuid4

from vigil.local.event_filters import parse_patterns

# https://docs.aws.amazon.com/lambda/latest/dg/services-ddb-params.html
DEFAULT_BATCH_SIZE = 100
NO_LIMIT = -1
# The limit of a synchronous invocation. A batch ends before it exceeds the limit.
# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
MAX_PAYLOAD_BYTES = 6 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class StreamMapping:
    """The settings of one mapping, with the meaning that AWS gives them. Times are in seconds."""

    uuid: str
    function_arn: str
    stream_arn: str
    enabled: bool
    starting_position: str
    batch_size: int
    batching_window_s: float
    parallelization: int
    patterns: tuple[Mapping[str, Any], ...]
    reports_item_failures: bool
    bisects: bool
    maximum_retries: int
    maximum_age_s: int
    failure_destination: str | None

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Self:
        """Parse an entry of `list_event_source_mappings`.

        Raises:
            ValueError: A filter is not an event pattern.
        """
        destination = ((document.get("DestinationConfig") or {}).get("OnFailure") or {}).get("Destination")
        return cls(
            uuid=document["UUID"],
            function_arn=document["FunctionArn"],
            stream_arn=document["EventSourceArn"],
            enabled=document["State"] not in {"Disabled", "Disabling", "Deleting"},
            starting_position=document.get("StartingPosition") or "LATEST",
            batch_size=document.get("BatchSize") or DEFAULT_BATCH_SIZE,
            batching_window_s=document.get("MaximumBatchingWindowInSeconds") or 0,
            parallelization=document.get("ParallelizationFactor") or 1,
            patterns=tuple(parse_patterns(document.get("FilterCriteria"))),
            reports_item_failures="ReportBatchItemFailures" in (document.get("FunctionResponseTypes") or []),
            bisects=bool(document.get("BisectBatchOnFunctionError")),
            maximum_retries=_limit(document.get("MaximumRetryAttempts")),
            maximum_age_s=_limit(document.get("MaximumRecordAgeInSeconds")),
            failure_destination=destination,
        )

    @property
    def function_name(self) -> str:
        """The function's name, from its ARN."""
        return self.function_arn.split(":function:")[1].split(":")[0]


def _limit(value: int | None) -> int:
    return NO_LIMIT if value is None else value


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record of a stream, as the function receives it."""

    sequence: str
    partition: str
    created_at: float
    event: dict[str, Any]
    text: str

    @classmethod
    def parse(cls, record: Mapping[str, Any], mapping: StreamMapping) -> Self:
        """Parse a record of `get_records`.

        boto3 has converted numbers of seconds to datetimes and binary values to bytes.
        """
        change = dict(record["dynamodb"])
        created_at: datetime = change["ApproximateCreationDateTime"]
        change["ApproximateCreationDateTime"] = int(created_at.timestamp())
        event: dict[str, Any] = {
            **{name: record[name] for name in ("eventID", "eventName", "eventVersion", "eventSource", "awsRegion")},
            "dynamodb": change,
            "eventSourceARN": mapping.stream_arn,
        }
        if identity := record.get("userIdentity"):
            event["userIdentity"] = {"type": identity["Type"], "principalId": identity["PrincipalId"]}
        text = json.dumps(event, default=_binary, separators=(",", ":"))
        return cls(
            sequence=change["SequenceNumber"],
            # The key schema and the stream both list the partition key first.
            partition=json.dumps(next(iter(change["Keys"].values()), None), default=_binary),
            created_at=created_at.timestamp(),
            event=event,
            text=text,
        )


def _binary(value: object) -> object:
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    if isinstance(value, set):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is not a value of a DynamoDB stream")


def payload(records: Sequence[Record]) -> str:
    """Return the event of an invocation with these records."""
    return f'{{"Records":[{",".join(record.text for record in records)}]}}'


def take_batch(records: Sequence[Record], size: int) -> list[Record]:
    """Return as many of the first records as fit into one invocation."""
    batch: list[Record] = []
    length = 0
    for record in records[:size]:
        length += len(record.text.encode()) + 1
        if batch and length > MAX_PAYLOAD_BYTES - len(payload([])):
            break
        batch.append(record)
    return batch


def failure_record(
    mapping: StreamMapping,
    shard: str,
    records: Sequence[Record],
    *,
    condition: str,
    invocations: int,
    function_error: str | None,
    now: datetime,
) -> dict[str, Any]:
    """Build the message to the failure destination about abandoned records. For S3, the caller adds `payload`.

    https://docs.aws.amazon.com/lambda/latest/dg/services-dynamodb-errors.html
    """

    def arrival(record: Record) -> str:
        return f"{datetime.fromtimestamp(record.created_at, UTC):%Y-%m-%dT%H:%M:%SZ}"

    response: dict[str, Any] = {"statusCode": 200, "executedVersion": "$LATEST"}
    if function_error:
        response["functionError"] = function_error
    return {
        "requestContext": {
            "requestId": str(uuid4()),
            "functionArn": mapping.function_arn,
            "condition": condition,
            "approximateInvokeCount": invocations,
        },
        "responseContext": response,
        "version": "1.0",
        "timestamp": now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "DDBStreamBatchInfo": {
            "shardId": shard,
            "startSequenceNumber": records[0].sequence,
            "endSequenceNumber": records[-1].sequence,
            "approximateArrivalOfFirstRecord": arrival(records[0]),
            "approximateArrivalOfLastRecord": arrival(records[-1]),
            "batchSize": len(records),
            "streamArn": mapping.stream_arn,
        },
    }


def failure_key(mapping: StreamMapping, shard: str, now: datetime) -> str:
    """Return the key of the S3 object for a failure record, named as AWS names it."""
    time = now.astimezone(UTC)
    return f"aws/lambda/{mapping.uuid}/{shard}/{time:%Y/%m/%d}/{time:%Y-%m-%dT%H.%M.%S}-{uuid4()}"
