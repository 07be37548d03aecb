"""Hold an answer until a job has ended."""

from __future__ import annotations

from datetime import datetime

from vigil_core.domain.jobs import Job
from vigil_core.services.change_job import find_job
from vigil_core.services.context import Context

FIRST_LOOK_S = 0.05
LONGEST_LOOK_S = 0.5


def hold_job(ctx: Context, namespace: str, job_id: str, *, until: datetime) -> Job:
    """The job once it has ended, or as it is when time is over. Raises JobNotFound."""
    pause_s = FIRST_LOOK_S
    while True:
        job = find_job(ctx, namespace, job_id)
        left_s = (until - ctx.now()).total_seconds()
        if job.ended or left_s <= 0:
            return job
        ctx.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, LONGEST_LOOK_S)
