"""A request as API Gateway hands it on (payload format 2.0), made regular: what a route reads of it."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl

from vigil_core.api.problems import Unauthorized
from vigil_core.domain.access import Access
from vigil_core.domain.errors import MalformedRequest, PayloadTooLarge, ValidationFailed
from vigil_core.domain.exact_json import JsonValue, loads
from vigil_core.runtime.lambda_context import LambdaContext

MAX_BODY_BYTES = 3 * 1024 * 1024
MAX_LONG_POLL_S = 25
RESPONSE_RESERVE = timedelta(seconds=3)
"""What is left of the function's time when a hold ends at the latest, to answer in."""

_WAIT = re.compile(r'\s*wait\s*=\s*"?([0-9]{1,9})"?\s*(?:;.*)?', re.IGNORECASE | re.ASCII | re.DOTALL)
_KEY = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,128}")


@dataclass(frozen=True)
class Request:
    """One request. `answer_by` is when a held answer has to be on its way."""

    event: Mapping[str, Any]
    arrived_at: datetime
    respond_by: datetime

    @classmethod
    def from_event(cls, event: Mapping[str, Any], context: LambdaContext, now: datetime) -> Request:
        """The request that arrived now."""
        remaining = timedelta(milliseconds=context.get_remaining_time_in_millis())
        return cls(event, now, now + remaining - RESPONSE_RESERVE)

    @property
    def method(self) -> str:
        """GET, POST …"""
        return str(self.event["requestContext"]["http"]["method"])

    @property
    def path(self) -> str:
        """The path as it was asked for."""
        return str(self.event["rawPath"])

    @property
    def request_id(self) -> str:
        """API Gateway's id of the request, which its access log and the client's answer carry too."""
        return str(self.event["requestContext"]["requestId"])

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """By lower-case name: API Gateway writes them so, `sam local` as the client did."""
        return {name.lower(): value for name, value in (self.event.get("headers") or {}).items()}

    @property
    def query(self) -> list[tuple[str, str]]:
        """Every parameter, in order, repeated ones too. (`queryStringParameters` joins those by commas.)"""
        return parse_qsl(self.event.get("rawQueryString") or "", keep_blank_values=True)

    @cached_property
    def access(self) -> Access:
        """What the authorizer found out. Raises Unauthorized when none has been asked."""
        context = (self.event["requestContext"].get("authorizer") or {}).get("lambda")
        if not context:
            raise Unauthorized("This needs an API key: Authorization: Bearer vgl_…")
        return Access.from_authorizer_context(context)

    def body(self, *, optional: bool) -> JsonValue:
        """The body as JSON, whatever its Content-Type; {} for an absent one that is `optional`.

        Raises:
            PayloadTooLarge: it is over the limit.
            MalformedRequest: it is not JSON.
        """
        text = self.event.get("body") or ""
        if self.event.get("isBase64Encoded"):
            try:
                raw = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError) as error:
                raise MalformedRequest("The body is not valid Base64") from error
        else:
            raw = text.encode("utf-8", "surrogatepass")
        if len(raw) > MAX_BODY_BYTES:
            raise PayloadTooLarge(f"A request takes at most {MAX_BODY_BYTES} bytes")
        return {} if optional and not raw.strip() else loads(raw)

    @property
    def preferred_wait_s(self) -> int | None:
        """What `Prefer: wait=N` (RFC 7240) asks for, in seconds, as far as it is granted; None without it."""
        matches = map(_WAIT.fullmatch, self.headers.get("prefer", "").split(","))
        return next((min(int(match[1]), MAX_LONG_POLL_S) for match in matches if match), None)

    @property
    def preference_applied(self) -> dict[str, str]:
        """The header that says what was granted."""
        return {} if self.preferred_wait_s is None else {"preference-applied": f"wait={self.preferred_wait_s}"}

    def long_poll_deadline(self, default_s: int) -> datetime:
        """When to stop holding the answer: counted from the request's arrival."""
        wait_s = default_s if self.preferred_wait_s is None else self.preferred_wait_s
        return min(self.arrived_at + timedelta(seconds=wait_s), self.respond_by)

    @property
    def idempotency_key(self) -> str | None:
        """The Idempotency-Key; quoted and bare are the same. Raises ValidationFailed for one that cannot be."""
        header = self.headers.get("idempotency-key")
        if header is None:
            return None
        key = header.strip()
        if len(key) > 1 and key[0] == key[-1] == '"':
            key = key[1:-1]
        if not _KEY.fullmatch(key):
            raise ValidationFailed.at("Idempotency-Key", "must be 1 to 128 characters, none a control character")
        return key

    def matches_etag(self, etag: str) -> bool:
        """Whether If-None-Match names this ETag."""
        etags = [tag.strip().removeprefix("W/") for tag in self.headers.get("if-none-match", "").split(",")]
        return etag in etags or "*" in etags
