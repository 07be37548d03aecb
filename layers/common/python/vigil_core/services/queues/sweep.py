"""What the sweeper does for a queue each minute: whatever time has changed about its jobs, and no message has told."""

from __future__ import annotations

from typing import Protocol

from vigil_core.services.context import DispatchesJobs
from vigil_core.services.executors.dispatch import dispatch
from vigil_core.services.jobs.transitions import apply_timers
from vigil_core.services.queues.renew_ttl import renew_queue_ttl


class QueueSweepContext(DispatchesJobs, Protocol):
    """What this module uses of the outside world."""


MAX_JOBS = 2_000
"""Jobs of a queue that one sweep looks after; what is left over is the next one's."""


class QueueSweepFailed(Exception):
    """Some jobs of a queue could not be looked after; the others were, and the next sweep finds these again."""


def sweep_queue(ctx: QueueSweepContext, namespace: str, queue: str) -> int:
    """Start what is scheduled for now, take back leases that have run out, end what takes too long or was cancelled;
    dispatch what nobody has, because the queue was paused or because who was to do it died.
    Returns how many jobs were due.

    Raises:
        QueueNotMinded: after everything else was done.
    """
    now = ctx.now()
    renew_queue_ttl(ctx, namespace, queue, now)
    overdue_ids = [
        job_id
        for status in ("scheduled", "running")
        for job_id in ctx.job_queues.overdue(namespace, queue, status, now, MAX_JOBS)
    ]
    errors: list[tuple[str, Exception]] = []

    undispatched_ids = ctx.job_queues.to_dispatch(namespace, queue, MAX_JOBS)
    if undispatched_ids and ctx.job_queues.is_paused(namespace, queue):
        undispatched_ids = []

    def apply_due_timers(job_id: str) -> None:
        try:
            apply_timers(ctx, namespace, job_id)
        except Exception as error:
            errors.append((job_id, error))

    def dispatch_job(job_id: str) -> None:
        try:
            dispatch(ctx, namespace, job_id, actor="sweeper")
        except Exception as error:
            errors.append((job_id, error))

    ctx.in_parallel(apply_due_timers, overdue_ids)
    ctx.in_parallel(dispatch_job, undispatched_ids)
    if errors:
        first_id, reason = errors[0]
        raise QueueSweepFailed(f"{len(errors)} jobs of queue {queue!r}, the first, {first_id}, because: {reason!r}")
    return len(overdue_ids) + len(undispatched_ids)
