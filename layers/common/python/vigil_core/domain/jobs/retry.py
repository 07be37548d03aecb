"""Attempts at a job: who holds one and until when, and when the next one follows."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime

MAX_ATTEMPTS = 100
MAX_DELAY_S = 30 * 86_400


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """What follows a failed attempt. Delays are in seconds; `max_attempts` counts the first try."""

    max_attempts: int = 3
    initial_delay: Decimal = Decimal(1)
    max_delay: Decimal = Decimal(300)
    multiplier: Decimal = Decimal(2)
    jitter: bool = True

    def delay(self, failed_attempts: int, jitter: float) -> timedelta:
        """How long to wait after the `failed`th attempt: exponential up to the cap; with jitter any time up to that, by
        `chance` in [0, 1). https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/"""
        cap = float(self.max_delay)
        try:
            seconds = min(cap, float(self.initial_delay) * float(self.multiplier) ** (failed_attempts - 1))
        except OverflowError:
            seconds = cap
        return timedelta(milliseconds=int(1000 * seconds * (jitter if self.jitter else 1)))


def parse_retry_after(header: str | None, now: datetime) -> int | None:
    """What an answer's `Retry-After` asks for, in seconds from now; None when it asks for nothing that can be read.
    https://www.rfc-editor.org/rfc/rfc9110#name-retry-after"""
    text = (header or "").strip()
    if re.fullmatch("[0-9]{1,9}", text, re.ASCII):
        return int(text)
    try:
        retry_at = parsedate_to_datetime(text)
        return max(
            0, math.ceil(((retry_at if retry_at.tzinfo else retry_at.replace(tzinfo=UTC)) - now).total_seconds())
        )
    except (ValueError, TypeError, OverflowError):
        return None


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to run a job until a time, and to report on it: whoever has not its token has not the job.

    `claim_id` names the claim that was granted it, for a worker that asks again because the answer was lost. `used`:
    whether there was a sign of life under it.
    """

    token: str
    worker: str
    duration_s: int
    expires_at: datetime
    claim_id: str | None = None
    used: bool = False
