"""Requests to Vigil's API and its object store: connection, timeouts and retries."""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Mapping
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import Any, Self

import httpx

from vigil.errors import VigilError
from vigil.models import Json
from vigil_core.domain.exact_json import dumps
from vigil_tasks.errors import UNREACHABLE

API_URL = "VIGIL_API_URL"
API_KEY = "VIGIL_API_KEY"

_CONNECT_TIMEOUT_S = 10.0
_MIN_TIMEOUT_S = 0.05
_MAX_BACKOFF_S = 20.0
_MAX_RETRY_AFTER_S = 60.0
_NOT_SENT_ERRORS = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""Errors after which the API certainly did not receive the request."""


class Transport:
    """The connections of one client, with its key, timeout and retry policy. Threads may share a transport."""

    def __init__(
        self, api_url: str | None, api_key: str | None, *, timeout_s: float, retries: int, backoff_s: float
    ) -> None:
        url, key = _resolve_connection(api_url, api_key)
        self.api_url = url
        self._timeout_s = timeout_s
        self._retries = retries
        self._backoff_s = backoff_s
        self._within_s: float | None = None
        # A server on this machine is not reached through a proxy.
        trust_env = not _is_local(url)
        self._http = httpx.Client(
            base_url=url,
            headers={"authorization": f"Bearer {key}"},
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            trust_env=trust_env,
        )
        # For signed URLs, which must be requested without the key.
        self._store = httpx.Client(timeout=httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S), trust_env=trust_env)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        self._store.close()

    def bounded(self, within_s: float) -> Self:
        """Return a transport on the same connections, each of whose requests ends within this time with its retries."""
        bounded = copy.copy(self)
        bounded._within_s = within_s
        return bounded

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None, **options: Any) -> Json:
        """Send a request and return the JSON object of the answer. The options are those of `request`."""
        return _json_object(self.request(method, path, body, **options))

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        long_poll_s: int = 0,
        repeatable: bool = True,
    ) -> httpx.Response:
        """Send a request, with retries, and return the successful response.

        Args:
            long_poll_s: How many seconds the API may wait before it answers.
            repeatable: Whether to retry although the API may have carried out the request.

        Raises:
            VigilError: The API refused the request or did not answer.
        """
        content = None if body is None else dumps(body).encode()
        request_headers = {**(headers or {}), "content-type": "application/json"}
        if long_poll_s:
            request_headers["prefer"] = f"wait={long_poll_s}"
        deadline = None if self._within_s is None else time.monotonic() + self._within_s
        maybe_done = False
        for attempt in count():
            timeout_s = self._timeout_s + long_poll_s
            if deadline is not None:
                timeout_s = min(timeout_s, max(_MIN_TIMEOUT_S, deadline - time.monotonic()))
            try:
                response = self._http.request(
                    method,
                    path,
                    params=query,
                    content=content,
                    headers=request_headers,
                    timeout=httpx.Timeout(timeout_s, connect=min(_CONNECT_TIMEOUT_S, timeout_s)),
                )
                if response.is_success:
                    _pause_without_slot(response, long_poll_s, deadline)
                    return response
                error = VigilError.of(response)
                carried_out = error.status is not None and error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
            except httpx.HTTPError as failure:
                error = VigilError(UNREACHABLE, f"{self.api_url}: {str(failure) or type(failure).__name__}")
                error.__cause__ = failure
                carried_out = not isinstance(failure, _NOT_SENT_ERRORS)
            maybe_done = error.maybe_done = maybe_done or carried_out
            pause_s = self._backoff_delay_s(attempt, error)
            if (
                not error.is_transient
                or attempt >= self._retries
                or (maybe_done and not repeatable)
                or pause_s > _MAX_RETRY_AFTER_S + _MAX_BACKOFF_S
                or (deadline is not None and time.monotonic() + pause_s >= deadline)
            ):
                raise error
            time.sleep(pause_s)
        raise AssertionError("unreachable")

    def transfer(self, method: str, url: str, content: bytes | None = None) -> bytes:
        """Upload or download an object at a signed URL, with retries, and return the content of the response.

        Raises:
            VigilError: The object store refused the request or did not answer.
        """
        for attempt in count():
            try:
                response = self._store.request(method, url, content=content)
                if response.is_success:
                    return response.content
                error = VigilError("STORE_REFUSED", f"HTTP {response.status_code}", status=response.status_code)
            except httpx.HTTPError as failure:
                error = VigilError(UNREACHABLE, f"the object store: {str(failure) or type(failure).__name__}")
            if not error.is_transient or attempt >= self._retries:
                raise error
            time.sleep(self._backoff_delay_s(attempt, error))
        raise AssertionError("unreachable")

    def _backoff_delay_s(self, attempt: int, error: VigilError) -> float:
        """Return the pause before a retry: what `Retry-After` demands plus an exponential backoff with full jitter."""
        return (error.retry_after_s or 0.0) + random.uniform(0, min(_MAX_BACKOFF_S, self._backoff_s * 2**attempt))


def _pause_without_slot(response: httpx.Response, long_poll_s: int, deadline: float | None) -> None:
    """Pause as the API demands if a long poll had no slot. Otherwise the loops of callers would run hot."""
    if not long_poll_s or response.headers.get("preference-applied") != "wait=0":
        return
    demanded = response.headers.get("retry-after", "")
    pause_s = min(float(demanded) if demanded.isdecimal() else 1.0, long_poll_s)
    if deadline is not None:
        pause_s = min(pause_s, deadline - time.monotonic())
    time.sleep(max(0.0, pause_s))


def _resolve_connection(api_url: str | None, api_key: str | None) -> tuple[str, str]:
    """Return URL and key: from the arguments, the environment, or the local cloud of this directory or one above."""
    url = api_url or os.environ.get(API_URL)
    key = api_key or os.environ.get(API_KEY)
    if not (url and key):
        from vigil.local import LocalError, Stack

        current_dir = Path.cwd()
        files = (directory / ".local/stack.json" for directory in (current_dir, *current_dir.parents))
        try:
            local_stack = next((stack for file in files if (stack := Stack.read(file))), None)
        except (LocalError, OSError) as error:
            raise VigilError("NOT_CONFIGURED", str(error)) from error
        # Send the key of the local cloud to no other server.
        if local_stack and (not url or url == local_stack.api_url):
            url, key = local_stack.api_url, key or local_stack.api_key
    if not (url and key):
        missing = API_KEY if url else API_URL
        raise VigilError(
            "NOT_CONFIGURED", f"No Vigil is configured. Set {missing}, or run `vigil local up` in this directory."
        )
    return url.rstrip("/"), key.strip()


def _is_local(url: str) -> bool:
    """Return whether a URL is of this machine.

    Raises:
        VigilError: The text is not an HTTP URL.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise VigilError("NOT_CONFIGURED", f"Vigil's URL is not a URL: {url}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise VigilError("NOT_CONFIGURED", f"Vigil's URL must begin with http:// or https://: {url}")
    return parsed.host == "127.0.0.1" or parsed.host.endswith("localhost")


def _json_object(response: httpx.Response) -> Json:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise VigilError(
            "NOT_UNDERSTOOD", f"The answer of {response.url} is not from Vigil", status=response.status_code
        )
    return body
