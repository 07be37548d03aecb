"""The long poll on a job."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from vigil_core.domain.jobs.job import Job
from vigil_core.services.context import ChangesJobs, UsesLimits
from vigil_core.services.jobs.transitions import find_job
from vigil_core.services.long_poll import SlotRequest, long_poll


class JobLongPollContext(ChangesJobs, UsesLimits, Protocol):
    """The collaborators of the long poll."""


def long_poll_job(
    ctx: JobLongPollContext, namespace: str, job_id: str, *, until: datetime, slot: SlotRequest | None = None
) -> Job:
    """Wait until a job has ended, and return it; at the latest at `until`, open or not.

    Raises:
        JobNotFound: The job does not exist.
    """

    def poll() -> Job:
        return find_job(ctx, namespace, job_id)

    return long_poll(ctx, poll, is_done=lambda job: job.ended, until=until, latest=poll(), slot=slot)
