"""The decorator `task`: it makes a Lambda handler from a function that runs one job."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, Protocol, TypeAlias
from urllib.parse import quote

from vigil_core.domain.text_limits import truncate_message
from vigil_tasks.api import Api, ApiKey
from vigil_tasks.errors import TaskError
from vigil_tasks.job_handle import Completed, Failed, JobHandle, Outcome

REPORT_MARGIN_S = 3.0
"""The time before Lambda's timeout that the report of the timeout needs."""
_RETRY_WINDOW_S = 60.0
"""How long a report is retried while the API cannot be reached."""

API_KEY = ApiKey()
"""The key of this execution environment; invocations share it."""


class LambdaContext(Protocol):
    """The part of Lambda's context object that a task uses."""

    def get_remaining_time_in_millis(self) -> int:
        """Return the time until Lambda ends the invocation."""
        ...


class Task(JobHandle):
    """A running job, as its Lambda function sees it. `event` is the whole event that Vigil sent."""

    log = logging.getLogger("vigil.tasks")

    def __init__(self, api: Api, event: Mapping[str, Any], deadline: float) -> None:
        super().__init__(event, event["lease"])
        self.tags: list[str] = event["tags"]
        self.event = event
        self._api = api
        self._path = _job_path(self.job_id)
        self._deadline = deadline

    def _run(self, function: TaskFunction) -> None:
        """Start the attempt, run the function with heartbeats, then report the outcome unless the lease is lost."""
        if not self._start_attempt():
            self.log.info("job %s, attempt %d: already started, or the lease is lost", self.job_id, self.attempt)
            return
        with self._heartbeats():
            outcome = self._run_handler(function)
        if not self.lost.is_set():
            self._report_outcome(outcome)

    def _start_attempt(self) -> bool:
        """Send the first heartbeat and return whether this invocation may run the job.

        Lambda may deliver an event twice or late. Vigil accepts the first heartbeat of a lease once, so only one
        invocation runs the job.
        """
        try:
            self._note_cancel_request(self._request("POST", "/heartbeat", {"first": True}))
            if self.event["payload_omitted"]:
                self.payload = self._api.payload(self._path, self._deadline)
        except TaskError as error:
            if error.is_job_lost:
                return False
            raise
        self._lease_renewed_at = time.monotonic()
        return True

    def _report_outcome(self, outcome: Outcome) -> None:
        """Report the outcome. If Vigil refuses the result (for example as too large), report a failure instead."""
        try:
            try:
                job = self._send_outcome(outcome)
            except TaskError as refusal:
                if refusal.is_job_lost:
                    raise
                job = self._send_outcome(Failed(refusal.code, truncate_message(str(refusal)), retryable=False))
        except TaskError as error:
            self.log.warning("job %s: its outcome is dropped: %s", self.job_id, error)
        else:
            self.log.info("job %s is %s", self.job_id, job["status"])

    def _on_deadline(self) -> None:
        """Fail the attempt just before Lambda ends the function, so that the retry need not await lease expiry."""
        self.lost.set()
        message = "The function was about to be ended by Lambda"
        self._report_outcome(Failed("FUNCTION_TIMED_OUT", message, retryable=True))

    def _send_outcome(self, outcome: Outcome) -> Any:
        if isinstance(outcome, Completed):
            return self._request("POST", "/complete", {"result": outcome.result})
        return self._request("POST", "/fail", {"error": outcome.to_error(), "retryable": outcome.retryable})

    def _send_report(
        self,
        *,
        stage: str | None,
        milestones: Sequence[str] | None,
        fields: Mapping[str, Any] | None,
        message: str | None,
    ) -> Mapping[str, Any]:
        update = {"job_stage": stage, "milestones": milestones, "fields": fields, "message": message}
        job: Mapping[str, Any] = self._request(
            "PATCH", "", {name: value for name, value in update.items() if value is not None}
        )
        return job

    def _send_heartbeat(self, progress: Mapping[str, Any]) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = self._request("POST", "/heartbeat", progress, retry_window_s=0)
        return answer

    def _fetch_dependencies(self) -> Iterable[Mapping[str, Any]]:
        return self._api.dependencies(self._path, self._deadline)

    def _fetch_result(self, job_id: str) -> Any:
        return self._api.result(_job_path(job_id), self._deadline)

    def _request(
        self, method: str, action: str, body: Mapping[str, Any], *, retry_window_s: float = _RETRY_WINDOW_S
    ) -> Any:
        deadline = min(time.monotonic() + retry_window_s, self._deadline + REPORT_MARGIN_S / 2)
        return self._api.request(method, self._path + action, {**body, "lease_token": self._token}, deadline)


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


TaskFunction: TypeAlias = Callable[[Task], Any]
"""A function that takes the job and returns its result: any JSON value."""


def task(function: TaskFunction) -> Callable[[Mapping[str, Any], LambdaContext], None]:
    """Make a Lambda handler from a function that runs one job. The handler reports start, progress and outcome.

    The environment variable VIGIL_API_URL names the API. The key, of scope `work`, is the value of VIGIL_API_KEY, of
    the parameter in Parameter Store that VIGIL_API_KEY_PARAMETER names, or of the secret in Secrets Manager that
    VIGIL_API_KEY_SECRET names.
    """

    @wraps(function)
    def handler(event: Mapping[str, Any], context: LambdaContext) -> None:
        deadline = time.monotonic() + context.get_remaining_time_in_millis() / 1000 - REPORT_MARGIN_S
        Task(Api(os.environ["VIGIL_API_URL"], API_KEY.value()), event, deadline)._run(function)

    return handler
