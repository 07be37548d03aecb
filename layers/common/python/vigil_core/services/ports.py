"""Requests to addresses that users name, as the use cases see them. `gateways.outgoing` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


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
