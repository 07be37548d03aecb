"""Ports: the interfaces of the outside world that gateways and tests implement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.jobs.job import NewJob
from vigil_core.domain.workflows.run import NewWorkflowRun


class Response(Protocol):
    """What was answered. Header names are lower case. `truncated`: the body went on beyond the limit."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> bytes: ...
    @property
    def truncated(self) -> bool: ...


class HttpClient(Protocol):
    """The guarded way out."""

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
        max_response_bytes: int,
    ) -> Response:
        """Send one request. Raises TargetRefused, TargetUnreachable."""


class MessageQueues(Protocol):
    """Messages to Vigil's own workers. A lost message delays work, until the sweep finds it; it loses none."""

    def send_fan_out(self, messages: Sequence[FanOutMessage]) -> None:
        """Hand work to the fan-out function; one group's messages are worked off in order."""

    def send_to_sweeper(self, message: str, delay_s: int) -> None:
        """Wake the sweeper for one due row after at most 15 minutes."""

    def send_deliveries(self, messages: Sequence[str]) -> None:
        """Have webhooks told, in any order."""


class Timers(Protocol):
    """What wakes the sweeper at a time, however far ahead. A lost one delays a run, until the sweep finds it."""

    def start(self, name: str, at: datetime, event: str) -> None:
        """Have the sweeper handed this event at that time, once. Armed already is as good."""

    def cancel(self, name: str) -> None:
        """Forget an alarm, if there is one."""


class Supervisors(Protocol):
    """The executions that supervise runs."""

    def start(self, name: str, event: str) -> None:
        """Start one. One of that name, whatever became of it, is as good."""

    def wake(self, token: str) -> None:
        """Have one that waits go on. One that waits no longer is as good."""

    def is_running(self, name: str) -> bool:
        """Whether there is one of that name that has not ended."""


class NoSupervisors:
    """For functions that have nothing to do with runs, and no right to."""

    def start(self, _: str, __: str) -> None:
        raise RuntimeError("this function starts no supervisors")

    def wake(self, _: str) -> None:
        raise RuntimeError("this function wakes no supervisors")

    def is_running(self, _: str) -> bool:
        raise RuntimeError("this function looks after no supervisors")


class JobParser(Protocol):
    """Reads the body of a job's creation."""

    def __call__(self, namespace: str, body: Mapping[str, JsonValue], job_id: str) -> NewJob:
        """The job to create under this id, with what its type adds. Raises ValidationFailed."""


class RunParser(Protocol):
    """Reads the body of a workflow's creation."""

    def __call__(
        self, namespace: str, body: Mapping[str, JsonValue], workflow_id: str, now: datetime, schedule: str | None
    ) -> NewWorkflowRun:
        """The run to create under this id, with what the types of its jobs add. Raises ValidationFailed."""


@dataclass(frozen=True, kw_only=True)
class FanOutMessage:
    """A message for the fan-out function: JSON text, and the group in which order matters."""

    group: str
    body: str


class Executors(Protocol):
    """Those who run what Vigil dispatches. Both raise ExecutorRefused, or ExecutorBusy when it may not have worked."""

    def call_http(self, event: str, /) -> None:
        """Have the target of executor `http` called; the event says for which job."""

    def invoke_lambda(self, function: str, event: str, /) -> None:
        """Have a function of executor `lambda` run a job."""


class NoExecutors:
    """For functions that dispatch nothing, and have no right to."""

    def call_http(self, _: str) -> None:
        raise RuntimeError("this function dispatches no jobs")

    def invoke_lambda(self, _: str, __: str) -> None:
        raise RuntimeError("this function dispatches no jobs")
