"""End a job that Vigil cannot process, because its data causes a permanent error."""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from vigil_core.domain.errors import JobNotFound
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import PROCESSING_FAILED, Job, JobError
from vigil_core.runtime.failures import error_name
from vigil_core.runtime.logging import logger
from vigil_core.services.context import ChangesJobs
from vigil_core.services.jobs.transitions import change


class UnprocessableContext(ChangesJobs, Protocol):
    """The collaborators of a change of a job."""


def processing_error(subject: str, error: Exception) -> JobError:
    """Return the error of a job or run that Vigil cannot process. It names the cause without any data."""
    return JobError(code=PROCESSING_FAILED, message=f"Vigil cannot process this {subject}: {error_name(error)}")


def fail_unprocessable(
    ctx: UnprocessableContext, namespace: str, job_id: str, error: Exception, *, actor: str = "matcher"
) -> Job | None:
    """Fail an open job for good, with the name of the error as the reason. Can be repeated.

    The failure is a version like any other: the stream delivers it, so everything that waits for the job continues.

    Returns:
        The job, or None if it does not exist.
    """
    job_error = processing_error("job", error)
    fields = {"action": "fail_unprocessable", "namespace": namespace, "job_id": job_id}
    logger.error("The job fails, because it cannot be processed", extra=fields, exc_info=error)
    with suppress(JobNotFound):
        return change(
            ctx,
            namespace,
            job_id,
            lambda job: transitions.fail_for_good(job, job_error, now=ctx.now(), actor=actor),
        )
    return None
