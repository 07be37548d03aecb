"""The sweep of one queue, which the sweeper runs every minute."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from vigil_core.services.context import DispatchesJobs
from vigil_core.services.executors.dispatch import dispatch
from vigil_core.services.jobs.transitions import apply_timers
from vigil_core.services.queues.renew_ttl import renew_queue_ttl


class QueueSweepContext(DispatchesJobs, Protocol):
    """The collaborators of a sweep."""


MAX_JOBS = 2_000
"""The number of jobs of each kind that one sweep handles. The next sweep handles the rest."""


class QueueSweepFailed(Exception):
    """Raised at the end of a sweep if some jobs caused errors. The next sweep finds those jobs again."""


def sweep_queue(ctx: QueueSweepContext, namespace: str, queue: str) -> int:
    """Apply all due changes to the jobs of a queue.

    1. Renew the TTL of old jobs, once a day.
    2. Promote scheduled jobs, reclaim expired leases (see `leases`), and enforce timeouts and cancel deadlines.
    3. Dispatch the jobs that no process dispatched, because the queue was paused or the dispatcher crashed.

    Each step can be repeated. If the sweeper crashes, the next sweep does the remaining work.

    Returns:
        The number of due jobs.

    Raises:
        QueueSweepFailed: Some jobs caused errors; all others were handled.
    """
    now = ctx.now()
    renew_queue_ttl(ctx, namespace, queue, now)
    overdue_ids = [
        job_id
        for status in ("scheduled", "running")
        for job_id in ctx.job_queues.overdue(namespace, queue, status, now, MAX_JOBS)
    ]
    undispatched_ids = ctx.job_queues.to_dispatch(namespace, queue, MAX_JOBS)
    if undispatched_ids and ctx.job_queues.is_paused(namespace, queue):
        undispatched_ids = []
    errors = _run_for_each(ctx, partial(apply_timers, ctx, namespace), overdue_ids)
    errors += _run_for_each(ctx, partial(dispatch, ctx, namespace, actor="sweeper"), undispatched_ids)
    if errors:
        first_id, reason = errors[0]
        raise QueueSweepFailed(
            f"The sweep of queue {queue!r} failed for {len(errors)} jobs, first for {first_id}: {reason!r}"
        )
    return len(overdue_ids) + len(undispatched_ids)


def _run_for_each(
    ctx: QueueSweepContext, step: Callable[[str], object], job_ids: Iterable[str]
) -> list[tuple[str, Exception]]:
    """Run a step for each job in parallel, and return the errors with their job ids."""
    errors: list[tuple[str, Exception]] = []

    def run(job_id: str) -> None:
        try:
            step(job_id)
        except Exception as error:
            errors.append((job_id, error))

    ctx.in_parallel(run, job_ids)
    return errors
