"""Renewal of the TTL of queues with jobs, and of jobs that stay long, once a day per queue."""

from __future__ import annotations

import zlib
from datetime import datetime, timedelta
from typing import Protocol

from vigil_core.domain.jobs.retention import OPEN_JOB_TTL
from vigil_core.services.context import UsesJobQueues, UsesJobs


class RenewTtlContext(UsesJobs, UsesJobQueues, Protocol):
    """The collaborators of the TTL renewal."""


MINUTES_PER_DAY = 24 * 60
MAX_JOBS = 2_000
"""The number of jobs of each priority, oldest first, that one day's renewal reads."""


def renew_queue_ttl(ctx: RenewTtlContext, namespace: str, queue: str, now: datetime) -> None:
    """Renew the TTL of a queue and of its old ready jobs, in the queue's minute of the day.

    A hash of the queue's name selects the minute. If the sweeper misses it, the renewal of one of the following days
    has the same effect: a queue is renewed a month, and a job half a year before its TTL ends. A queue without jobs in
    the index is not renewed.
    """
    if zlib.crc32(f"{namespace}#{queue}".encode()) % MINUTES_PER_DAY != now.hour * 60 + now.minute:
        return
    if ctx.job_queues.has_jobs(namespace, queue):
        ctx.job_queues.register(namespace, queue)
    old_job_ids = ctx.job_queues.ready_since(
        namespace, queue, before=now - OPEN_JOB_TTL / 2 + timedelta(days=1), limit=MAX_JOBS
    )
    for job in ctx.jobs.find_many(namespace, old_job_ids).values():
        ctx.jobs.renew_ttl(job)
