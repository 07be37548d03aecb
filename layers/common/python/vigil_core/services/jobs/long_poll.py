"""Hold an answer until a job has ended."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from vigil_core.domain.jobs.job import Job
from vigil_core.services.context import ChangesJobs
from vigil_core.services.jobs.transitions import find_job
from vigil_core.services.long_poll import long_poll


class JobLongPollContext(ChangesJobs, Protocol):
    """What this module uses of the outside world."""


def long_poll_job(ctx: JobLongPollContext, namespace: str, job_id: str, *, until: datetime) -> Job:
    """The job once it has ended, or as it is when time is over. Raises JobNotFound."""

    def poll() -> Job:
        return find_job(ctx, namespace, job_id)

    return long_poll(ctx, poll, is_done=lambda job: job.ended, until=until, latest=poll())
