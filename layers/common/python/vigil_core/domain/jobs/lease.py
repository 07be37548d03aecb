"""The lease of a claimed job."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The exclusive right of one worker to run a job until a time.

    Each report on the job must carry the lease token.
    """

    token: str
    worker: str
    duration_s: int
    expires_at: datetime
    claim_id: str | None = None
    """The id of the claim that granted the lease. A worker that lost the answer repeats the claim with the same id."""
    used: bool = False
    """Whether the worker has sent a heartbeat under this lease."""

    def is_in_first_half(self, now: datetime) -> bool:
        """Return whether more than half of the lease's duration is left. A worker may then ask without extending it."""
        return self.expires_at - now > timedelta(seconds=self.duration_s) / 2
