"""What waits in a queue is not given up, however long it waits: once a day each queue's old jobs are cared for."""

from __future__ import annotations

import zlib
from datetime import datetime, timedelta
from typing import Protocol

from vigil_core.domain.jobs.retention import OPEN_JOB_TTL
from vigil_core.services.context import UsesJobQueues, UsesJobs


class RenewTtlContext(UsesJobs, UsesJobQueues, Protocol):
    """What this module uses of the outside world."""


MINUTES_PER_DAY = 24 * 60
MAX_JOBS = 2_000
"""Jobs of each priority that are looked at in a day, the oldest."""


def renew_queue_ttl(ctx: RenewTtlContext, namespace: str, queue: str, now: datetime) -> None:
    """Begin the lives of a queue's old jobs anew, if this is the queue's minute of the day. A minute that is left out
    is made up for by that of the next day, half a year long."""
    if zlib.crc32(f"{namespace}#{queue}".encode()) % MINUTES_PER_DAY != now.hour * 60 + now.minute:
        return
    old_job_ids = ctx.job_queues.ready_since(
        namespace, queue, before=now - OPEN_JOB_TTL / 2 + timedelta(days=1), limit=MAX_JOBS
    )
    for job in ctx.jobs.find_many(namespace, old_job_ids).values():
        ctx.jobs.renew_ttl(job)
