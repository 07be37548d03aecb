"""The retry policy of a job."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

MAX_ATTEMPTS = 100
MAX_DELAY_S = 30 * 86_400


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """The number of attempts and the backoff between them.

    Delays are in seconds. `max_attempts` includes the first attempt.
    """

    max_attempts: int = 3
    initial_delay: Decimal = Decimal(1)
    max_delay: Decimal = Decimal(300)
    multiplier: Decimal = Decimal(2)
    jitter: bool = True

    def delay(self, failed_attempts: int, jitter: float) -> timedelta:
        """Compute the backoff delay before the next attempt.

        The delay grows exponentially up to `max_delay`. With full jitter it is a random part of that:
        https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/

        Args:
            failed_attempts: The number of attempts that have failed so far, at least 1.
            jitter: A random number in [0, 1). A policy without jitter ignores it.
        """
        cap = float(self.max_delay)
        try:
            seconds = min(cap, float(self.initial_delay) * float(self.multiplier) ** (failed_attempts - 1))
        except OverflowError:
            seconds = cap
        return timedelta(milliseconds=int(1000 * seconds * (jitter if self.jitter else 1)))
