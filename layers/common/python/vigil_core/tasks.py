"""For Lambda functions that run jobs of executor `lambda`: a decorator that reports for them. See docs/executors.md.

It speaks to Vigil's HTTP API, with an API key of the jobs' namespace, and imports nothing of the server.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from http.client import HTTPException
from typing import Any, Protocol, TypeAlias
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from vigil_core.domain.exact_json import dumps
from vigil_core.domain.text_limits import format_exception, sanitize, truncate_message

LOG = logging.getLogger("vigil.tasks")

_KEY_TTL_S = 300.0
_PROGRESS_INTERVAL_S = 1.0
_REQUEST_TIMEOUT_S = 10.0
_REPORT_MARGIN_S = 3.0
"""Before Lambda ends a function that takes too long: enough to say so."""
_RETRY_WINDOW_S = 60.0
"""How long a report is repeated while the API cannot be reached."""
_LOST_JOB_CODES = ("LEASE_LOST", "INVALID_TRANSITION", "JOB_NOT_FOUND")


class Permanent(Exception):
    """Raised by a task: the job failed, and trying it again is of no use."""


class Cancelled(Exception):
    """Raised by `raise_if_cancelled`: the job is to end, or is no longer this invocation's."""


class TaskError(Exception):
    """Vigil refused a report (`code` says why), or cannot be asked at all."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class LambdaContext(Protocol):
    """What is needed of the context that Lambda passes."""

    def get_remaining_time_in_millis(self) -> int: ...


class Task:
    """A job as its function sees it; `event` is all that Vigil told of it.

    `cancel_requested` is set when the job was asked to cancel; `lost` when it is no longer this invocation's. Whatever
    the function returns then is dropped.
    """

    def __init__(self, api: _Api, event: Mapping[str, Any], deadline: float) -> None:
        self.job_id: str = event["job_id"]
        self.job_type: str = event["job_type"]
        self.name: str | None = event["name"]
        self.attempt: int = event["attempt"]
        self.payload: Any = event["payload"]
        self.fields: dict[str, Any] = event["fields"]
        self.tags: list[str] = event["tags"]
        self.dependencies: dict[str, Any] = event["dependencies"]
        self.event = event
        self.cancel_requested = threading.Event()
        self.lost = threading.Event()
        self._api = api
        self._path = f"/v1/jobs/{quote(self.job_id, safe='')}"
        self._token: str = event["lease_token"]
        self._heartbeat_interval_s = event["lease"] / 3
        self._deadline = deadline
        self._ended = threading.Event()
        self._has_progress = threading.Event()
        self._progress_lock = threading.Lock()
        self._unsent_progress: dict[str, Any] = {}

    def progress(self, value: float, message: str | None = None) -> None:
        """Say how far it is, from 0 to 1. It is sent in the background within a second; never blocks, never fails."""
        if not 0 <= value <= 1:
            raise ValueError(f"progress is from 0 to 1, not {value}")
        update = {"progress": value} if message is None else {"progress": value, "message": truncate_message(message)}
        with self._progress_lock:
            self._unsent_progress |= update
        self._has_progress.set()

    def report(
        self,
        *,
        stage: str | None = None,
        milestones: Sequence[str] | None = None,
        fields: Mapping[str, Any] | None = None,
        message: str | None = None,
    ) -> None:
        """Report what others can wait for, at once. Raises TaskError for what Vigil refuses, Cancelled when the job is
        no longer this invocation's."""
        self._raise_if_lost()
        update = {
            "job_stage": stage,
            "milestones": milestones,
            "fields": fields,
            "message": message and truncate_message(message),
        }
        try:
            job = self._request("PATCH", "", {name: value for name, value in update.items() if value is not None})
        except TaskError as error:
            if error.code in ("LEASE_LOST", "JOB_NOT_FOUND"):
                self.lost.set()
                self._raise_if_lost()
            raise
        self._note_cancel_request(job)

    def raise_if_cancelled(self) -> None:
        """Raise Cancelled when the job was asked to cancel, or is no longer this invocation's. Call it now and then."""
        self._raise_if_lost()
        if self.cancel_requested.is_set():
            raise Cancelled(f"Job {self.job_id} was asked to cancel")

    def _raise_if_lost(self) -> None:
        if self.lost.is_set():
            raise Cancelled(f"Job {self.job_id} is no longer this invocation's")

    # What the decorator does with it

    def _run(self, work: Work) -> None:
        if not self._start_attempt():
            LOG.info("job %s, attempt %d: not ours, or no longer", self.job_id, self.attempt)
            return
        heartbeat_thread = threading.Thread(target=self._heartbeat_loop, name=f"heart of {self.job_id}", daemon=True)
        heartbeat_thread.start()
        try:
            path, outcome = self._execute(work)
        finally:
            self._ended.set()
            self._has_progress.set()
            heartbeat_thread.join()
        if not self.lost.is_set():
            self._report_outcome(path, outcome)

    def _start_attempt(self) -> bool:
        """Give the first sign of life: whether the job is ours. Lambda may hand over an event twice, and late."""
        try:
            self._note_cancel_request(self._request("POST", "/heartbeat", {"first": True}))
            if self.event["payload_omitted"]:
                self.payload = self._api.payload(self._path, self._deadline)
        except TaskError as error:
            if error.code in _LOST_JOB_CODES:
                return False
            raise
        return True

    def _execute(self, work: Work) -> tuple[str, dict[str, Any]]:
        """Run the function; how to say what came of it."""
        try:
            result = work(self)
            dumps(result).encode()  # What is not JSON is the function's failure.
        except BaseException as error:
            frame = error.__traceback__
            trace = sanitize("".join(traceback.format_exception(type(error), error, frame and frame.tb_next)))
            LOG.warning("job %s failed\n%s", self.job_id, trace.rstrip())
            code = "CANCELLED" if isinstance(error, Cancelled) else type(error).__name__[:128]
            return "/fail", _failure(code, format_exception(error, trace), retryable=not isinstance(error, Permanent))
        return "/complete", {"result": result}

    def _report_outcome(self, path: str, outcome: Mapping[str, Any]) -> None:
        try:
            try:
                job = self._request("POST", path, outcome)
            except TaskError as refusal:
                if refusal.code in _LOST_JOB_CODES:
                    raise
                # The result is what is wrong, say too large: then that is how the job ends.
                job = self._request(
                    "POST", "/fail", _failure(refusal.code, truncate_message(str(refusal)), retryable=False)
                )
        except TaskError as error:
            LOG.warning("job %s: its outcome is dropped: %s", self.job_id, error)
        else:
            LOG.info("job %s is %s", self.job_id, job["status"])

    def _heartbeat_loop(self) -> None:
        """Heartbeats until the end: every third of the lease, sooner when there is progress to tell. Just before Lambda
        ends the function the attempt is reported failed, so that the next need not wait for the end of the lease."""
        min_interval_s = min(_PROGRESS_INTERVAL_S, self._heartbeat_interval_s / 2)
        next_heartbeat_at = time.monotonic() + self._heartbeat_interval_s
        while True:
            self._has_progress.wait(max(0.0, min(next_heartbeat_at, self._deadline) - time.monotonic()))
            if self._ended.is_set():
                return
            if time.monotonic() >= self._deadline:
                self.lost.set()
                failure = _failure("FUNCTION_TIMED_OUT", "The function was about to be ended by Lambda", retryable=True)
                self._report_outcome("/fail", failure)
                return
            self._has_progress.clear()
            with self._progress_lock:
                pending, self._unsent_progress = self._unsent_progress, {}
            try:
                self._note_cancel_request(self._request("POST", "/heartbeat", pending, retry_window_s=0))
            except TaskError as error:
                if error.code in _LOST_JOB_CODES:
                    LOG.warning("job %s is lost: %s", self.job_id, error)
                    self.lost.set()
                    return
                with self._progress_lock:
                    self._unsent_progress = pending | self._unsent_progress
                LOG.warning("job %s: heartbeat failed: %s", self.job_id, error)
                next_heartbeat_at = time.monotonic() + min_interval_s
            else:
                next_heartbeat_at = time.monotonic() + self._heartbeat_interval_s
            if self._ended.wait(min_interval_s):
                return

    def _request(
        self, method: str, action: str, body: Mapping[str, Any], *, retry_window_s: float = _RETRY_WINDOW_S
    ) -> Any:
        deadline = min(time.monotonic() + retry_window_s, self._deadline + _REPORT_MARGIN_S / 2)
        return self._api.request(method, self._path + action, {**body, "lease_token": self._token}, deadline)

    def _note_cancel_request(self, job: Mapping[str, Any]) -> None:
        if job.get("cancel_requested"):
            self.cancel_requested.set()


Work: TypeAlias = Callable[[Task], Any]
"""Takes the job, returns its result: anything that is JSON."""


def task(work: Work) -> Callable[[Mapping[str, Any], LambdaContext], None]:
    """Make a function on a job into a Lambda handler, which reports its start, its progress and how it ended.

    The API is at VIGIL_API_URL; the key, of scope `work`, is VIGIL_API_KEY, or in the parameter of Parameter Store that
    VIGIL_API_KEY_PARAMETER names, or in the secret of Secrets Manager that VIGIL_API_KEY_SECRET names.
    """

    @wraps(work)
    def handler(event: Mapping[str, Any], context: LambdaContext) -> None:
        deadline = time.monotonic() + context.get_remaining_time_in_millis() / 1000 - _REPORT_MARGIN_S
        Task(_Api(os.environ["VIGIL_API_URL"], _KEY.value()), event, deadline)._run(work)

    return handler


class _Api:
    """Vigil's HTTP API, with a key."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        self._key = key

    def request(self, method: str, path: str, body: Mapping[str, Any] | None, deadline: float) -> Any:
        """What it answers. What passes is tried again until that monotonic time. Raises TaskError."""
        pause_s = 0.1
        while True:
            try:
                return self._send(method, path, body)
            except HTTPError as error:
                with error:
                    response_body = error.read()
                refusal = _refusal(error.code, response_body)
                if error.code != 429 and error.code < 500:
                    raise refusal from None
            except (URLError, OSError, HTTPException, ValueError) as error:
                refusal = TaskError("UNREACHABLE", f"Vigil cannot be asked: {type(error).__name__}")
            if time.monotonic() + pause_s >= deadline:
                raise refusal
            time.sleep(pause_s)
            pause_s = min(5.0, 2 * pause_s)

    def payload(self, path: str, deadline: float) -> Any:
        """A job's payload, which is somewhere else when it is too large for an answer."""
        job = self.request("GET", path, None, deadline)
        if (url := job.get("payload_url")) is None:
            return job["payload"]
        # The URL carries its own permission: the key is for the API alone.
        with urlopen(Request(url), timeout=_REQUEST_TIMEOUT_S) as answer:
            return json.loads(answer.read())

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        request = Request(
            self._url + path,
            method=method,
            data=None if body is None else dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
        )
        with urlopen(request, timeout=_REQUEST_TIMEOUT_S) as answer:
            return json.loads(answer.read())


class _Key:
    """The API key, read again now and then."""

    def __init__(self) -> None:
        self._cached: tuple[float, str] | None = None

    def value(self) -> str:
        if self._cached is None or self._cached[0] < time.monotonic():
            self._cached = (time.monotonic() + _KEY_TTL_S, self._read())
        return self._cached[1]

    def _read(self) -> str:
        if key := os.environ.get("VIGIL_API_KEY"):
            return key
        import boto3

        if name := os.environ.get("VIGIL_API_KEY_PARAMETER"):
            return boto3.client("ssm").get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"]
        if name := os.environ.get("VIGIL_API_KEY_SECRET"):
            return boto3.client("secretsmanager").get_secret_value(SecretId=name)["SecretString"]
        raise TaskError(
            "NO_KEY", "one of VIGIL_API_KEY, VIGIL_API_KEY_PARAMETER and VIGIL_API_KEY_SECRET has to be set"
        )


_KEY = _Key()


def _failure(code: str, message: str, *, retryable: bool) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}, "retryable": retryable}


def _refusal(status: int, body: bytes) -> TaskError:
    try:
        document = json.loads(body)
        return TaskError(str(document["error"]), str(document["message"]))
    except (ValueError, KeyError, TypeError):
        return TaskError(f"HTTP_{status}", "Vigil's API answered with something else than a problem document")
