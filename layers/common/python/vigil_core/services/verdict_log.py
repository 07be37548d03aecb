"""Say in the log what was decided of jobs that waited, and why: a line each, or one for all where they are many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from vigil_core.domain.jobs.job import Job
from vigil_core.runtime.logging import logger
from vigil_core.runtime.tracing import ids_of

Transition: TypeAlias = Literal["released", "lined_up", "held", "let_go", "let_in", "skipped", "failed"]

MAX_SINGLE_LINES = 5
"""Jobs of one fate that have a line each; of more, these are named in one line for all."""


def log_verdicts(jobs: Sequence[Job]) -> None:
    """What verdicts have made of jobs."""
    jobs_by_transition: dict[Transition, list[Job]] = {}
    for job in jobs:
        jobs_by_transition.setdefault(_transition_of(job), []).append(job)
    for transition, group in jobs_by_transition.items():
        log_transition(transition, group)


def log_transition(transition: Transition, jobs: Sequence[Job]) -> None:
    """Say that this has become of these jobs."""
    if len(jobs) <= MAX_SINGLE_LINES:
        for job in jobs:
            logger.info(
                transition,
                extra={"action": "decide", **ids_of(job), "job": job.name, "reason": _reason(transition, job)},
            )
        return
    first_job, ids = jobs[0], [ids_of(job) for job in jobs]
    shared_fields = {name: value for name, value in ids[0].items() if all(fields.get(name) == value for fields in ids)}
    group_fields = {
        "jobs": len(jobs),
        "first": [job.name for job in jobs[:MAX_SINGLE_LINES]],
        "reason": _reason(transition, first_job),
    }
    logger.info(transition, extra={"action": "decide", **shared_fields, **group_fields})


def _transition_of(job: Job) -> Transition:
    if job.status in ("skipped", "failed"):
        return "skipped" if job.status == "skipped" else "failed"
    if job.workflow.parked:
        return "held"
    return "lined_up" if job.mutex.position is not None else "released"


def _reason(transition: Transition, job: Job) -> str | None:
    """The verdict's, but for those that were let go of later. Why a condition could not be evaluated may quote results:
    of a failure the log has the code, and the job's history the rest."""
    if transition in ("released", "lined_up", "held", "skipped") and job.dependencies.verdict is not None:
        return job.dependencies.verdict.reason
    return job.log[-1].reason if job.log else None
