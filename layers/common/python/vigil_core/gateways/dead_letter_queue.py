"""A queue's dead letters. They are moved by hand, in steps that can each be repeated: StartMessageMoveTask runs by
itself, cannot say what it did, and is not offered everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

_AT_ONCE = 10
"""SQS hands out and takes in at most ten messages a request."""


class DeadLetterQueue:
    """The queue at `dead_url`, whose messages belong into the one at `home_url`. It looks for up to `patience_s` before
    it finds itself empty: from one second on, SQS asks all of its servers, not a sample of them."""

    def __init__(self, client: SQSClient, *, dead_url: str, home_url: str, patience_s: int = 1) -> None:
        self._client = client
        self._dead_url = dead_url
        self._home_url = home_url
        self._patience_s = patience_s

    def count(self) -> int:
        """How many messages lie here, approximately (SQS knows no better)."""
        answer = self._client.get_queue_attributes(
            QueueUrl=self._dead_url, AttributeNames=["ApproximateNumberOfMessages"]
        )
        return int(answer["Attributes"]["ApproximateNumberOfMessages"])

    def move_some_back(self) -> int:
        """Send up to ten messages home, and how many it were. One is removed here only after it has arrived there."""
        messages = self._client.receive_message(
            QueueUrl=self._dead_url,
            MaxNumberOfMessages=_AT_ONCE,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["MessageGroupId"],
            WaitTimeSeconds=self._patience_s,
        ).get("Messages", [])
        for message in messages:
            request: Any = {"MessageAttributes": message.get("MessageAttributes", {})}
            if group := message.get("Attributes", {}).get("MessageGroupId"):
                # The message's first deduplication id might still be remembered; this one is new and can be repeated.
                request |= {"MessageGroupId": group, "MessageDeduplicationId": message["MessageId"]}
            self._client.send_message(QueueUrl=self._home_url, MessageBody=message["Body"], **request)
            self._client.delete_message(QueueUrl=self._dead_url, ReceiptHandle=message["ReceiptHandle"])
        return len(messages)
