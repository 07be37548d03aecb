"""How long a job is kept: for a while after its end, and for a year after it was last cared for while it is open."""

from __future__ import annotations

from datetime import datetime, timedelta

from vigil_core.domain.jobs.job import Job

DEFAULT = timedelta(days=30)
"""How long what has ended is kept, unless the deployment says otherwise."""
LIFE = timedelta(days=365)
"""How long an open job is kept from its creation or start time on; anything done to it in the second half of that
begins the time anew."""


def expiry(before: Job | None, after: Job, retention: timedelta) -> datetime:
    """When a version of a job is over and done with: with its end, `retention` later. `before` is the version that it
    follows, or the same one when there is no other."""
    if after.finished_at is not None:
        return _whole(after.finished_at + retention)
    kept = None if before is None or before.ended else before.expires_at
    if kept is not None and not fades(kept, after):
        return kept
    # No two attempts have the same: what was meant for the one before is told apart.
    return _whole(_base(after) + LIFE + timedelta(seconds=after.attempt))


def fades(expires_at: datetime, job: Job) -> bool:
    """Whether an open job is in the second half of its life."""
    return expires_at - _base(job) < LIFE / 2


def _base(job: Job) -> datetime:
    return max(job.updated_at, job.scheduled_at or job.updated_at)


def _whole(moment: datetime) -> datetime:
    """What DynamoDB's TTL can carry."""
    return moment.replace(microsecond=0)
