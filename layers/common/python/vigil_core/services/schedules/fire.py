"""A planned time of a schedule has come: create its job or run, plan the next. An alarm says so, or the sweep; twice
does no harm, for the id follows from the planned time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from vigil_core.domain import schedules
from vigil_core.domain.errors import JobCreationFailed, PayloadTooLarge, StoreConflict, ValidationFailed, VigilError
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.schedules import Run, RunOutcome, Schedule
from vigil_core.domain.workflows.run import Run as WorkflowRun
from vigil_core.services.context import Context
from vigil_core.services.jobs.submit import submit, submitted_before
from vigil_core.services.jobs.transitions import ATTEMPTS
from vigil_core.services.schedules.manage import arm
from vigil_core.services.workflows.create import create_run
from vigil_core.store.table import ConditionFailed

BY = "schedule"
MAX_ERROR_CHARS = 1_024


def run_schedule(ctx: Context, namespace: str, name: str, *, generation: str | None = None) -> None:
    """Do what is due; nothing when nothing is, or when this was armed for a generation that is no more.

    The job or run comes first. Should the process die before the schedule says so, the next to come finds it there.
    """
    for attempt in range(ATTEMPTS):
        schedule = ctx.schedules.find(namespace, name)
        if schedule is None or not schedule.is_due(ctx.now()) or generation not in (None, schedule.generation):
            return
        after = schedules.ran(schedule, _run(ctx, schedule))
        try:
            ctx.schedules.save(schedule, after)
        except ConditionFailed:
            ctx.sleep(0.01 * attempt)
            continue
        arm(ctx, after)
        return
    raise StoreConflict(f"Schedule {name} is being changed by too many at once")


def _run(ctx: Context, schedule: Schedule) -> Run:
    now = ctx.now()
    planned_at, missed = schedules.turn(schedule, now)
    new_id = schedule.id_at(planned_at)

    def is_there() -> bool:
        return _is_there(ctx, schedule, new_id)

    def became(outcome: RunOutcome, its_id: str | None = None, error: JobError | None = None) -> Run:
        return Run(planned_at=planned_at, at=now, outcome=outcome, created_id=its_id, error=error)

    if is_there():
        return became("created", new_id)
    if missed:
        return became("missed")
    if schedule.overlap == "skip" and _goes_on(ctx, schedule, planned_at):
        return became("overlap")
    try:
        if schedule.creates == "workflow":
            new_run = ctx.run_of(schedule.namespace, schedule.body, new_id, planned_at, schedule.name)
            return became("created", create_run(ctx, schedule.namespace, new_run, by=BY, resumed=True).workflow_id)
        new = ctx.job_of(schedule.namespace, schedule.body, new_id)
        submitted = submit(ctx, schedule.namespace, new, by=BY, resumed=True)
    except (JobCreationFailed, PayloadTooLarge, ValidationFailed) as error:
        # Two who run this at once create one job: the slower one is refused, and finds it there.
        return became("created", new_id) if is_there() else became("refused", error=_told(error))
    return became("existing" if submitted.existing else "created", submitted.job.job_id)


def _goes_on(ctx: Context, schedule: Schedule, planned_at: datetime) -> bool:
    """Whether what it created last has not ended; or what was created for a time before this that the schedule knows
    nothing of, because whoever did so died before it could say so."""
    unsaid = (schedule.id_at(at) for at in schedules.passed_over(schedule, planned_at))
    known = [schedule.last_id] if schedule.last_id else []
    found: Mapping[str, Job | WorkflowRun]
    if schedule.creates == "workflow":
        found = ctx.runs.find_many(schedule.namespace, [*known, *unsaid])
    else:
        found = ctx.jobs.find_many(schedule.namespace, [*known, *unsaid])
    return any(not each.ended for each in found.values())


def _is_there(ctx: Context, schedule: Schedule, new_id: str) -> bool:
    if schedule.creates == "workflow":
        return ctx.runs.find(schedule.namespace, new_id) is not None
    return submitted_before(ctx, schedule.namespace, new_id) is not None


def _told(error: VigilError) -> JobError:
    return JobError(code=error.code, message=error.message[:MAX_ERROR_CHARS])
