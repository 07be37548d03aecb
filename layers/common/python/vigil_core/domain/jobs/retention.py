"""How long a job is kept: for a while after its end, and for a year after it was last cared for while it is open."""

from __future__ import annotations

from datetime import datetime, timedelta

from vigil_core.domain.jobs.job import Job

DEFAULT_RETENTION = timedelta(days=30)
"""How long what has ended is kept, unless the deployment says otherwise."""
OPEN_JOB_TTL = timedelta(days=365)
"""How long an open job is kept from its creation or start time on; anything done to it in the second half of that
begins the time anew."""


def expires_at_of(before: Job | None, after: Job, retention: timedelta) -> datetime:
    """When a version of a job is over and done with: with its end, `retention` later. `before` is the version that it
    follows, or the same one when there is no other."""
    if after.finished_at is not None:
        return _truncate_to_seconds(after.finished_at + retention)
    current_expiry = None if before is None or before.ended else before.expires_at
    if current_expiry is not None and not needs_renewal(current_expiry, after):
        return current_expiry
    # No two attempts have the same: what was meant for the one before is told apart.
    return _truncate_to_seconds(_ttl_start(after) + OPEN_JOB_TTL + timedelta(seconds=after.attempt))


def needs_renewal(expires_at: datetime, job: Job) -> bool:
    """Whether an open job is in the second half of its life."""
    return expires_at - _ttl_start(job) < OPEN_JOB_TTL / 2


def _ttl_start(job: Job) -> datetime:
    return max(job.updated_at, job.scheduled_at or job.updated_at)


def _truncate_to_seconds(timestamp: datetime) -> datetime:
    """What DynamoDB's TTL can carry."""
    return timestamp.replace(microsecond=0)
