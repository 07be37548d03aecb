"""Hold an answer until a job has ended."""

from __future__ import annotations

from datetime import datetime

from vigil_core.domain.jobs.job import Job
from vigil_core.services.context import Context
from vigil_core.services.jobs.transitions import find_job
from vigil_core.services.long_poll import hold


def hold_job(ctx: Context, namespace: str, job_id: str, *, until: datetime) -> Job:
    """The job once it has ended, or as it is when time is over. Raises JobNotFound."""

    def look() -> Job:
        return find_job(ctx, namespace, job_id)

    return hold(ctx, look, enough=lambda job: job.ended, until=until, seen=look())
