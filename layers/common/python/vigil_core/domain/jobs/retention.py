"""Retention: the expiry of open and ended jobs. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from vigil_core.domain.jobs.job import Job

DEFAULT_RETENTION = timedelta(days=30)
"""The retention of ended jobs and runs, unless the deployment sets another one."""
OPEN_JOB_TTL = timedelta(days=365)
"""The life of an open job from its creation or start time. A change in the second half of it renews it."""


def expires_at_of(before: Job | None, after: Job, retention: timedelta) -> datetime:
    """Compute the expiry of a version of a job.

    An ended job expires `retention` after its end. An open job keeps the expiry of `before` until a renewal is needed.

    Args:
        before: The previous version; the same version if there is no other.
        after: The version to store.
        retention: The retention of ended jobs.
    """
    if after.finished_at is not None:
        return _truncate_to_seconds(after.finished_at + retention)
    current_expiry = None if before is None or before.ended else before.expires_at
    if current_expiry is not None and not needs_renewal(current_expiry, after):
        return current_expiry
    # Each attempt has another expiry, so that a conditional update of one attempt cannot affect the next.
    return _truncate_to_seconds(_ttl_start(after) + OPEN_JOB_TTL + timedelta(seconds=after.attempt))


def needs_renewal(expires_at: datetime, job: Job) -> bool:
    """Return whether an open job is in the second half of its life."""
    return expires_at - _ttl_start(job) < OPEN_JOB_TTL / 2


def _ttl_start(job: Job) -> datetime:
    return max(job.updated_at, job.scheduled_at or job.updated_at)


def _truncate_to_seconds(timestamp: datetime) -> datetime:
    """Drop the microseconds, which a DynamoDB TTL cannot represent."""
    return timestamp.replace(microsecond=0)
