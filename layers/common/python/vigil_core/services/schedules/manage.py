"""Define, pause, resume and delete schedules. The row says what comes next; an alarm only hurries the sweeper to it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Protocol

from vigil_core.domain.errors import ScheduleNotFound, StoreConflict
from vigil_core.domain.exact_json import dumps
from vigil_core.domain.schedules import Schedule, replace_definition, set_enabled, with_next_fire
from vigil_core.services.context import UsesClock, UsesIds, UsesSchedules, UsesTimers
from vigil_core.services.jobs.transitions import MAX_ATTEMPTS
from vigil_core.store.table import ConditionFailed


class ManageSchedulesContext(UsesSchedules, UsesTimers, UsesClock, UsesIds, Protocol):
    """What this module uses of the outside world."""


def put_schedule(ctx: ManageSchedulesContext, schedule: Schedule) -> tuple[Schedule, bool]:
    """Store a schedule under its name, over what stands there; the schedule as it is now, and whether it is new."""

    def decide(before: Schedule | None) -> Schedule:
        if before is None:
            return with_next_fire(schedule, now=schedule.created_at, generation=schedule.generation)
        return replace_definition(before, schedule)

    before, after = _change(ctx, schedule.namespace, schedule.name, decide)
    return after, before is None


def set_schedule_enabled(ctx: ManageSchedulesContext, namespace: str, name: str, *, enabled: bool) -> Schedule:
    """Pause or resume. Raises ScheduleNotFound."""

    def decide(before: Schedule | None) -> Schedule:
        if before is None:
            raise ScheduleNotFound(name)
        return set_enabled(before, enabled, now=ctx.now(), generation=ctx.new_id())

    return _change(ctx, namespace, name, decide)[1]


def find_schedule(ctx: ManageSchedulesContext, namespace: str, name: str) -> Schedule:
    """The schedule as it is now. Raises ScheduleNotFound."""
    schedule = ctx.schedules.find(namespace, name)
    if schedule is None:
        raise ScheduleNotFound(name)
    return schedule


def delete_schedule(ctx: ManageSchedulesContext, namespace: str, name: str) -> None:
    """Forget a schedule; the jobs that it created stay. Raises ScheduleNotFound."""
    for attempt in range(MAX_ATTEMPTS):
        schedule = find_schedule(ctx, namespace, name)
        with suppress(ConditionFailed):
            ctx.schedules.remove(schedule)
            _cancel_timer(ctx, schedule)
            return
        ctx.sleep(0.01 * attempt)
    raise StoreConflict(f"Schedule {name} is being changed by too many at once: try again")


def start_timer(ctx: ManageSchedulesContext, schedule: Schedule) -> None:
    """Have the sweeper woken for the next run. An alarm says for which generation: another one has no use for it."""
    if (name := _timer_name(schedule)) is not None and schedule.next_fire_at is not None:
        timer_fields = {"namespace": schedule.namespace, "schedule": schedule.name, "generation": schedule.generation}
        ctx.timers.start(name, schedule.next_fire_at, dumps({"alarm": timer_fields}))


def _change(
    ctx: ManageSchedulesContext, namespace: str, name: str, decide: Callable[[Schedule | None], Schedule]
) -> tuple[Schedule | None, Schedule]:
    for attempt in range(MAX_ATTEMPTS):
        before = ctx.schedules.find(namespace, name)
        after = decide(before)
        if after is not before:
            try:
                ctx.schedules.save(before, after)
            except ConditionFailed:
                ctx.sleep(0.01 * attempt)
                continue
        if before is not None and _timer_name(before) != _timer_name(after):
            _cancel_timer(ctx, before)
        # Armed again though nothing may have changed: whoever repeats a request did so because something went wrong.
        start_timer(ctx, after)
        return before, after
    raise StoreConflict(f"Schedule {name} is being changed by too many at once: try again")


def _cancel_timer(ctx: ManageSchedulesContext, schedule: Schedule) -> None:
    if (name := _timer_name(schedule)) is not None:
        ctx.timers.cancel(name)


def _timer_name(schedule: Schedule) -> str | None:
    """The name of its alarm: no other schedule, generation or time has it."""
    if schedule.next_fire_at is None:
        return None
    return f"{schedule.generation}-{_format_compact(schedule.next_fire_at)}"


def _format_compact(time: datetime) -> str:
    return f"{time:%Y%m%dT%H%M%SZ}"
