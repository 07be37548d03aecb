"""Define, pause, resume and delete schedules.

The row of a schedule contains its next planned time. A timer only wakes the sweeper earlier than its next sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from vigil_core.domain.errors import ScheduleNotFound, ValidationFailed
from vigil_core.domain.exact_json import dumps
from vigil_core.domain.schedules import Schedule, replace_definition, set_enabled, with_next_fire
from vigil_core.schemas.validation import prefix_pointers
from vigil_core.services.context import UsesClock, UsesIds, UsesLimits, UsesParseJob, UsesSchedules, UsesTimers
from vigil_core.services.jobs.dependencies import DependenciesContext, resolve_dependencies
from vigil_core.services.jobs.uploads import UploadsContext, require_uploaded
from vigil_core.services.limits.admission import require_room_for
from vigil_core.services.optimistic import retry_on_conflict, update_with_retry
from vigil_core.store.table import ConditionFailed


class ManageSchedulesContext(UsesSchedules, UsesTimers, UsesClock, UsesIds, UsesLimits, Protocol):
    """The schedules, their timers, the time, and new generations."""


class CheckScheduleContext(DependenciesContext, UploadsContext, UsesParseJob, Protocol):
    """The parser of jobs, and the jobs and uploads to which a schedule refers."""


def put_schedule(ctx: ManageSchedulesContext, schedule: Schedule) -> tuple[Schedule, bool]:
    """Create a schedule or replace its definition.

    Returns:
        The stored schedule, and True if it is new.

    Raises:
        RequestLimitExceeded: The namespace has too many schedules.
    """

    def decide(before: Schedule | None) -> Schedule:
        if before is None:
            require_room_for(ctx, schedule.namespace, "schedules")
            return with_next_fire(schedule, now=schedule.created_at, generation=schedule.generation)
        return replace_definition(before, schedule)

    before, after = _change(ctx, schedule.namespace, schedule.name, decide)
    return after, before is None


def require_creatable_now(ctx: CheckScheduleContext, schedule: Schedule) -> None:
    """Check what the job of a schedule refers to: its dependencies and its upload exist now.

    Raises:
        ValidationFailed: They do not, so that every fire would be refused.
    """
    if schedule.action != "job" or not {"depends_on", "payload_ref"} & set(schedule.body):
        return
    new_job = ctx.parse_job(schedule.namespace, schedule.body, schedule.schedule_id)
    try:
        resolve_dependencies(ctx, schedule.namespace, new_job.depends_on)
        if new_job.payload_upload is not None:
            require_uploaded(ctx, schedule.namespace, new_job.payload_upload, "payload_ref")
    except ValidationFailed as error:
        raise prefix_pointers("/job", error) from error


def set_schedule_enabled(ctx: ManageSchedulesContext, namespace: str, name: str, *, enabled: bool) -> Schedule:
    """Pause or resume a schedule.

    Raises:
        ScheduleNotFound: There is no such schedule.
    """

    def decide(before: Schedule | None) -> Schedule:
        if before is None:
            raise ScheduleNotFound(name)
        return set_enabled(before, enabled, now=ctx.now(), generation=ctx.new_id())

    return _change(ctx, namespace, name, decide)[1]


def find_schedule(ctx: ManageSchedulesContext, namespace: str, name: str) -> Schedule:
    """Return a schedule.

    Raises:
        ScheduleNotFound: There is no such schedule.
    """
    schedule = ctx.schedules.find(namespace, name)
    if schedule is None:
        raise ScheduleNotFound(name)
    return schedule


def delete_schedule(ctx: ManageSchedulesContext, namespace: str, name: str) -> None:
    """Delete a schedule. The jobs and runs that it created remain.

    Raises:
        ScheduleNotFound: There is no such schedule.
    """

    def remove() -> None:
        schedule = find_schedule(ctx, namespace, name)
        ctx.schedules.remove(schedule)
        _cancel_timer(ctx, schedule)

    retry_on_conflict(remove, sleep=ctx.sleep, subject=f"schedule {name}", retry_on=ConditionFailed)


def start_timer(ctx: ManageSchedulesContext, schedule: Schedule) -> None:
    """Start the timer of the next planned time.

    The event contains the generation, so that the sweeper ignores an outdated timer.
    """
    if (name := _timer_name(schedule)) is not None and schedule.next_fire_at is not None:
        timer_fields = {"namespace": schedule.namespace, "schedule": schedule.name, "generation": schedule.generation}
        ctx.timers.start(name, schedule.next_fire_at, dumps({"timer": timer_fields}))


def _change(
    ctx: ManageSchedulesContext, namespace: str, name: str, decide: Callable[[Schedule | None], Schedule]
) -> tuple[Schedule | None, Schedule]:
    def save(before: Schedule | None, after: Schedule) -> tuple[Schedule | None, Schedule]:
        if after is not before:
            ctx.schedules.save(before, after)
        return before, after

    before, after = update_with_retry(
        lambda: ctx.schedules.find(namespace, name),
        decide,
        save,
        sleep=ctx.sleep,
        subject=f"schedule {name}",
        retry_on=ConditionFailed,
    )
    if before is not None and _timer_name(before) != _timer_name(after):
        _cancel_timer(ctx, before)
    # Even an unchanged schedule gets its timer again: a client repeats a request because the first one failed.
    start_timer(ctx, after)
    return before, after


def _cancel_timer(ctx: ManageSchedulesContext, schedule: Schedule) -> None:
    if (name := _timer_name(schedule)) is not None:
        ctx.timers.cancel(name)


def _timer_name(schedule: Schedule) -> str | None:
    """Return the name of the timer, which is unique for the schedule, its generation and the planned time."""
    if schedule.next_fire_at is None:
        return None
    return f"{schedule.generation}-{_format_compact(schedule.next_fire_at)}"


def _format_compact(time: datetime) -> str:
    return f"{time:%Y%m%dT%H%M%SZ}"
