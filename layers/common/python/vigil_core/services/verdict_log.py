"""The verdict log: one line for each release and skip with its reason, or one for many jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from vigil_core.domain.jobs.job import Job
from vigil_core.runtime.logging import logger
from vigil_core.runtime.tracing import ids_of

Transition: TypeAlias = Literal["released", "mutex_queued", "parked", "unparked", "mutex_acquired", "skipped", "failed"]

MAX_SINGLE_LINES = 5
"""The number of jobs with the same transition that get a line each. A line for more jobs names this many."""


def log_verdicts(jobs: Sequence[Job]) -> None:
    """Log the transitions that verdicts have caused, grouped by transition."""
    jobs_by_transition: dict[Transition, list[Job]] = {}
    for job in jobs:
        jobs_by_transition.setdefault(_transition_of(job), []).append(job)
    for transition, group in jobs_by_transition.items():
        log_transition(transition, group)


def log_transition(transition: Transition, jobs: Sequence[Job]) -> None:
    """Log the same transition of these jobs."""
    if len(jobs) <= MAX_SINGLE_LINES:
        for job in jobs:
            logger.info(
                transition,
                extra={"action": "verdict", **ids_of(job), "job": job.name, "reason": _reason(transition, job)},
            )
        return
    first_job, ids = jobs[0], [ids_of(job) for job in jobs]
    shared_fields = {name: value for name, value in ids[0].items() if all(fields.get(name) == value for fields in ids)}
    group_fields = {
        "jobs": len(jobs),
        "first": [job.name for job in jobs[:MAX_SINGLE_LINES]],
        "reason": _reason(transition, first_job),
    }
    logger.info(transition, extra={"action": "verdict", **shared_fields, **group_fields})


def _transition_of(job: Job) -> Transition:
    if job.status in ("skipped", "failed"):
        return "skipped" if job.status == "skipped" else "failed"
    if job.workflow.parked:
        return "parked"
    return "mutex_queued" if job.mutex.position is not None else "released"


def _reason(transition: Transition, job: Job) -> str | None:
    """Return the reason of the verdict. A job that was released later has the reason in its history.

    The error of a condition can quote results. The log therefore has only the code of a failure, and the job's history
    has the message.
    """
    if transition in ("released", "mutex_queued", "parked", "skipped") and job.dependencies.verdict is not None:
        return job.dependencies.verdict.reason
    return job.log[-1].reason if job.log else None
