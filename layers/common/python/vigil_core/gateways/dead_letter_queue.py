"""A queue's dead letters. They are moved by hand, in steps that can each be repeated: StartMessageMoveTask runs by
itself, cannot say what it did, and is not offered everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

_MAX_BATCH_MESSAGES = 10
"""SQS hands out and takes in at most ten messages a request."""


class DeadLetterQueue:
    """The queue at `dead_url`, whose messages belong into the one at `home_url`. It looks for up to `patience_s` before
    it finds itself empty: from one second on, SQS asks all of its servers, not a sample of them."""

    def __init__(self, client: SQSClient, *, dead_letter_url: str, source_url: str, wait_time_s: int = 1) -> None:
        self._client = client
        self._dead_letter_url = dead_letter_url
        self._source_url = source_url
        self._wait_time_s = wait_time_s

    def count(self) -> int:
        """How many messages lie here, approximately (SQS knows no better)."""
        response = self._client.get_queue_attributes(
            QueueUrl=self._dead_letter_url, AttributeNames=["ApproximateNumberOfMessages"]
        )
        return int(response["Attributes"]["ApproximateNumberOfMessages"])

    def redrive_batch(self) -> int:
        """Send up to ten messages home, and how many it were. One is removed here only after it has arrived there."""
        messages = self._client.receive_message(
            QueueUrl=self._dead_letter_url,
            MaxNumberOfMessages=_MAX_BATCH_MESSAGES,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["MessageGroupId"],
            WaitTimeSeconds=self._wait_time_s,
        ).get("Messages", [])
        for message in messages:
            request: Any = {"MessageAttributes": message.get("MessageAttributes", {})}
            if group := message.get("Attributes", {}).get("MessageGroupId"):
                # The message's first deduplication id might still be remembered; this one is new and can be repeated.
                request |= {"MessageGroupId": group, "MessageDeduplicationId": message["MessageId"]}
            self._client.send_message(QueueUrl=self._source_url, MessageBody=message["Body"], **request)
            self._client.delete_message(QueueUrl=self._dead_letter_url, ReceiptHandle=message["ReceiptHandle"])
        return len(messages)
