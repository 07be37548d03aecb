"""Fire schedules: create the job or run of a planned time, and plan the next one.

A timer or the sweep calls this. A repeated call is harmless, because the id of the job or run derives from the planned
time.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from vigil_core.domain import schedules
from vigil_core.domain.errors import (
    JobCreationFailed,
    LimitExceeded,
    PayloadTooLarge,
    RequestLimitExceeded,
    ValidationFailed,
    VigilError,
)
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.schedules import FireOutcome, Schedule, ScheduleFire
from vigil_core.domain.timestamps import to_text
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.runtime.failures import is_transient
from vigil_core.runtime.logging import logger
from vigil_core.services.context import (
    ChangesRuns,
    UsesDependencies,
    UsesJobQueues,
    UsesLimits,
    UsesListing,
    UsesMessageQueues,
    UsesParseJob,
    UsesParseRun,
    UsesSchedules,
    UsesThreads,
    UsesTimers,
)
from vigil_core.services.jobs.submit import find_earlier_submission, submit
from vigil_core.services.jobs.unprocessable import processing_error
from vigil_core.services.optimistic import update_with_retry
from vigil_core.services.schedules.manage import start_timer
from vigil_core.services.workflows.create import create_run
from vigil_core.store.table import ConditionFailed


class FireScheduleContext(
    ChangesRuns,
    UsesDependencies,
    UsesListing,
    UsesJobQueues,
    UsesLimits,
    UsesSchedules,
    UsesMessageQueues,
    UsesTimers,
    UsesParseJob,
    UsesParseRun,
    UsesThreads,
    Protocol,
):
    """The schedules and their timers, the request parsers, and the collaborators of a new job or run."""


ACTOR = "schedule"
MAX_ERROR_CHARS = 1_024
REFUSALS = (JobCreationFailed, LimitExceeded, PayloadTooLarge, RequestLimitExceeded, ValidationFailed)
"""The errors with which Vigil refuses to create a job or run. Any other permanent error refuses the fire as well."""


def fire_schedule(ctx: FireScheduleContext, namespace: str, name: str, *, generation: str | None = None) -> None:
    """Fire a schedule if it is due.

    A timer of an older generation does nothing. The schedule of a suspended namespace stays due.

    1. Create the job or run of the planned time, or decide why there is none.
    2. Save the schedule with the fire and the next planned time.
    3. Start the timer of the next planned time.

    A permanent error refuses the fire. The stream delivers the schedule to the notifier, which publishes an event.

    If the process crashes after step 1, the next call finds the job or run under its id and records it. If it crashes
    after step 2, the sweep fires the schedule without a timer.

    Args:
        ctx: The collaborators.
        namespace: The namespace of the schedule.
        name: The name of the schedule.
        generation: The generation for which a timer was started; None for a sweep.
    """

    if not ctx.limits.namespaces.is_active(namespace):
        return

    def fire_if_due(schedule: Schedule | None) -> Schedule | None:
        if schedule is None or not schedule.is_due(ctx.now()) or generation not in (None, schedule.generation):
            return None
        fire, active_id = _fire(ctx, schedule)
        return schedules.after_fire(schedule, fire, active_id=active_id)

    def save(before: Schedule | None, fired: Schedule | None) -> Schedule | None:
        if fired is not None:
            ctx.schedules.save(before, fired)
        return fired

    fired = update_with_retry(
        lambda: ctx.schedules.find(namespace, name),
        fire_if_due,
        save,
        sleep=ctx.sleep,
        subject=f"schedule {name}",
        retry_on=ConditionFailed,
    )
    if fired is not None:
        _log_refusal(fired)
        start_timer(ctx, fired)


def _fire(ctx: FireScheduleContext, schedule: Schedule) -> tuple[ScheduleFire, str | None]:
    """Create the job or run; return the outcome, and the id of the earlier one that it would overlap."""
    now = ctx.now()
    planned_at, misfired = schedules.due_fire(schedule, now)
    new_id = schedule.created_id_at(planned_at)

    def exists() -> bool:
        return _exists(ctx, schedule, new_id)

    def fire_of(
        outcome: FireOutcome, created_id: str | None = None, error: JobError | None = None
    ) -> tuple[ScheduleFire, None]:
        fire = ScheduleFire(planned_at=planned_at, fired_at=now, outcome=outcome, created_id=created_id, error=error)
        return fire, None

    if exists():
        return fire_of("created", new_id)
    if misfired:
        return fire_of("missed")
    if schedule.overlap_policy == "skip" and (active_id := _active_id(ctx, schedule, planned_at)):
        return ScheduleFire(planned_at=planned_at, fired_at=now, outcome="overlap"), active_id
    try:
        if schedule.action == "workflow":
            new_run = ctx.parse_run(schedule.namespace, schedule.body, new_id, planned_at, schedule.name)
            return fire_of(
                "created", create_run(ctx, schedule.namespace, new_run, actor=ACTOR, resumed=True).workflow_id
            )
        new_job = ctx.parse_job(schedule.namespace, schedule.body, new_id)
        submission = submit(ctx, schedule.namespace, new_job, actor=ACTOR, resumed=True)
    except Exception as error:
        if is_transient(error) and not isinstance(error, REFUSALS):
            raise
        # Two concurrent calls create one job: the slower call is refused and finds the job.
        return fire_of("created", new_id) if exists() else fire_of("refused", error=_job_error(error))
    return fire_of("existing" if submission.existing else "created", submission.job.job_id)


def _active_id(ctx: FireScheduleContext, schedule: Schedule, planned_at: datetime) -> str | None:
    """Return the id of the newest earlier job or run that is active, None when all have ended.

    If the process crashes after it creates a job and before it saves the schedule, `last_created_id` does not name that
    job. So the planned times without a record count as well.
    """
    unrecorded_ids = [schedule.created_id_at(at) for at in schedules.skipped_fires(schedule, planned_at)]
    recorded_ids = [schedule.last_created_id] if schedule.last_created_id else []
    ids = list(dict.fromkeys([*recorded_ids, *unrecorded_ids]))
    entities_by_id: Mapping[str, Job | WorkflowRun]
    if schedule.action == "workflow":
        entities_by_id = ctx.runs.find_many(schedule.namespace, ids)
    else:
        entities_by_id = ctx.jobs.find_many(schedule.namespace, ids)
    active = (entity_id for entity_id in reversed(ids) if entity_id in entities_by_id)
    return next((entity_id for entity_id in active if not entities_by_id[entity_id].ended), None)


def _exists(ctx: FireScheduleContext, schedule: Schedule, new_id: str) -> bool:
    if schedule.action == "workflow":
        return ctx.runs.find(schedule.namespace, new_id) is not None
    return find_earlier_submission(ctx, schedule.namespace, new_id) is not None


def _log_refusal(schedule: Schedule) -> None:
    fire = schedule.last_fire
    if fire is not None and fire.outcome == "refused" and fire.error is not None:
        log_fields = {
            "action": "fire_schedule",
            "namespace": schedule.namespace,
            "schedule": schedule.name,
            "planned_at": to_text(fire.planned_at),
            "code": fire.error.code,
            "reason": fire.error.message,
        }
        logger.warning("refused", extra=log_fields)


def _job_error(error: Exception) -> JobError:
    if not isinstance(error, VigilError):
        return processing_error("schedule", error)
    return JobError(code=error.code, message=error.message[:MAX_ERROR_CHARS])
