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
        run, active_id = _run(ctx, schedule)
        after = schedules.ran(schedule, run, active_id=active_id)
        try:
            ctx.schedules.save(schedule, after)
        except ConditionFailed:
            ctx.sleep(0.01 * attempt)
            continue
        arm(ctx, after)
        return
    raise StoreConflict(f"Schedule {name} is being changed by too many at once")


def _run(ctx: Context, schedule: Schedule) -> tuple[Run, str | None]:
    """Create the job or run; return the outcome, and the id of the earlier one that it would overlap."""
    now = ctx.now()
    planned_at, missed = schedules.turn(schedule, now)
    new_id = schedule.id_at(planned_at)

    def is_there() -> bool:
        return _is_there(ctx, schedule, new_id)

    def became(outcome: RunOutcome, its_id: str | None = None, error: JobError | None = None) -> tuple[Run, None]:
        return Run(planned_at=planned_at, at=now, outcome=outcome, created_id=its_id, error=error), None

    if is_there():
        return became("created", new_id)
    if missed:
        return became("missed")
    if schedule.overlap == "skip" and (active_id := _active_id(ctx, schedule, planned_at)):
        return Run(planned_at=planned_at, at=now, outcome="overlap"), active_id
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


def _active_id(ctx: Context, schedule: Schedule, planned_at: datetime) -> str | None:
    """Return the id of the newest earlier job or run that is active, None when all have ended.

    If the process crashes after it creates a job and before it saves the schedule, `last_id` does not name that job.
    So the planned times without a record count as well.
    """
    unrecorded = [schedule.id_at(at) for at in schedules.passed_over(schedule, planned_at)]
    ids = list(dict.fromkeys([*([schedule.last_id] if schedule.last_id else []), *unrecorded]))
    found: Mapping[str, Job | WorkflowRun]
    if schedule.creates == "workflow":
        found = ctx.runs.find_many(schedule.namespace, ids)
    else:
        found = ctx.jobs.find_many(schedule.namespace, ids)
    return next((each for each in reversed(ids) if each in found and not found[each].ended), None)


def _is_there(ctx: Context, schedule: Schedule, new_id: str) -> bool:
    if schedule.creates == "workflow":
        return ctx.runs.find(schedule.namespace, new_id) is not None
    return submitted_before(ctx, schedule.namespace, new_id) is not None


def _told(error: VigilError) -> JobError:
    return JobError(code=error.code, message=error.message[:MAX_ERROR_CHARS])
