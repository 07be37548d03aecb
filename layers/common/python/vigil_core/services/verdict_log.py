"""Say in the log what was decided of jobs that waited, and why: a line each, or one for all where they are many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from vigil_core.domain.jobs.job import Job
from vigil_core.runtime.logging import logger
from vigil_core.runtime.tracing import ids_of

Fate: TypeAlias = Literal["released", "lined_up", "held", "let_go", "let_in", "skipped", "failed"]

NAMED = 5
"""Jobs of one fate that have a line each; of more, these are named in one line for all."""


def log_judged(jobs: Sequence[Job]) -> None:
    """What verdicts have made of jobs."""
    by_fate: dict[Fate, list[Job]] = {}
    for job in jobs:
        by_fate.setdefault(_fate(job), []).append(job)
    for fate, its in by_fate.items():
        log_fate(fate, its)


def log_fate(fate: Fate, jobs: Sequence[Job]) -> None:
    """Say that this has become of these jobs."""
    if len(jobs) <= NAMED:
        for job in jobs:
            logger.info(fate, extra={"action": "decide", **ids_of(job), "job": job.name, "reason": _reason(fate, job)})
        return
    first, ids = jobs[0], [ids_of(job) for job in jobs]
    shared = {name: value for name, value in ids[0].items() if all(its.get(name) == value for its in ids)}
    named = {"jobs": len(jobs), "first": [job.name for job in jobs[:NAMED]], "reason": _reason(fate, first)}
    logger.info(fate, extra={"action": "decide", **shared, **named})


def _fate(job: Job) -> Fate:
    if job.status in ("skipped", "failed"):
        return "skipped" if job.status == "skipped" else "failed"
    if job.held:
        return "held"
    return "lined_up" if job.place_in_line is not None else "released"


def _reason(fate: Fate, job: Job) -> str | None:
    """The verdict's, but for those that were let go of later. Why a condition could not be evaluated may quote results:
    of a failure the log has the code, and the job's history the rest."""
    if fate in ("released", "lined_up", "held", "skipped") and job.verdict is not None:
        return job.verdict.reason
    return job.log[-1].why if job.log else None
