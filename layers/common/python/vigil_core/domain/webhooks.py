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

WAITS: Final = "waits"
"""The webhook that has no address of its own: it signs what waits have told to the addresses that they name."""
MAX_WEBHOOKS = 50
"""In a namespace: every event is held against each of them."""
SECRET_BYTES = 32
SECRET_OVERLAP = timedelta(hours=24)
"""For so long after a change of the secret, messages are signed with the one before as well."""
DELAYS_S: Final = (60, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""From each failed try to the next."""
MAX_TRIES: Final = len(DELAYS_S) + 1
_LONGEST_RETRY_AFTER_S = 86_400
_JITTER = 0.1
RESEND = timedelta(minutes=15)
"""When a delivery that was handed to the queue and is still pending is handed over again: its message may be lost."""
DELIVERY_LIFE = timedelta(days=30)
"""From its last try on."""
_TRIES_KEPT = 2 * MAX_TRIES

_PATTERN = re.compile(r"\*|vigil(\.[a-z_]+){0,2}\.\*|vigil\.[a-z_]+\.[a-z_]+")
_PREFIX = "whsec_"
_LEAST_SECRET, _MOST_SECRET = 24, 64
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
    disabled_because: str | None
    description: str | None
    secret: str = field(repr=False)
    former_secret: str | None = field(default=None, repr=False)
    former_until: datetime | None = None
    created_at: datetime
    updated_at: datetime
    version: int = 1

    def wants(self, event: Event) -> bool:
        """Whether an event is to be sent to it. Progress is for sockets alone."""
        return self.enabled and self.url is not None and tells(event) and any(_fits(p, event.type) for p in self.events)

    def succeeding(self, before: Webhook, now: datetime) -> Webhook:
        """This as the next version of what stands under the same name, whose secret goes on for a while."""
        after = replace(self, created_at=before.created_at, updated_at=now, version=before.version + 1)
        if self.secret == before.secret:
            return replace(after, former_secret=before.former_secret, former_until=before.former_until)
        return replace(after, former_secret=before.secret, former_until=now + SECRET_OVERLAP)

    def disabled(self, because: str, now: datetime) -> Webhook:
        """Told no more, until it is put again."""
        return replace(self, enabled=False, disabled_because=because, updated_at=now, version=self.version + 1)

    def secrets(self, now: datetime) -> tuple[str, ...]:
        """What to sign with now."""
        if self.former_secret is not None and self.former_until is not None and now < self.former_until:
            return self.secret, self.former_secret
        return (self.secret,)


@dataclass(frozen=True, kw_only=True)
class Try:
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
    failed_tries: int = 0
    tries: tuple[Try, ...] = ()
    next_at: datetime | None
    created_at: datetime
    finished_at: datetime | None = None

    def handed_over(self, now: datetime) -> Delivery:
        """It was given to the queue: should its message be lost, it is looked for later."""
        return replace(self, next_at=now + RESEND)

    def after(self, tried: Try, *, retry_after_s: int | None, chance: float) -> Delivery:
        """It was tried. 2xx delivers it, 410 ends it; anything else is tried again as long as it has tries left. No
        sooner than the receiver asks; `chance`, 0 to 1, spreads those that failed together."""
        tries = (*self.tries, tried)[-_TRIES_KEPT:]
        if tried.status is not None and 200 <= tried.status < 300:
            return replace(self, tries=tries, status="delivered", error=None, next_at=None, finished_at=_end(tried))
        failed = replace(self, tries=tries, failed_tries=self.failed_tries + 1)
        if tried.status == 410:
            return failed.given_up("The receiver wants no more (410)", _end(tried))
        if failed.failed_tries >= MAX_TRIES:
            return failed.given_up(f"No try of {MAX_TRIES} succeeded", _end(tried))
        delay_s = DELAYS_S[failed.failed_tries - 1] * (1 + _JITTER * chance)
        wished_s = min(retry_after_s or 0, _LONGEST_RETRY_AFTER_S)
        return replace(failed, next_at=_end(tried) + timedelta(seconds=max(delay_s, wished_s)))

    def given_up(self, why: str, now: datetime) -> Delivery:
        """It is tried no more, unless it is replayed."""
        return replace(self, status="failed", error=why, next_at=None, finished_at=now)

    def replayed(self, now: datetime) -> Delivery:
        """It begins anew, at once."""
        return replace(self, status="pending", error=None, failed_tries=0, next_at=now, finished_at=None)


def delivery_of(event: Event, webhook: str, url: str | None, now: datetime) -> Delivery:
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
        next_at=now + RESEND,
        created_at=now,
    )


def delivery_id(event: Event) -> str:
    """Sorts by the event's time, is made of what never changes, and has no full stop: a signature joins by those."""
    ms = int(event.time.timestamp() * 1000)
    return f"{ms:013}_{event.event_id.replace('.', '_')}"


def tells(event: Event) -> bool:
    """Whether webhooks may hear of this event."""
    return event.type != "vigil.job.progress"


def is_pattern(text: str) -> bool:
    """Whether this says which events: a type, `vigil.job.*`, or `*`."""
    return _PATTERN.fullmatch(text) is not None


def new_secret(random: bytes) -> str:
    """A secret as both sides keep it."""
    return _PREFIX + base64.b64encode(random).decode()


def is_secret(text: str) -> bool:
    """Whether this can sign: `whsec_` and the Base64 of 24 to 64 bytes."""
    return _LEAST_SECRET <= len(_secret_bytes(text)) <= _MOST_SECRET


def signed_headers(secrets: Sequence[str], message_id: str, at: datetime, body: bytes) -> Mapping[str, str]:
    """What proves to the receiver who sends this, and when: a signature for each secret."""
    timestamp = str(to_epoch_s(at))
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    macs = (hmac.new(_secret_bytes(secret), signed, hashlib.sha256).digest() for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{base64.b64encode(mac).decode()}" for mac in macs),
    }


def _end(tried: Try) -> datetime:
    return tried.at + timedelta(milliseconds=tried.duration_ms)


def _fits(pattern: str, event_type: str) -> bool:
    return event_type.startswith(pattern[:-1]) if pattern.endswith("*") else event_type == pattern


def _secret_bytes(text: str) -> bytes:
    if not text.startswith(_PREFIX):
        return b""
    try:
        return base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return b""
