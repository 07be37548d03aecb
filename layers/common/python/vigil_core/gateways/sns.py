"""The SNS topic that publishes events to subscribers outside Vigil."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vigil_core.domain.events.event import Event, PublishRejected
from vigil_core.domain.exact_json import dumps, to_ascii

if TYPE_CHECKING:
    from mypy_boto3_sns.client import SNSClient
    from mypy_boto3_sns.type_defs import PublishBatchRequestEntryTypeDef

_MAX_BATCH_ENTRIES = 10
_MAX_BATCH_BYTES = 256 * 1024
"""SNS accepts ten messages of together 256 KB a request: https://docs.aws.amazon.com/sns/latest/api/API_PublishBatch.html"""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""SNS accepts the characters of XML 1.0 only, in attributes too."""


class SnsTopic:
    """An SNS topic, identified by its ARN."""

    def __init__(self, client: SNSClient, arn: str) -> None:
        self._client = client
        self._arn = arn

    def publish(self, events: Sequence[Event]) -> dict[str, PublishRejected]:
        """Publish events and return the rejected ones by event id; a fault of the whole request is raised."""
        rejected: dict[str, PublishRejected] = {}
        for batch in _batches([(event, _entry(event)) for event in events]):
            entries: list[PublishBatchRequestEntryTypeDef] = [
                {**entry, "Id": str(number)} for number, (_, entry) in enumerate(batch)
            ]
            response = self._client.publish_batch(TopicArn=self._arn, PublishBatchRequestEntries=entries)
            for failure in response.get("Failed", []):
                event = batch[int(failure["Id"])][0]
                rejected[event.event_id] = PublishRejected(
                    f"SNS rejected {event.event_id}: {failure['Code']}",
                    transient=not failure.get("SenderFault", False),
                )
        return rejected


def _entry(event: Event) -> PublishBatchRequestEntryTypeDef:
    attributes = {"type": event.type, "namespace": event.namespace, **event.attributes}
    return {
        "Id": "",
        "Message": to_ascii(dumps(event.envelope())),
        "MessageAttributes": {
            name: {"DataType": "String", "StringValue": _NOT_XML.sub("\ufffd", value)}
            for name, value in attributes.items()
        },
    }


def _batches(
    entries: Sequence[tuple[Event, PublishBatchRequestEntryTypeDef]],
) -> Iterator[list[tuple[Event, PublishBatchRequestEntryTypeDef]]]:
    batch: list[tuple[Event, PublishBatchRequestEntryTypeDef]] = []
    remaining_bytes = _MAX_BATCH_BYTES
    for event, entry in entries:
        size = _size(entry)
        if batch and (len(batch) == _MAX_BATCH_ENTRIES or size > remaining_bytes):
            yield batch
            batch, remaining_bytes = [], _MAX_BATCH_BYTES
        batch.append((event, entry))
        remaining_bytes -= size
    if batch:
        yield batch


def _size(entry: PublishBatchRequestEntryTypeDef) -> int:
    """Return the size of a message in bytes, with the names, types and values of its attributes."""
    attributes = entry.get("MessageAttributes", {})
    return len(entry["Message"]) + sum(
        len(name) + len(value["DataType"]) + len(value.get("StringValue", "").encode())
        for name, value in attributes.items()
    )
