"""What is in a queue, counted as its index has it, and who works on it."""

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
    """What this module uses of the outside world."""


@dataclass(frozen=True, kw_only=True)
class QueueState:
    """A queue as it stands. `running` says how many jobs each worker runs under a lease."""

    paused: bool
    ready: Mapping[Priority, int]
    timed: Mapping[str, int]
    oldest_ready: datetime | None
    workers: Sequence[WorkerActivity]
    running: Mapping[str, int]


def queue_state(ctx: QueueStatsContext, namespace: str, queue: str) -> QueueState:
    """Costs a request per megabyte of index entries that are counted (some ten thousand jobs), and one per hundred
    running jobs."""
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
