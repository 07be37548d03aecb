"""The request rate of a namespace: a bucket of tokens in each process, filled in blocks from a row.

Time is divided into windows of 5 seconds, and the capacity of a window is `rate × 5` requests:

1. A process admits a few requests of a window without a token: its part of half of the capacity, divided by the number
   of processes that can exist. So a quiet namespace costs no write.
2. For more requests, it leases blocks of tokens from the row of the window. A block lasts for the rest of the window at
   the present rate of the process, and has at most one and a half times the tokens that it has used. The row leases at
   most one and a half of the capacity, because processes do not use all the tokens that they lease.
3. It leases at most five times in a window, which is one write per second.

So all processes together admit at most twice the capacity, and a namespace that stays below its rate is not refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

WINDOW_S = 5
MAX_LEASES = WINDOW_S
"""The leases of a process in a window: one per second."""
MIN_BLOCK = 20
RESERVE = 1.3
"""The tokens that a process leases, as a multiple of what it needs at its present rate."""


@dataclass(frozen=True)
class Proceed:
    """The request may proceed."""


@dataclass(frozen=True)
class Refuse:
    """The request is refused. A repetition may succeed after this time."""

    retry_after_s: int


@dataclass(frozen=True)
class Lease:
    """The process needs a block of tokens before it can decide."""

    window: int
    tokens: int
    capacity: int


Decision: TypeAlias = Proceed | Refuse | Lease


@dataclass(kw_only=True)
class TokenBucket:
    """The tokens of one process for one namespace in the current window."""

    window: int = -1
    requested: int = 0
    admitted: int = 0
    leased: int = 0
    leased_by_all: int = 0
    """The tokens that the row of the window had leased when this process last saw it."""
    leases: int = 0
    """The leases of this process in the window, granted or refused."""

    def request(self, now_s: float, rate: int, processes: int) -> Decision:
        """Decide on a request.

        Args:
            now_s: The current time in seconds.
            rate: The requests per second of the namespace.
            processes: The number of processes that can exist.
        """
        window, capacity = int(now_s // WINDOW_S), rate * WINDOW_S
        if window != self.window:
            self.window, self.requested, self.admitted, self.leased, self.leased_by_all = window, 0, 0, 0, 0
            self.leases = 0
        self.requested += 1
        if self.admitted < capacity // 2 // processes + self.leased:
            self.admitted += 1
            return Proceed()
        leasable = capacity * 3 // 2
        room = leasable - self.leased_by_all
        if room <= 0 or self.leases >= MAX_LEASES:
            return Refuse(math.ceil((window + 1) * WINDOW_S - now_s))
        self.leases += 1
        return Lease(window, min(self._block(now_s - window * WINDOW_S), room), leasable)

    def _block(self, elapsed_s: float) -> int:
        """Return the tokens for the rest of the window at the present rate, but at most half as many again."""
        growth = self.requested * 3 // 2
        rest_of_window = math.ceil(RESERVE * self.requested * (WINDOW_S - elapsed_s) / max(0.1, elapsed_s))
        return max(MIN_BLOCK, min(growth, rest_of_window))

    def on_lease(self, lease: Lease, result: Literal["granted", "refused"], leased_by_all: int) -> None:
        """Record the answer of the row, and the tokens that it has leased in this window."""
        if lease.window == self.window:
            self.leased_by_all = leased_by_all
            self.leased += lease.tokens if result == "granted" else 0
