"""Define, pause, resume and delete schedules. The row says what comes next; an alarm only hurries the sweeper to it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from vigil_core.domain.errors import ScheduleNotFound, StoreConflict
from vigil_core.domain.exact_json import dumps
from vigil_core.domain.schedules import Schedule, planned, redefined, switched
from vigil_core.services.context import Context
from vigil_core.services.jobs.transitions import ATTEMPTS
from vigil_core.store.table import ConditionFailed


def put_schedule(ctx: Context, wanted: Schedule) -> tuple[Schedule, bool]:
    """Store a schedule under its name, over what stands there; the schedule as it is now, and whether it is new."""

    def decide(before: Schedule | None) -> Schedule:
        if before is None:
            return planned(wanted, now=wanted.created_at, generation=wanted.generation)
        return redefined(before, wanted)

    before, after = _change(ctx, wanted.namespace, wanted.name, decide)
    return after, before is None


def switch_schedule(ctx: Context, namespace: str, name: str, *, enabled: bool) -> Schedule:
    """Pause or resume. Raises ScheduleNotFound."""

    def decide(before: Schedule | None) -> Schedule:
        if before is None:
            raise ScheduleNotFound(name)
        return switched(before, enabled, now=ctx.now(), generation=ctx.new_id())

    return _change(ctx, namespace, name, decide)[1]


def find_schedule(ctx: Context, namespace: str, name: str) -> Schedule:
    """The schedule as it is now. Raises ScheduleNotFound."""
    found = ctx.schedules.find(namespace, name)
    if found is None:
        raise ScheduleNotFound(name)
    return found


def delete_schedule(ctx: Context, namespace: str, name: str) -> None:
    """Forget a schedule; the jobs that it created stay. Raises ScheduleNotFound."""
    for attempt in range(ATTEMPTS):
        found = find_schedule(ctx, namespace, name)
        with suppress(ConditionFailed):
            ctx.schedules.remove(found)
            _disarm(ctx, found)
            return
        ctx.sleep(0.01 * attempt)
    raise StoreConflict(f"Schedule {name} is being changed by too many at once: try again")


def arm(ctx: Context, schedule: Schedule) -> None:
    """Have the sweeper woken for the next run. An alarm says for which generation: another one has no use for it."""
    if (name := _alarm(schedule)) is not None and schedule.next_at is not None:
        parts = {"namespace": schedule.namespace, "schedule": schedule.name, "generation": schedule.generation}
        ctx.alarms.arm(name, schedule.next_at, dumps({"alarm": parts}))


def _change(
    ctx: Context, namespace: str, name: str, decide: Callable[[Schedule | None], Schedule]
) -> tuple[Schedule | None, Schedule]:
    for attempt in range(ATTEMPTS):
        before = ctx.schedules.find(namespace, name)
        after = decide(before)
        if after is not before:
            try:
                ctx.schedules.save(before, after)
            except ConditionFailed:
                ctx.sleep(0.01 * attempt)
                continue
        if before is not None and _alarm(before) != _alarm(after):
            _disarm(ctx, before)
        # Armed again though nothing may have changed: whoever repeats a request did so because something went wrong.
        arm(ctx, after)
        return before, after
    raise StoreConflict(f"Schedule {name} is being changed by too many at once: try again")


def _disarm(ctx: Context, schedule: Schedule) -> None:
    if (name := _alarm(schedule)) is not None:
        ctx.alarms.disarm(name)


def _alarm(schedule: Schedule) -> str | None:
    """The name of its alarm: no other schedule, generation or time has it."""
    if schedule.next_at is None:
        return None
    return f"{schedule.generation}-{_compact(schedule.next_at)}"


def _compact(moment: datetime) -> str:
    return f"{moment:%Y%m%dT%H%M%SZ}"
