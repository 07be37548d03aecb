"""Ports: the interfaces to other systems. The gateways implement them, and the tests have fakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.jobs.job import NewJob
from vigil_core.domain.outbound_policy import SlowRequestPolicy
from vigil_core.domain.workflows.run import NewWorkflowRun


class Response(Protocol):
    """An HTTP response."""

    @property
    def status(self) -> int:
        """The status code."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, with names in lower case."""

    @property
    def body(self) -> bytes:
        """The body, up to the requested limit."""

    @property
    def truncated(self) -> bool:
        """True if the body exceeded the limit."""


class HttpClient(Protocol):
    """Sends HTTP requests to addresses that the outbound policy allows."""

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
        max_response_bytes: int,
        slow_policy: SlowRequestPolicy | None = None,
    ) -> Response:
        """Send one request.

        Args:
            method: The HTTP method.
            url: The address.
            headers: The headers.
            body: The body.
            timeout_s: The time for the whole exchange.
            max_response_bytes: The size of the response body; the rest is not read.
            slow_policy: Decides whether a slow request may continue. Without it, every request may.

        Raises:
            TargetRefused: The outbound policy does not allow the address.
            RequestInterrupted: The request was slow, and may not continue.
            TargetUnreachable: There is no response, for example because of a timeout.
        """


class MessageQueues(Protocol):
    """Messages to Vigil's own functions.

    If a message is lost, its work is only delayed: the due index has a row for it, which the next sweep finds.
    """

    def send_fan_out(self, messages: Sequence[FanOutMessage]) -> None:
        """Send bulk work to the fan-out function. The messages of one group are processed in order."""

    def send_to_sweeper(self, message: str, delay_s: int) -> None:
        """Wake the sweeper for one due row after a delay of at most 15 minutes."""

    def send_deliveries(self, messages: Sequence[str], *, delay_s: int = 0) -> None:
        """Send deliveries to the function `webhooks`, in any order, after a delay of at most 15 minutes."""


class Timers(Protocol):
    """Timers that wake the sweeper at any time in the future.

    If a timer is lost, its fire is only delayed: the next sweep finds the due row.
    """

    def start(self, name: str, at: datetime, event: str) -> None:
        """Start a timer that sends an event to the sweeper once. An existing timer of that name is kept."""

    def cancel(self, name: str) -> None:
        """Cancel a timer if it exists."""


class Supervisors(Protocol):
    """The Step Functions executions that supervise workflow runs."""

    def start(self, name: str, event: str) -> None:
        """Start an execution. If one of that name exists, in any state, do nothing."""

    def wake(self, token: str) -> None:
        """Resume the execution that waits with a token. If it does not wait any more, do nothing."""

    def is_running(self, name: str) -> bool:
        """Return True if there is a running execution of that name."""


class NoSupervisors:
    """The port of functions that manage no supervisors and have no permission to do so."""

    def start(self, _: str, __: str) -> None:
        """Raise an error."""
        raise RuntimeError("this function does not manage supervisors")

    def wake(self, _: str) -> None:
        """Raise an error."""
        raise RuntimeError("this function does not manage supervisors")

    def is_running(self, _: str) -> bool:
        """Raise an error."""
        raise RuntimeError("this function does not manage supervisors")


class JobParser(Protocol):
    """Parses the request body that creates a job."""

    def __call__(self, namespace: str, body: Mapping[str, JsonValue], job_id: str) -> NewJob:
        """Return the job to create under an id, with the values that its job type adds.

        Raises:
            ValidationFailed: The body is invalid.
        """


class RunParser(Protocol):
    """Parses the request body that creates a workflow run."""

    def __call__(
        self, namespace: str, body: Mapping[str, JsonValue], workflow_id: str, now: datetime, schedule: str | None
    ) -> NewWorkflowRun:
        """Return the run to create under an id, with the values that the types of its jobs add.

        Raises:
            ValidationFailed: The body is invalid.
        """


@dataclass(frozen=True, kw_only=True)
class FanOutMessage:
    """A message for the fan-out function: JSON text, and the group within which order is kept."""

    group: str
    body: str


class StreamConsumers(Protocol):
    """The functions that consume the stream: `matcher` and `notifier`."""

    def retry_postponed(self, consumer: str, event: str) -> None:
        """Invoke a consumer asynchronously for a group of postponed records."""


class NoStreamConsumers:
    """The port of functions that retry no records and have no permission to do so."""

    def retry_postponed(self, _: str, __: str) -> None:
        """Raise an error."""
        raise RuntimeError("this function retries no records")


class DeadLetterWriter(Protocol):
    """Stores records that a consumer of the stream cannot process."""

    def put(self, key: str, body: bytes) -> None:
        """Store an object, or replace it."""


class Executors(Protocol):
    """The executors to which Vigil dispatches jobs.

    Both methods raise ExecutorRefused if the invocation can never succeed, and ExecutorBusy if it may not have
    succeeded and a later one can.
    """

    def call_http(self, event: str, /) -> None:
        """Invoke the HTTP executor. The event names the job whose target it calls."""

    def invoke_lambda(self, function: str, event: str, /) -> None:
        """Invoke the function of a job with executor `lambda`."""


class NoExecutors:
    """The port of functions that dispatch no jobs and have no permission to do so."""

    def call_http(self, _: str) -> None:
        """Raise an error."""
        raise RuntimeError("this function dispatches no jobs")

    def invoke_lambda(self, _: str, __: str) -> None:
        """Raise an error."""
        raise RuntimeError("this function dispatches no jobs")
