"""The dead-letter queue of an SQS queue, and the redrive of its messages.

The redrive moves messages in small steps that can be repeated. StartMessageMoveTask is not used: it runs in the
background, does not report its result, and does not exist in every region.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

_MAX_BATCH_MESSAGES = 10
"""SQS receives and sends at most ten messages per request."""


class DeadLetterQueue:
    """A dead-letter queue and the source queue of its messages.

    Args:
        client: The SQS client.
        dead_letter_url: The URL of the dead-letter queue.
        source_url: The URL of the queue to which a redrive sends the messages.
        wait_time_s: The long poll of a receive. From one second on, SQS queries all of its servers, not a sample.
    """

    def __init__(self, client: SQSClient, *, dead_letter_url: str, source_url: str, wait_time_s: int = 1) -> None:
        self._client = client
        self._dead_letter_url = dead_letter_url
        self._source_url = source_url
        self._wait_time_s = wait_time_s

    def count(self) -> int:
        """Return the approximate number of messages, which is all that SQS offers."""
        response = self._client.get_queue_attributes(
            QueueUrl=self._dead_letter_url, AttributeNames=["ApproximateNumberOfMessages"]
        )
        return int(response["Attributes"]["ApproximateNumberOfMessages"])

    def redrive_batch(self) -> int:
        """Move up to ten messages to the source queue and return their number.

        If the process crashes between the send and the delete of a message, the next redrive sends that message again.
        """
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
                # SQS may still remember the first deduplication id of the message; this one is new and repeatable.
                request |= {"MessageGroupId": group, "MessageDeduplicationId": message["MessageId"]}
            self._client.send_message(QueueUrl=self._source_url, MessageBody=message["Body"], **request)
            self._client.delete_message(QueueUrl=self._dead_letter_url, ReceiptHandle=message["ReceiptHandle"])
        return len(messages)
