"""The request rate of a namespace: a bucket of tokens in each process, filled in blocks from a row.

Time is divided into windows of 5 seconds. A namespace may make `rate × 5` requests in a window:

1. A process admits a few requests of a window without a token: its part of the capacity, divided by the number of
   processes that can exist. So a quiet namespace costs no write.
2. For more requests, it leases blocks of tokens from the row of the window. The row leases at most the capacity.
3. It leases at most once a second. A block lasts for more than a second at the present rate of the process, and near
   the end of the window until its end, so that the process can lease at once in the next window.

So all processes together admit at most twice the capacity, and one process writes at most once a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

WINDOW_S = 5
LEASE_INTERVAL_S = 1.0
MIN_BLOCK = 5
BLOCK_S = 1.5
"""The time for which a block lasts at the present rate of the process."""
LAST_BLOCK_S = 3.5
"""The time before the end of the window in which a block lasts until that end."""
BLOCK_RESERVE = 1.3


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
    last_lease_s: float = -math.inf

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
        self.requested += 1
        if self.admitted < capacity // processes + self.leased:
            self.admitted += 1
            return Proceed()
        room = capacity - self.leased_by_all
        if room <= 0:
            return Refuse(math.ceil((window + 1) * WINDOW_S - now_s))
        if now_s < self.last_lease_s + LEASE_INTERVAL_S:
            return Refuse(1)
        elapsed_s = max(0.1, now_s - window * WINDOW_S)
        rest_s = WINDOW_S - elapsed_s
        block_s = rest_s if rest_s <= LAST_BLOCK_S else BLOCK_S
        wanted = max(MIN_BLOCK, math.ceil(BLOCK_RESERVE * block_s * self.requested / elapsed_s))
        self.last_lease_s = now_s
        return Lease(window, min(wanted, room), capacity)

    def on_lease(self, lease: Lease, result: Literal["granted", "refused"], leased_by_all: int) -> None:
        """Record the answer of the row, and the tokens that it has leased in this window."""
        if lease.window == self.window:
            self.leased_by_all = leased_by_all
            self.leased += lease.tokens if result == "granted" else 0
