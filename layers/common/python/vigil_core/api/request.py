"""A request in the payload format 2.0 of API Gateway, in the form that routes read."""

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
from vigil_core.domain.text_rule import MAX_NAME_CHARS, NAME_RULE, is_name
from vigil_core.runtime.lambda_context import LambdaContext

MAX_BODY_BYTES = 3 * 1024 * 1024
MAX_LONG_POLL_S = 25
RESPONSE_RESERVE = timedelta(seconds=3)
"""The part of the function's time that is reserved for the response after a long poll."""

_WAIT = re.compile(r'\s*wait\s*=\s*"?([0-9]{1,9})"?\s*(?:;.*)?', re.IGNORECASE | re.ASCII | re.DOTALL)


@dataclass(frozen=True)
class Request:
    """One request. A long poll ends at `respond_by` at the latest."""

    event: Mapping[str, Any]
    arrived_at: datetime
    respond_by: datetime

    @classmethod
    def from_event(cls, event: Mapping[str, Any], context: LambdaContext, now: datetime) -> Request:
        """Return the request of an event that arrives now."""
        remaining = timedelta(milliseconds=context.get_remaining_time_in_millis())
        return cls(event, now, now + remaining - RESPONSE_RESERVE)

    @property
    def method(self) -> str:
        """The HTTP method."""
        return str(self.event["requestContext"]["http"]["method"])

    @property
    def path(self) -> str:
        """The path of the request."""
        return str(self.event["rawPath"])

    @property
    def request_id(self) -> str:
        """API Gateway's id of the request, which its access log and the response also contain."""
        return str(self.event["requestContext"]["requestId"])

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """The headers by lower-case name. API Gateway sends lower case, `sam local` the client's spelling."""
        return {name.lower(): value for name, value in (self.event.get("headers") or {}).items()}

    @property
    def query(self) -> list[tuple[str, str]]:
        """Every parameter in order. `queryStringParameters` would join repeated parameters with commas."""
        return parse_qsl(self.event.get("rawQueryString") or "", keep_blank_values=True)

    @cached_property
    def access(self) -> Access:
        """The identity and scopes from the authorizer.

        Raises:
            Unauthorized: The request has not passed the authorizer.
        """
        context = (self.event["requestContext"].get("authorizer") or {}).get("lambda")
        if not context:
            raise Unauthorized("This route needs an API key: Authorization: Bearer vgl_…")
        return Access.from_authorizer_context(context)

    def body(self, *, optional: bool, message_pointers: frozenset[str] = frozenset()) -> JsonValue:
        """Parse the body as JSON, whatever its Content-Type. An absent body is {} if it is `optional`.

        Raises:
            PayloadTooLarge: The body exceeds the limit.
            MalformedRequest: The body is not JSON.
            ValidationFailed: The body contains a number or a text that Vigil refuses.
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
            raise PayloadTooLarge(f"A request body has at most {MAX_BODY_BYTES} bytes")
        return {} if optional and not raw.strip() else loads(raw, message_pointers=message_pointers)

    @property
    def preferred_wait_s(self) -> int | None:
        """The seconds of `Prefer: wait=N` (RFC 7240), limited to the maximum. None without the header."""
        matches = map(_WAIT.fullmatch, self.headers.get("prefer", "").split(","))
        return next((min(int(match[1]), MAX_LONG_POLL_S) for match in matches if match), None)

    @property
    def preference_applied(self) -> dict[str, str]:
        """The response header that confirms the long poll, if there was one."""
        return {} if self.preferred_wait_s is None else {"preference-applied": f"wait={self.preferred_wait_s}"}

    def long_poll_deadline(self, default_s: int) -> datetime:
        """Return the end of the long poll, counted from the arrival of the request."""
        wait_s = default_s if self.preferred_wait_s is None else self.preferred_wait_s
        return min(self.arrived_at + timedelta(seconds=wait_s), self.respond_by)

    @property
    def idempotency_key(self) -> str | None:
        """The Idempotency-Key. A quoted key and a bare key are the same.

        Raises:
            ValidationFailed: The key has a wrong length, or a character that no name contains.
        """
        header = self.headers.get("idempotency-key")
        if header is None:
            return None
        key = header.strip()
        if len(key) > 1 and key[0] == key[-1] == '"':
            key = key[1:-1]
        if not is_name(key):
            raise ValidationFailed.at("Idempotency-Key", f"must be 1 to {MAX_NAME_CHARS} characters, and {NAME_RULE}")
        return key

    def matches_etag(self, etag: str) -> bool:
        """Return whether If-None-Match has this ETag."""
        etags = [tag.strip().removeprefix("W/") for tag in self.headers.get("if-none-match", "").split(",")]
        return etag in etags or "*" in etags
