"""What the sweeper does for a queue each minute: whatever time has changed about its jobs, and no message has told."""

from __future__ import annotations

from vigil_core.services.context import Context
from vigil_core.services.executors.dispatch import dispatch
from vigil_core.services.jobs.transitions import on_time
from vigil_core.services.queues.renew_ttl import keep_waiting

MOST = 2_000
"""Jobs of a queue that one sweep looks after; what is left over is the next one's."""


class QueueNotMinded(Exception):
    """Some jobs of a queue could not be looked after; the others were, and the next sweep finds these again."""


def mind_queue(ctx: Context, namespace: str, queue: str) -> int:
    """Start what is scheduled for now, take back leases that have run out, end what takes too long or was cancelled;
    dispatch what nobody has, because the queue was paused or because who was to do it died.
    Returns how many jobs were due.

    Raises:
        QueueNotMinded: after everything else was done.
    """
    now = ctx.now()
    keep_waiting(ctx, namespace, queue, now)
    overdue = [
        job_id
        for status in ("scheduled", "running")
        for job_id in ctx.job_queues.overdue(namespace, queue, status, now, MOST)
    ]
    errors: list[tuple[str, Exception]] = []

    to_dispatch = ctx.job_queues.to_dispatch(namespace, queue, MOST)
    if to_dispatch and ctx.job_queues.is_paused(namespace, queue):
        to_dispatch = []

    def look(job_id: str) -> None:
        try:
            on_time(ctx, namespace, job_id)
        except Exception as error:
            errors.append((job_id, error))

    def set_going(job_id: str) -> None:
        try:
            dispatch(ctx, namespace, job_id, by="sweeper")
        except Exception as error:
            errors.append((job_id, error))

    ctx.in_parallel(look, overdue)
    ctx.in_parallel(set_going, to_dispatch)
    if errors:
        first, reason = errors[0]
        raise QueueNotMinded(f"{len(errors)} jobs of queue {queue!r}, the first, {first}, because: {reason!r}")
    return len(overdue) + len(to_dispatch)
