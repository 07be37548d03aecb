"""Statistics of a queue: depth by priority and status, oldest ready job, and workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from vigil_core.domain.jobs.job import Priority
from vigil_core.services.context import UsesClock, UsesJobQueues, UsesJobs
from vigil_core.store.queues import WorkerActivity


class QueueStatsContext(UsesJobs, UsesJobQueues, UsesClock, Protocol):
    """The collaborators of the statistics."""


@dataclass(frozen=True, kw_only=True)
class QueueState:
    """The statistics of a queue."""

    paused: bool
    ready: Mapping[Priority, int]
    timed: Mapping[str, int]
    oldest_ready: datetime | None
    workers: Sequence[WorkerActivity]
    running: Mapping[str, int]
    """The number of jobs that each worker runs under a lease."""


def queue_state(ctx: QueueStatsContext, namespace: str, queue: str) -> QueueState:
    """Count the jobs of a queue in index `due`, and list its workers.

    The function makes one request per megabyte of index entries, about 10,000 jobs, and one per 100 running jobs.
    """
    ready = ctx.job_queues.ready_by_priority(namespace, queue)
    undispatched, oldest_undispatched = ctx.job_queues.undispatched_by_priority(namespace, queue)
    oldest_times = [at for at in (ctx.job_queues.oldest_ready(namespace, queue), oldest_undispatched) if at is not None]
    leased_jobs = ctx.jobs.find_many(namespace, ctx.job_queues.running(namespace, queue), consistent=False)
    return QueueState(
        paused=ctx.job_queues.is_paused(namespace, queue),
        ready={name: count + undispatched[name] for name, count in ready.items()},
        timed=ctx.job_queues.timed_by_status(namespace, queue),
        oldest_ready=min(oldest_times, default=None),
        workers=list(ctx.job_queues.workers(namespace, queue, now=ctx.now())),
        running=Counter(job.lease.worker for job in leased_jobs.values() if job.status == "running" and job.lease),
    )
