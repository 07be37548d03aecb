"""Messages to Vigil's background functions, over SQS."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from vigil_core.domain.errors import VigilError
from vigil_core.domain.exact_json import to_ascii

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

_MAX_BATCH_ENTRIES = 10
"""SendMessageBatch accepts at most ten entries."""
_MAX_SEND_ATTEMPTS = 3
_RETRY_DELAY_S = 15
"""The delay before SQS redelivers failed work. The visibility timeout of the queue is much longer."""


class GroupedMessage(Protocol):
    """A message that is delivered in order within its group."""

    @property
    def group(self) -> str:
        """The message group."""

    @property
    def body(self) -> str:
        """The JSON text of the message."""


class NotSent(VigilError):
    """SQS refused a message. The error is permanent if the message itself is the reason."""

    code = "NOT_SENT"

    def __init__(self, message: str, *, transient: bool = True) -> None:
        super().__init__(message)
        self.transient = transient


class SqsQueues:
    """The queues of the functions `fan_out` (FIFO), `sweeper` and `webhooks`.

    The client is created with the first message, because most requests send none. A URL is None in functions that send
    nothing to that queue.
    """

    def __init__(
        self,
        client: Callable[[], SQSClient],
        *,
        fan_out_url: str | None,
        sweeper_url: str | None,
        webhooks_url: str | None = None,
    ) -> None:
        self._client = client
        self._fan_out_url = fan_out_url
        self._sweeper_url = sweeper_url
        self._webhooks_url = webhooks_url

    def send_fan_out(self, messages: Sequence[GroupedMessage]) -> None:
        """Send work to `fan_out`, in order within each group, or raise NotSent if SQS keeps refusing a message."""
        url = self._url(self._fan_out_url)
        bodies = [to_ascii(message.body) for message in messages]
        entries: list[Any] = [
            {
                "Id": str(number),
                "MessageBody": body,
                "MessageGroupId": message.group,
                "MessageDeduplicationId": hashlib.sha256(body.encode()).hexdigest(),
            }
            for number, (message, body) in enumerate(zip(messages, bodies, strict=True))
        ]
        for start in range(0, len(entries), _MAX_BATCH_ENTRIES):
            self._send(url, entries[start : start + _MAX_BATCH_ENTRIES])

    def send_to_sweeper(self, message: str, delay_s: int) -> None:
        """Invoke the sweeper with a message after a delay of at most 900 seconds."""
        self._client().send_message(
            QueueUrl=self._url(self._sweeper_url),
            MessageBody=to_ascii(message),
            DelaySeconds=delay_s,
            **_fair_queue_group(message),
        )

    def send_deliveries(self, messages: Sequence[str], *, delay_s: int = 0) -> None:
        """Enqueue webhook deliveries, or raise NotSent if SQS keeps refusing a message."""
        url = self._url(self._webhooks_url)
        entries: list[Any] = [
            {"Id": str(number), "MessageBody": to_ascii(body), "DelaySeconds": delay_s, **_fair_queue_group(body)}
            for number, body in enumerate(messages)
        ]
        for start in range(0, len(entries), _MAX_BATCH_ENTRIES):
            self._send(url, entries[start : start + _MAX_BATCH_ENTRIES])

    @contextmanager
    def retry_soon_on_error(self, receipt_handle: str) -> Iterator[None]:
        """Shorten the visibility timeout of a `fan_out` message if its processing raises, so SQS redelivers it soon."""
        try:
            yield
        except Exception:
            self._client().change_message_visibility(
                QueueUrl=self._url(self._fan_out_url), ReceiptHandle=receipt_handle, VisibilityTimeout=_RETRY_DELAY_S
            )
            raise

    def _url(self, url: str | None) -> str:
        if url is None:
            raise NotSent("This function has no URL of that queue")
        return url

    def _send(self, url: str, entries: list[Any]) -> None:
        remaining, failures = entries, dict[str, Any]()
        for _ in range(_MAX_SEND_ATTEMPTS):
            response = self._client().send_message_batch(QueueUrl=url, Entries=remaining)
            failures = {failure["Id"]: failure for failure in response.get("Failed", [])}
            remaining = [entry for entry in remaining if entry["Id"] in failures]
            if not remaining:
                return
        codes = ", ".join(sorted({failure["Code"] for failure in failures.values()}))
        is_permanent = all(failure.get("SenderFault", False) for failure in failures.values())
        raise NotSent(f"SQS refused {len(remaining)} messages: {codes}", transient=not is_permanent)


def _fair_queue_group(body: str) -> dict[str, Any]:
    """Return the parameter that makes a standard queue fair: SQS delivers the other groups first if one has a backlog.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-fair-queues.html
    """
    namespace = json.loads(body).get("namespace")
    return {"MessageGroupId": namespace} if namespace else {}
