"""Webhooks: who wants to be told of what over HTTP, how a message is signed, and when it is tried again. Pure.

Messages are signed and told as Standard Webhooks 1.0 says: https://www.standardwebhooks.com
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

from vigil_core.domain.events.event import Event
from vigil_core.domain.exact_json import dumps
from vigil_core.domain.timestamps import to_epoch_s

DeliveryStatus: TypeAlias = Literal["pending", "delivered", "failed"]

WAITS_WEBHOOK: Final = "waits"
"""The webhook that has no address of its own: it signs what waits have told to the addresses that they name."""
MAX_WEBHOOKS = 50
"""In a namespace: every event is held against each of them."""
SECRET_BYTES = 32
SECRET_OVERLAP = timedelta(hours=24)
"""For so long after a change of the secret, messages are signed with the one before as well."""
RETRY_DELAYS_S: Final = (60, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""From each failed try to the next."""
MAX_ATTEMPTS: Final = len(RETRY_DELAYS_S) + 1
_MAX_RETRY_AFTER_S = 86_400
_JITTER = 0.1
ENQUEUE_TIMEOUT = timedelta(minutes=15)
"""When a delivery that was handed to the queue and is still pending is handed over again: its message may be lost."""
DELIVERY_TTL = timedelta(days=30)
"""From its last try on."""
_MAX_STORED_ATTEMPTS = 2 * MAX_ATTEMPTS

_PATTERN = re.compile(r"\*|vigil(\.[a-z_]+){0,2}\.\*|vigil\.[a-z_]+\.[a-z_]+")
_SECRET_PREFIX = "whsec_"
_MIN_SECRET_BYTES, _MAX_SECRET_BYTES = 24, 64
"""In bytes, as the specification has it."""
_SECONDS = re.compile("[0-9]{1,9}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """One version of a webhook. `url` is None of the one named `waits` alone."""

    namespace: str
    name: str
    url: str | None
    events: tuple[str, ...]
    enabled: bool
    disabled_reason: str | None
    description: str | None
    secret: str = field(repr=False)
    previous_secret: str | None = field(default=None, repr=False)
    previous_secret_until: datetime | None = None
    created_at: datetime
    updated_at: datetime
    version: int = 1

    def accepts(self, event: Event) -> bool:
        """Whether an event is to be sent to it. Progress is for sockets alone."""
        return (
            self.enabled
            and self.url is not None
            and is_deliverable(event)
            and any(_pattern_matches(p, event.type) for p in self.events)
        )

    def as_next_version(self, before: Webhook, now: datetime) -> Webhook:
        """This as the next version of what stands under the same name, whose secret goes on for a while."""
        after = replace(self, created_at=before.created_at, updated_at=now, version=before.version + 1)
        if self.secret == before.secret:
            return replace(
                after, previous_secret=before.previous_secret, previous_secret_until=before.previous_secret_until
            )
        return replace(after, previous_secret=before.secret, previous_secret_until=now + SECRET_OVERLAP)

    def disabled(self, reason: str, now: datetime) -> Webhook:
        """Told no more, until it is put again."""
        return replace(self, enabled=False, disabled_reason=reason, updated_at=now, version=self.version + 1)

    def signing_secrets(self, now: datetime) -> tuple[str, ...]:
        """What to sign with now."""
        if (
            self.previous_secret is not None
            and self.previous_secret_until is not None
            and now < self.previous_secret_until
        ):
            return self.secret, self.previous_secret
        return (self.secret,)


@dataclass(frozen=True, kw_only=True)
class DeliveryAttempt:
    """One try of a delivery: the status that was answered, or why there is none."""

    at: datetime
    duration_ms: int
    status: int | None
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One event for one webhook. `url` is the address that a wait named; None: the webhook's own. `failed_tries` counts
    from the creation, or from the last replay; `tries` are the latest of all."""

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
        """It was given to the queue: should its message be lost, it is looked for later."""
        return replace(self, next_attempt_at=now + ENQUEUE_TIMEOUT)

    def after_attempt(self, attempt: DeliveryAttempt, *, retry_after_s: int | None, jitter: float) -> Delivery:
        """It was tried. 2xx delivers it, 410 ends it; anything else is tried again as long as it has tries left. No
        sooner than the receiver asks; `chance`, 0 to 1, spreads those that failed together."""
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
            return failed.abandoned("The receiver wants no more (410)", _attempt_end(attempt))
        if failed.failed_attempts >= MAX_ATTEMPTS:
            return failed.abandoned(f"No try of {MAX_ATTEMPTS} succeeded", _attempt_end(attempt))
        delay_s = RETRY_DELAYS_S[failed.failed_attempts - 1] * (1 + _JITTER * jitter)
        retry_after_limit_s = min(retry_after_s or 0, _MAX_RETRY_AFTER_S)
        return replace(
            failed, next_attempt_at=_attempt_end(attempt) + timedelta(seconds=max(delay_s, retry_after_limit_s))
        )

    def abandoned(self, reason: str, now: datetime) -> Delivery:
        """It is tried no more, unless it is replayed."""
        return replace(self, status="failed", error=reason, next_attempt_at=None, finished_at=now)

    def replayed(self, now: datetime) -> Delivery:
        """It begins anew, at once."""
        return replace(self, status="pending", error=None, failed_attempts=0, next_attempt_at=now, finished_at=None)


def create_delivery(event: Event, webhook: str, url: str | None, now: datetime) -> Delivery:
    """What tells a webhook of an event: of the same event always the same, however often it is made."""
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
    """Sorts by the event's time, is made of what never changes, and has no full stop: a signature joins by those."""
    ms = int(event.time.timestamp() * 1000)
    return f"{ms:013}_{event.event_id.replace('.', '_')}"


def is_deliverable(event: Event) -> bool:
    """Whether webhooks may hear of this event."""
    return event.type != "vigil.job.progress"


def is_event_pattern(text: str) -> bool:
    """Whether this says which events: a type, `vigil.job.*`, or `*`."""
    return _PATTERN.fullmatch(text) is not None


def new_secret(random: bytes) -> str:
    """A secret as both sides keep it."""
    return _SECRET_PREFIX + base64.b64encode(random).decode()


def is_secret(text: str) -> bool:
    """Whether this can sign: `whsec_` and the Base64 of 24 to 64 bytes."""
    return _MIN_SECRET_BYTES <= len(_decode_secret(text)) <= _MAX_SECRET_BYTES


def signature_headers(secrets: Sequence[str], message_id: str, sent_at: datetime, body: bytes) -> Mapping[str, str]:
    """What proves to the receiver who sends this, and when: a signature for each secret."""
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
