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
from vigil_core.domain.text_limits import clean, explained, sendable

LOG = logging.getLogger("vigil.tasks")

_KEY_KEPT_S = 300.0
_NEWS_EVERY_S = 1.0
_ANSWER_S = 10.0
_LAST_WORDS_S = 3.0
"""Before Lambda ends a function that takes too long: enough to say so."""
_PATIENCE_S = 60.0
"""How long a report is repeated while the API cannot be reached."""
_NOT_OURS = ("LEASE_LOST", "INVALID_TRANSITION", "JOB_NOT_FOUND")


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

    def __init__(self, api: _Api, event: Mapping[str, Any], ends_at: float) -> None:
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
        self._every_s = event["lease"] / 3
        self._ends_at = ends_at
        self._ended = threading.Event()
        self._news = threading.Event()
        self._noting = threading.Lock()
        self._unsent: dict[str, Any] = {}

    def progress(self, value: float, message: str | None = None) -> None:
        """Say how far it is, from 0 to 1. It is sent in the background within a second; never blocks, never fails."""
        if not 0 <= value <= 1:
            raise ValueError(f"progress is from 0 to 1, not {value}")
        said = {"progress": value} if message is None else {"progress": value, "message": sendable(message)}
        with self._noting:
            self._unsent |= said
        self._news.set()

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
        said = {
            "job_stage": stage,
            "milestones": milestones,
            "fields": fields,
            "message": message and sendable(message),
        }
        try:
            job = self._tell("PATCH", "", {name: value for name, value in said.items() if value is not None})
        except TaskError as error:
            if error.code in ("LEASE_LOST", "JOB_NOT_FOUND"):
                self.lost.set()
                self._raise_if_lost()
            raise
        self._heed(job)

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
        if not self._begun():
            LOG.info("job %s, attempt %d: not ours, or no longer", self.job_id, self.attempt)
            return
        heart = threading.Thread(target=self._beat, name=f"heart of {self.job_id}", daemon=True)
        heart.start()
        try:
            path, outcome = self._attempted(work)
        finally:
            self._ended.set()
            self._news.set()
            heart.join()
        if not self.lost.is_set():
            self._conclude(path, outcome)

    def _begun(self) -> bool:
        """Give the first sign of life: whether the job is ours. Lambda may hand over an event twice, and late."""
        try:
            self._heed(self._tell("POST", "/heartbeat", {"first": True}))
            if self.event["payload_left_out"]:
                self.payload = self._api.payload(self._path, self._ends_at)
        except TaskError as error:
            if error.code in _NOT_OURS:
                return False
            raise
        return True

    def _attempted(self, work: Work) -> tuple[str, dict[str, Any]]:
        """Run the function; how to say what came of it."""
        try:
            result = work(self)
            dumps(result).encode()  # What is not JSON is the function's failure.
        except BaseException as error:
            here = error.__traceback__
            trace = clean("".join(traceback.format_exception(type(error), error, here and here.tb_next)))
            LOG.warning("job %s failed\n%s", self.job_id, trace.rstrip())
            code = "CANCELLED" if isinstance(error, Cancelled) else type(error).__name__[:128]
            return "/fail", _failure(code, explained(error, trace), retryable=not isinstance(error, Permanent))
        return "/complete", {"result": result}

    def _conclude(self, path: str, outcome: Mapping[str, Any]) -> None:
        try:
            try:
                job = self._tell("POST", path, outcome)
            except TaskError as refusal:
                if refusal.code in _NOT_OURS:
                    raise
                # The result is what is wrong, say too large: then that is how the job ends.
                job = self._tell("POST", "/fail", _failure(refusal.code, sendable(str(refusal)), retryable=False))
        except TaskError as error:
            LOG.warning("job %s: its outcome is dropped: %s", self.job_id, error)
        else:
            LOG.info("job %s is %s", self.job_id, job["status"])

    def _beat(self) -> None:
        """Heartbeats until the end: every third of the lease, sooner when there is progress to tell. Just before Lambda
        ends the function the attempt is reported failed, so that the next need not wait for the end of the lease."""
        at_least_s = min(_NEWS_EVERY_S, self._every_s / 2)
        due = time.monotonic() + self._every_s
        while True:
            self._news.wait(max(0.0, min(due, self._ends_at) - time.monotonic()))
            if self._ended.is_set():
                return
            if time.monotonic() >= self._ends_at:
                self.lost.set()
                said = _failure("FUNCTION_TIMED_OUT", "The function was about to be ended by Lambda", retryable=True)
                self._conclude("/fail", said)
                return
            self._news.clear()
            with self._noting:
                told, self._unsent = self._unsent, {}
            try:
                self._heed(self._tell("POST", "/heartbeat", told, patience_s=0))
            except TaskError as error:
                if error.code in _NOT_OURS:
                    LOG.warning("job %s is lost: %s", self.job_id, error)
                    self.lost.set()
                    return
                with self._noting:
                    self._unsent = told | self._unsent
                LOG.warning("job %s: heartbeat failed: %s", self.job_id, error)
                due = time.monotonic() + at_least_s
            else:
                due = time.monotonic() + self._every_s
            if self._ended.wait(at_least_s):
                return

    def _tell(self, method: str, verb: str, said: Mapping[str, Any], *, patience_s: float = _PATIENCE_S) -> Any:
        until = min(time.monotonic() + patience_s, self._ends_at + _LAST_WORDS_S / 2)
        return self._api.ask(method, self._path + verb, {**said, "lease_token": self._token}, until)

    def _heed(self, answer: Mapping[str, Any]) -> None:
        if answer.get("cancel_requested"):
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
        ends_at = time.monotonic() + context.get_remaining_time_in_millis() / 1000 - _LAST_WORDS_S
        Task(_Api(os.environ["VIGIL_API_URL"], _KEY.value()), event, ends_at)._run(work)

    return handler


class _Api:
    """Vigil's HTTP API, with a key."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        self._key = key

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None, until: float) -> Any:
        """What it answers. What passes is tried again until that monotonic time. Raises TaskError."""
        pause_s = 0.1
        while True:
            try:
                return self._once(method, path, body)
            except HTTPError as error:
                with error:
                    said = error.read()
                refusal = _refusal(error.code, said)
                if error.code != 429 and error.code < 500:
                    raise refusal from None
            except (URLError, OSError, HTTPException, ValueError) as error:
                refusal = TaskError("UNREACHABLE", f"Vigil cannot be asked: {type(error).__name__}")
            if time.monotonic() + pause_s >= until:
                raise refusal
            time.sleep(pause_s)
            pause_s = min(5.0, 2 * pause_s)

    def payload(self, path: str, until: float) -> Any:
        """A job's payload, which is somewhere else when it is too large for an answer."""
        job = self.ask("GET", path, None, until)
        if (url := job.get("payload_url")) is None:
            return job["payload"]
        # The URL carries its own permission: the key is for the API alone.
        with urlopen(Request(url), timeout=_ANSWER_S) as answer:
            return json.loads(answer.read())

    def _once(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        request = Request(
            self._url + path,
            method=method,
            data=None if body is None else dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
        )
        with urlopen(request, timeout=_ANSWER_S) as answer:
            return json.loads(answer.read())


class _Key:
    """The API key, read again now and then."""

    def __init__(self) -> None:
        self._known: tuple[float, str] | None = None

    def value(self) -> str:
        if self._known is None or self._known[0] < time.monotonic():
            self._known = (time.monotonic() + _KEY_KEPT_S, self._read())
        return self._known[1]

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


def _refusal(status: int, said: bytes) -> TaskError:
    try:
        document = json.loads(said)
        return TaskError(str(document["error"]), str(document["message"]))
    except (ValueError, KeyError, TypeError):
        return TaskError(f"HTTP_{status}", "Vigil's API answered with something else than a problem document")
