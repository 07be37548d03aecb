"""Webhooks: their subscriptions, their signatures, and the retries of their deliveries. Pure.

Signatures and deliveries follow Standard Webhooks 1.0: https://www.standardwebhooks.com
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias

from vigil_core.domain.errors import InvalidTransition
from vigil_core.domain.events.event import Event
from vigil_core.domain.exact_json import dumps
from vigil_core.domain.timestamps import to_epoch_s, to_text

DeliveryStatus: TypeAlias = Literal["pending", "delivered", "failed"]

WAITS_WEBHOOK: Final = "waits"
"""The webhook without a URL of its own. Its secret signs the deliveries to the URLs that waits name."""
SECRET_BYTES = 32
SECRET_OVERLAP = timedelta(hours=24)
"""After a rotation, deliveries are also signed with the previous secret for this time."""
MAX_PREVIOUS_SECRETS = 4
"""The number of replaced secrets that are valid at once. Each adds a signature to every delivery."""
RETRY_DELAYS_S: Final = (60, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Delays from each failed attempt to the next one."""
MAX_ATTEMPTS: Final = len(RETRY_DELAYS_S) + 1
_MAX_RETRY_AFTER_S = 86_400
_JITTER = 0.1
ENQUEUE_TIMEOUT = timedelta(minutes=15)
"""A delivery that is still pending this long after it was enqueued is enqueued again: its message may be lost."""
DELIVERY_TTL = timedelta(days=30)
"""The time for which a delivery is stored after its last attempt."""
_MAX_STORED_ATTEMPTS = 2 * MAX_ATTEMPTS

_PATTERN = re.compile(r"\*|vigil(\.[a-z_]+){0,2}\.\*|vigil\.[a-z_]+\.[a-z_]+")
_SECRET_PREFIX = "whsec_"
_MIN_SECRET_BYTES, _MAX_SECRET_BYTES = 24, 64
"""Limits of the specification, in bytes."""


@dataclass(frozen=True, kw_only=True)
class PreviousSecret:
    """A replaced secret, which signs deliveries until a time."""

    secret: str = field(repr=False)
    until: datetime


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """One version of a webhook. Only the webhook named `waits` has no `url`."""

    namespace: str
    name: str
    url: str | None
    events: tuple[str, ...]
    enabled: bool
    disabled_reason: str | None
    description: str | None
    secret: str = field(repr=False)
    previous_secrets: tuple[PreviousSecret, ...] = ()
    """The replaced secrets, newest first."""
    created_at: datetime
    updated_at: datetime
    version: int = 1

    def accepts(self, event: Event) -> bool:
        """Return True if the webhook receives an event. Progress events go to WebSockets only."""
        return (
            self.enabled
            and self.url is not None
            and is_deliverable(event)
            and any(_pattern_matches(p, event.type) for p in self.events)
        )

    def as_next_version(self, before: Webhook, now: datetime) -> Webhook:
        """Return this webhook as the version after `before`. Each replaced secret stays valid during its overlap.

        Raises:
            InvalidTransition: Too many replaced secrets are still valid.
        """
        after = replace(self, created_at=before.created_at, updated_at=now, version=before.version + 1)
        if self.secret == before.secret:
            return replace(after, previous_secrets=before.previous_secrets)
        replaced = PreviousSecret(secret=before.secret, until=now + SECRET_OVERLAP)
        valid = [previous for previous in (replaced, *before.previous_secrets) if previous.until > now]
        previous_secrets = tuple(previous for previous in valid if previous.secret != self.secret)
        if len(previous_secrets) > MAX_PREVIOUS_SECRETS:
            raise InvalidTransition(
                f"Webhook {self.name} has {MAX_PREVIOUS_SECRETS} replaced secrets that are still valid: "
                f"rotate again after {to_text(previous_secrets[-1].until)}"
            )
        return replace(after, previous_secrets=previous_secrets)

    def disabled(self, reason: str, now: datetime) -> Webhook:
        """Return the webhook without deliveries until a client replaces its definition."""
        return replace(self, enabled=False, disabled_reason=reason, updated_at=now, version=self.version + 1)

    def signing_secrets(self, now: datetime) -> tuple[str, ...]:
        """Return the secrets that sign a delivery now."""
        return self.secret, *(previous.secret for previous in self.previous_secrets if now < previous.until)


@dataclass(frozen=True, kw_only=True)
class DeliveryAttempt:
    """One HTTP request of a delivery: the status of the response, or the error without one."""

    at: datetime
    duration_ms: int
    status: int | None
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One event for one webhook.

    Attributes:
        url: The URL that a wait named; None for the URL of the webhook.
        failed_attempts: The number of failed attempts since the creation or the last replay.
        attempts: The latest attempts, including those before a replay.
    """

    namespace: str
    webhook: str
    delivery_id: str
    event_id: str
    event_type: str
    url: str | None
    body: str
    status: DeliveryStatus
    error: str | None = None
    failed_attempts: int = 0
    attempts: tuple[DeliveryAttempt, ...] = ()
    next_attempt_at: datetime | None
    created_at: datetime
    finished_at: datetime | None = None

    def enqueued(self, now: datetime) -> Delivery:
        """Return the delivery after it was enqueued. If its message is lost, it becomes due again."""
        return replace(self, next_attempt_at=now + ENQUEUE_TIMEOUT)

    def after_attempt(self, attempt: DeliveryAttempt, *, retry_after_s: int | None, jitter: float) -> Delivery:
        """Return the delivery after an attempt.

        A 2xx response delivers it and 410 abandons it. Any other result leads to a retry while attempts are left.

        Args:
            attempt: The attempt.
            retry_after_s: The delay that the receiver asked for. The retry does not happen earlier.
            jitter: A random number from 0 to 1, which spreads deliveries that failed at the same time.
        """
        attempts = (*self.attempts, attempt)[-_MAX_STORED_ATTEMPTS:]
        if attempt.status is not None and 200 <= attempt.status < 300:
            return replace(
                self,
                attempts=attempts,
                status="delivered",
                error=None,
                next_attempt_at=None,
                finished_at=_attempt_end(attempt),
            )
        failed = replace(self, attempts=attempts, failed_attempts=self.failed_attempts + 1)
        if attempt.status == 410:
            return failed.abandoned("The receiver rejects further deliveries (410)", _attempt_end(attempt))
        if failed.failed_attempts >= MAX_ATTEMPTS:
            return failed.abandoned(f"None of {MAX_ATTEMPTS} attempts succeeded", _attempt_end(attempt))
        delay_s = RETRY_DELAYS_S[failed.failed_attempts - 1] * (1 + _JITTER * jitter)
        retry_after_limit_s = min(retry_after_s or 0, _MAX_RETRY_AFTER_S)
        return replace(
            failed, next_attempt_at=_attempt_end(attempt) + timedelta(seconds=max(delay_s, retry_after_limit_s))
        )

    def abandoned(self, reason: str, now: datetime) -> Delivery:
        """Return the delivery without further attempts. Only a replay attempts it again."""
        return replace(self, status="failed", error=reason, next_attempt_at=None, finished_at=now)

    def replayed(self, now: datetime) -> Delivery:
        """Return the delivery with all its attempts available again, due now."""
        return replace(self, status="pending", error=None, failed_attempts=0, next_attempt_at=now, finished_at=None)


def create_delivery(event: Event, webhook: str, url: str | None, now: datetime) -> Delivery:
    """Create the delivery of an event to a webhook. The same event always results in the same delivery."""
    return Delivery(
        namespace=event.namespace,
        webhook=webhook,
        delivery_id=delivery_id(event),
        event_id=event.event_id,
        event_type=event.type,
        url=url,
        body=dumps(event.envelope()),
        status="pending",
        next_attempt_at=now + ENQUEUE_TIMEOUT,
        created_at=now,
    )


def delivery_id(event: Event) -> str:
    """Return the id of the delivery of an event.

    Ids sort by the time of the event and derive from immutable values. They contain no full stop, because that
    character separates the parts of a signed message.
    """
    ms = int(event.time.timestamp() * 1000)
    return f"{ms:013}_{event.event_id.replace('.', '_')}"


def is_deliverable(event: Event) -> bool:
    """Return True if webhooks may receive this event."""
    return event.type != "vigil.job.progress"


def is_event_pattern(text: str) -> bool:
    """Return True if the text selects events: a type, `vigil.job.*`, or `*`."""
    return _PATTERN.fullmatch(text) is not None


def new_secret(random: bytes) -> str:
    """Encode random bytes as a signing secret."""
    return _SECRET_PREFIX + base64.b64encode(random).decode()


def is_secret(text: str) -> bool:
    """Return True for a valid signing secret: `whsec_` and the Base64 text of 24 to 64 bytes."""
    return _MIN_SECRET_BYTES <= len(_decode_secret(text)) <= _MAX_SECRET_BYTES


def signature_headers(secrets: Sequence[str], message_id: str, sent_at: datetime, body: bytes) -> Mapping[str, str]:
    """Return the headers that prove the sender and the time of a message, with one signature for each secret."""
    timestamp = str(to_epoch_s(sent_at))
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    macs = (hmac.new(_decode_secret(secret), signed, hashlib.sha256).digest() for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{base64.b64encode(mac).decode()}" for mac in macs),
    }


def _attempt_end(attempt: DeliveryAttempt) -> datetime:
    return attempt.at + timedelta(milliseconds=attempt.duration_ms)


def _pattern_matches(pattern: str, event_type: str) -> bool:
    return event_type.startswith(pattern[:-1]) if pattern.endswith("*") else event_type == pattern


def _decode_secret(text: str) -> bytes:
    if not text.startswith(_SECRET_PREFIX):
        return b""
    try:
        return base64.b64decode(text.removeprefix(_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return b""
