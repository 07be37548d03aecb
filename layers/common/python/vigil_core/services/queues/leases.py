"""Expired leases: reclaim the jobs of workers that stopped reporting, so that other workers can claim them.

Two paths reclaim an expired lease, and each can be repeated:

1. A claim that finds too few ready jobs calls `reclaim_expired_leases` and grants the reclaimed jobs at once.
2. The sweeper runs `sweep_queue` every minute. It applies the timers of all overdue jobs, expired leases included.

Both end in `domain.jobs.transitions.apply_timers`: the job returns to `pending` while it has attempts left. Otherwise
it completes with its fallback or fails with LEASE_EXPIRED. A report with the old token is refused with LEASE_LOST.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from vigil_core.domain.errors import JobNotFound, StoreConflict
from vigil_core.services.context import ChangesJobs, UsesJobQueues
from vigil_core.services.jobs.transitions import apply_timers


class LeasesContext(ChangesJobs, UsesJobQueues, Protocol):
    """The job store, which reclaims the leases, and the queue's index of due jobs."""


def reclaim_expired_leases(ctx: LeasesContext, namespace: str, queue: str, *, limit: int, actor: str) -> list[str]:
    """Reclaim expired leases of a queue, longest expired first.

    A conflict means that another process reclaims the same lease, or that a worker has extended it after all. Then
    the job is left as it is. If the
    process crashes after it reclaims a lease, the job is ready and the next claim finds it.

    Returns:
        The ids of the jobs that the index shows as overdue, whether or not their leases were reclaimed here.
    """
    expired_ids = ctx.job_queues.overdue(namespace, queue, "running", ctx.now(), limit)
    for job_id in expired_ids:
        with suppress(JobNotFound, StoreConflict):
            apply_timers(ctx, namespace, job_id, actor=actor)
    return expired_ids
