"""What waits in a queue is not given up, however long it waits: once a day each queue's old jobs are cared for."""

from __future__ import annotations

import zlib
from datetime import datetime, timedelta

from vigil_core.domain.jobs.retention import LIFE
from vigil_core.services.context import Context

MINUTES_A_DAY = 24 * 60
MOST = 2_000
"""Jobs of each priority that are looked at in a day, the oldest."""


def keep_waiting(ctx: Context, namespace: str, queue: str, now: datetime) -> None:
    """Begin the lives of a queue's old jobs anew, if this is the queue's minute of the day. A minute that is left out
    is made up for by that of the next day, half a year long."""
    if zlib.crc32(f"{namespace}#{queue}".encode()) % MINUTES_A_DAY != now.hour * 60 + now.minute:
        return
    old = ctx.job_queues.ready_since(namespace, queue, before=now - LIFE / 2 + timedelta(days=1), limit=MOST)
    for job in ctx.jobs.find_many(namespace, old).values():
        ctx.jobs.keep(job)
