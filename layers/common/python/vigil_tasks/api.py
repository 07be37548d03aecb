"""Vigil's HTTP API, called with the standard library alone, and the API key of a Lambda function."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from vigil_core.domain.exact_json import dumps
from vigil_tasks.errors import UNREACHABLE, TaskError

T = TypeVar("T")

_KEY_TTL_S = 300.0
_REQUEST_TIMEOUT_S = 10.0
_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 5.0


class Api:
    """A client of the HTTP API with one key."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        self._key = key

    def request(self, method: str, path: str, body: Mapping[str, Any] | None, deadline: float) -> Any:
        """Send a request and return the answer. Retry transient errors until `deadline` (monotonic time).

        Raises:
            TaskError: The API refused the request, or did not answer before the deadline.
        """
        return _retry(lambda: self._send(method, path, body), deadline)

    def payload(self, job_path: str, deadline: float) -> Any:
        """Read the payload of a job. A payload that is too large for an answer is read from its URL."""
        job = self.request("GET", job_path, None, deadline)
        return job["payload"] if (url := job.get("payload_url")) is None else self._download(url, deadline)

    def result(self, job_path: str, deadline: float) -> Any:
        """Read the result of a job. A result that is too large for an answer is read from its URL."""
        job = self.request("GET", f"{job_path}/result", None, deadline)
        return job["result"] if (url := job.get("result_url")) is None else self._download(url, deadline)

    def dependencies(self, job_path: str, deadline: float) -> Iterator[Any]:
        """Yield all dependencies of a job, page by page."""
        query = "page_size=200"
        while True:
            page = self.request("GET", f"{job_path}/dependencies/results?{query}", None, deadline)
            yield from page["dependencies"]
            if not page["next_page_token"]:
                return
            query = urlencode({"page_size": 200, "page_token": page["next_page_token"]})

    def _download(self, url: str, deadline: float) -> Any:
        """Read an object from its signed URL, which needs no key. Retry transient errors until `deadline`."""

        def read() -> bytes:
            with urlopen(Request(url), timeout=_REQUEST_TIMEOUT_S) as response:
                content: bytes = response.read()
                return content

        content = _retry(read, deadline)
        try:
            return json.loads(content)
        except ValueError:
            raise TaskError("NOT_UNDERSTOOD", "A large payload or result is not JSON") from None

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        request = Request(
            self._url + path,
            method=method,
            data=None if body is None else dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
        )
        with urlopen(request, timeout=_REQUEST_TIMEOUT_S) as response:
            return json.loads(response.read())


class ApiKey:
    """The API key, read again every five minutes, so that a rotated key takes effect."""

    def __init__(self) -> None:
        self._cached: tuple[float, str] | None = None

    def value(self) -> str:
        """Return the key, from the cache if it is recent.

        Raises:
            TaskError: No environment variable names a key.
        """
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
        raise TaskError("NO_KEY", "set VIGIL_API_KEY, VIGIL_API_KEY_PARAMETER or VIGIL_API_KEY_SECRET")


def _retry(send: Callable[[], T], deadline: float) -> T:
    """Send a request and return its answer. Retry transient errors until `deadline` (monotonic time).

    Raises:
        TaskError: The request was refused, or had no answer before the deadline.
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return send()
        except HTTPError as failure:
            with failure:
                error = _parse_problem(failure.code, failure.read())
            if not error.is_transient:
                raise error from None
        except (OSError, HTTPException, ValueError) as failure:
            error = TaskError(UNREACHABLE, f"Vigil cannot be reached: {type(failure).__name__}")
        if time.monotonic() + pause_s >= deadline:
            raise error
        time.sleep(pause_s)
        pause_s = min(_MAX_PAUSE_S, 2 * pause_s)


def _parse_problem(status: int, body: bytes) -> TaskError:
    try:
        document = json.loads(body)
        return TaskError(str(document["error"]), str(document["message"]), status=status)
    except (ValueError, KeyError, TypeError):
        return TaskError(f"HTTP_{status}", "The answer of Vigil's API is not a problem document", status=status)
