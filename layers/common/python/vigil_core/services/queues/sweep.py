"""The sweep of one queue, which the sweeper runs every minute."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from vigil_core.services.context import DispatchesJobs, UsesMessageQueues
from vigil_core.services.executors.dispatch import dispatch
from vigil_core.services.fair_order import Step
from vigil_core.services.jobs.transitions import apply_timers
from vigil_core.services.queues.renew_ttl import renew_queue_ttl


class QueueSweepContext(DispatchesJobs, UsesMessageQueues, Protocol):
    """The collaborators of a sweep."""


MAX_JOBS = 2_000
"""The number of jobs of each kind that one sweep handles. The next sweep handles the rest."""


class QueueSweepFailed(Exception):
    """Raised at the end of a sweep if some jobs caused errors. The next sweep finds those jobs again."""


def find_due_steps(ctx: QueueSweepContext, namespace: str, queue: str) -> list[Step]:
    """Find all due changes of the jobs of a queue.

    1. Renew the TTL of the queue and of old jobs, once a day.
    2. Promote scheduled jobs, reclaim expired leases (see `leases`), and enforce timeouts and cancel deadlines.
    3. Dispatch the jobs that no process dispatched, because the queue was paused or the dispatcher crashed.

    Each step can be repeated. If the sweeper crashes, the next sweep does the remaining work.

    Returns:
        The steps 2 and 3: one for each due job.
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

    def step(job_id: str, change: Callable[[], object]) -> Step:
        label = f"job {job_id} in queue {queue!r} of {namespace}"
        return Step(namespace=namespace, label=label, run=lambda: (change(), 1)[1])

    return [
        *(step(job_id, partial(apply_timers, ctx, namespace, job_id)) for job_id in overdue_ids),
        *(step(job_id, partial(dispatch, ctx, namespace, job_id, actor="sweeper")) for job_id in undispatched_ids),
    ]


def sweep_queue(ctx: QueueSweepContext, namespace: str, queue: str) -> int:
    """Apply all due changes to the jobs of a queue, and return the number of due jobs.

    Raises:
        QueueSweepFailed: Some jobs caused errors; all others were handled.
    """
    steps = find_due_steps(ctx, namespace, queue)
    errors: list[tuple[str, Exception]] = []

    def run(step: Step) -> None:
        try:
            step.run()
        except Exception as error:
            errors.append((step.label, error))

    ctx.in_parallel(run, steps)
    if errors:
        label, reason = errors[0]
        raise QueueSweepFailed(f"{len(errors)} jobs of queue {queue!r} failed, first {label}: {reason!r}")
    return len(steps)
