"""Schedules: definitions that create jobs or workflow runs at the times of a cron expression or a rate.

Every function receives the current time as an argument, so all results are deterministic.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from heapq import heappop, heappush
from itertools import takewhile
from typing import Literal, TypeAlias
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.ids import derive_id_at
from vigil_core.domain.jobs.job import JobError
from vigil_core.domain.timestamps import to_text

MisfirePolicy: TypeAlias = Literal["skip", "run_once"]
OverlapPolicy: TypeAlias = Literal["allow", "skip"]
ScheduleAction: TypeAlias = Literal["job", "workflow"]
FireOutcome: TypeAlias = Literal["created", "existing", "overlap", "missed", "refused"]

MISFIRE_GRACE = timedelta(minutes=5)
"""A fire that begins later than this after its planned time is a misfire."""
CLOCK_SKEW_TOLERANCE = timedelta(seconds=2)
"""Maximum difference between the clock of the timer service and the clock of the sweeper."""
FIRE_LOOKBACK = timedelta(days=1)
"""Maximum age of a planned time whose job or run may exist without a record. The sweep fires within minutes."""
MAX_UNRECORDED = 100
"""Maximum number of unrecorded planned times that a schedule stores: the size of one batch read."""
MAX_PERIOD = timedelta(days=366)
MAX_CLOCK_CHANGE = timedelta(hours=3)
"""More than any clock is set back in a time zone."""
NEXT_TIMES_COUNT = 5

_RATE = re.compile(r"([1-9][0-9]{0,5}) (minute|hour|day)s?", re.ASCII)
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,31}(/[A-Za-z0-9_+-]{1,31}){0,2}", re.ASCII)
_SINGLE_RANGE = re.compile(r"(?<![\w-])0*(?P<value>\w+)-0*(?P=value)/[0-9]*[1-9][0-9]*(?=[,\s]|$)", re.ASCII)
_SEARCH_WINDOWS = (timedelta(hours=1), timedelta(days=1), timedelta(days=32), timedelta(days=366))


def parse_timezone(name: str) -> tzinfo:
    """Return the time zone with an IANA name.

    Raises:
        ValueError: There is no such time zone.
    """
    if name == "UTC":
        return UTC
    if _ZONE.fullmatch(name):
        try:
            return ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            pass
    raise ValueError("must be a time zone of the IANA database, such as Europe/Berlin")


def parse_rate(rate: str) -> timedelta:
    """Parse a rate: "5 minutes", "1 hour" or "2 days". A day has 24 hours.

    Raises:
        ValueError: The text is not a rate, or the rate is longer than `MAX_PERIOD`.
    """
    if (match := _RATE.fullmatch(rate)) is None:
        raise ValueError('must be like "5 minutes", "1 hour" or "2 days"')
    interval = timedelta(**{f"{match[2]}s": int(match[1])})
    if interval > MAX_PERIOD:
        raise ValueError(f"must be at most {MAX_PERIOD.days} days")
    return interval


@dataclass(frozen=True, kw_only=True)
class ScheduleTiming:
    """The planned times of a schedule.

    They follow either `cron`, five fields in a time zone, or `rate`, a period that is counted from `anchor`.

    Daylight saving time follows Debian's cron. A time that does not exist in spring fires directly after the gap, and a
    time that exists twice in autumn fires once. An expression whose minute or hour begins with `*` fires whenever the
    local clock shows one of its times: twice for a time that exists twice, and never for one that does not exist.
    """

    cron: str | None
    rate: str | None
    timezone: str
    anchor: datetime

    def fire_times_after(self, after: datetime) -> Iterator[datetime]:
        """Yield every planned time after a time, in UTC and whole seconds.

        The iterator ends if there is no further time within 50 years.

        Raises:
            ValueError: The cron expression, the rate or the time zone is invalid.
        """
        timezone = parse_timezone(self.timezone)
        if self.cron is None:
            yield from self._rate_times_after(after)
            return
        for fire_time in self._cron_times_after(self.cron, after.astimezone(UTC), timezone):
            if fire_time > after:
                after = fire_time
                yield fire_time

    def latest_between(self, since: datetime, until: datetime) -> datetime:
        """Return the last planned time from `since`, which is a planned time itself, to `until`."""
        for window in (*_SEARCH_WINDOWS, until - since):
            latest = None
            for fire_time in self.fire_times_after(max(since, until - window) - timedelta(seconds=1)):
                if fire_time > until:
                    break
                latest = fire_time
            if latest is not None:
                return latest
        return since

    def _cron_times_after(self, cron: str, after: datetime, timezone: tzinfo) -> Iterator[datetime]:
        """Yield planned times of a cron expression in their order, including the first ones after `after`."""
        fields = cron.split()
        if len(fields) != 5:
            raise ValueError("must have five fields: minute, hour, day of month, month, day of week")
        # A time before the clock is set back can show a later hour than times that follow.
        repeated = max(timedelta(0), _offset(after, timezone) - _offset(after + MAX_CLOCK_CHANGE, timezone))
        try:
            local_times = CronSim(_without_empty_ranges(cron), _local(after, timezone) - repeated)
        except CronSimError as error:
            raise ValueError(f"is not a valid cron expression: {str(error).lower()}") from error
        if fields[0].startswith("*") or fields[1].startswith("*"):
            yield from _every_occurrence(local_times, timezone)
        else:
            yield from (_first_occurrence(local_time, timezone) for local_time in local_times)

    def _rate_times_after(self, after: datetime) -> Iterator[datetime]:
        step = parse_rate(self.rate or "")
        number = max(1, (after - self.anchor) // step + 1)
        while True:
            yield self.anchor + number * step
            number += 1


def _every_occurrence(local_times: Iterable[datetime], timezone: tzinfo) -> Iterator[datetime]:
    """Yield the moments at which the local clock shows these times, in their order.

    A later local time never occurs before the first occurrence of an earlier one. Second occurrences wait in a heap.
    """
    later: list[datetime] = []
    for local_time in local_times:
        first, second = (local_time.replace(tzinfo=timezone, fold=fold).astimezone(UTC) for fold in (0, 1))
        if _local(first, timezone) == local_time:
            for moment in {first, second}:
                heappush(later, moment)
        while later and later[0] <= first:
            yield heappop(later)
    while later:
        yield heappop(later)


def _first_occurrence(local_time: datetime, timezone: tzinfo) -> datetime:
    """Return the first moment at which the local clock shows a time, or the end of its gap."""
    moment = local_time.replace(tzinfo=timezone).astimezone(UTC)
    while _local(moment, timezone) != local_time:
        local_time += timedelta(minutes=1)
        moment = local_time.replace(tzinfo=timezone).astimezone(UTC)
    return moment


def _local(moment: datetime, timezone: tzinfo) -> datetime:
    """Return the time that the local clock shows, without its time zone."""
    return moment.astimezone(timezone).replace(tzinfo=None, fold=0)


def _offset(moment: datetime, timezone: tzinfo) -> timedelta:
    return moment.astimezone(timezone).utcoffset() or timedelta(0)


def _without_empty_ranges(cron: str) -> str:
    """Replace each range of one value with a step, such as `10-10/3`, by that value."""
    return _SINGLE_RANGE.sub(lambda match: match["value"], cron.upper())


@dataclass(frozen=True, kw_only=True)
class ScheduleFire:
    """The outcome of one planned time: the created job or run, or the reason why there is none."""

    planned_at: datetime
    fired_at: datetime
    outcome: FireOutcome
    created_id: str | None = None
    error: JobError | None = None


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One version of a schedule.

    Attributes:
        action: Whether the schedule creates jobs or workflow runs.
        body: The request body that creates the job or the workflow run.
        generation: Changes whenever a client changes the timing. A timer of an older generation does nothing.
        last_created_id: The job or run that the schedule created last.
        unrecorded: Planned times without a record of their outcome. If the process crashes after it creates a job and
            before it saves the schedule, that job belongs to one of them.
    """

    namespace: str
    name: str
    schedule_id: str
    timing: ScheduleTiming
    action: ScheduleAction
    body: Mapping[str, JsonValue]
    enabled: bool
    misfire_policy: MisfirePolicy
    overlap_policy: OverlapPolicy
    generation: str
    next_fire_at: datetime | None
    created_at: datetime
    updated_at: datetime
    last_fire: ScheduleFire | None = None
    last_created_id: str | None = None
    unrecorded: tuple[datetime, ...] = ()
    version: int = 1

    def next_fire_times(self, now: datetime) -> list[datetime]:
        """Return the next planned times, at most five. A paused schedule has none."""
        if not self.enabled:
            return []
        fire_times = self.timing.fire_times_after(now)
        return [fire_time for _, fire_time in zip(range(NEXT_TIMES_COUNT), fire_times, strict=False)]

    def is_due(self, now: datetime) -> bool:
        """Return True if the next planned time has arrived."""
        return self.next_fire_at is not None and self.next_fire_at <= now + CLOCK_SKEW_TOLERANCE

    def created_id_at(self, planned_at: datetime) -> str:
        """Return the id of the job or run of a planned time. Repeated calls return the same id."""
        return derive_id_at(planned_at, f"{self.schedule_id}/{to_text(planned_at)}")


def with_next_fire(schedule: Schedule, *, now: datetime, generation: str) -> Schedule:
    """Return the schedule with the first planned time after now, in a new generation."""
    next_fire_at = next(schedule.timing.fire_times_after(now), None) if schedule.enabled else None
    return replace(schedule, next_fire_at=next_fire_at, generation=generation)


def replace_definition(before: Schedule, definition: Schedule) -> Schedule:
    """Return the version after a client replaces the definition; `before` itself if nothing differs.

    An unchanged rate keeps its anchor. An unchanged timing keeps its next planned time, because a fire may be due now.
    """
    timing = definition.timing
    if timing.rate == before.timing.rate:
        timing = replace(timing, anchor=before.timing.anchor)
    after = replace(
        before,
        timing=timing,
        action=definition.action,
        body=definition.body,
        enabled=definition.enabled,
        misfire_policy=definition.misfire_policy,
        overlap_policy=definition.overlap_policy,
    )
    if after == before:
        return before
    after = _next(after, definition.updated_at)
    if (after.timing, after.enabled) == (before.timing, before.enabled):
        return after
    after = replace(after, unrecorded=_unrecorded_at(before, definition.updated_at))
    return with_next_fire(after, now=definition.updated_at, generation=definition.generation)


def set_enabled(before: Schedule, enabled: bool, *, now: datetime, generation: str) -> Schedule:
    """Return the paused or resumed schedule; `before` itself if nothing changes. Times within a pause never fire."""
    if before.enabled == enabled:
        return before
    after = replace(_next(before, now), enabled=enabled, unrecorded=_unrecorded_at(before, now))
    return with_next_fire(after, now=now, generation=generation)


def due_fire(schedule: Schedule, now: datetime) -> tuple[datetime, bool]:
    """Return the latest planned time that has passed, and whether to skip it as a misfire.

    If several planned times have passed, they are coalesced into the latest one.
    """
    assert schedule.next_fire_at is not None
    planned_at = schedule.timing.latest_between(schedule.next_fire_at, max(now, schedule.next_fire_at))
    return planned_at, now - planned_at > MISFIRE_GRACE and schedule.misfire_policy == "skip"


def skipped_fires(schedule: Schedule, planned_at: datetime) -> list[datetime]:
    """Return the earlier planned times without a recorded outcome, in order: a crash may have left their job."""
    return [at for at in _unrecorded(schedule, lambda at: at < planned_at, planned_at) if at != planned_at]


def after_fire(schedule: Schedule, fire: ScheduleFire, *, active_id: str | None = None) -> Schedule:
    """Return the version after a fire, with the next planned time.

    A new job or run replaces what the schedule knows of earlier ones. Otherwise earlier ones stay known, because one of
    them may still be active when the next planned time arrives.

    Args:
        schedule: The version before the fire.
        fire: The fire and its outcome.
        active_id: The earlier job or run that this one would overlap; None when that was not checked.
    """
    after = max(fire.fired_at, fire.planned_at)
    last_id = fire.created_id or active_id
    return replace(
        _next(schedule, schedule.updated_at),
        next_fire_at=next(schedule.timing.fire_times_after(after), None),
        last_fire=fire,
        last_created_id=last_id or schedule.last_created_id,
        unrecorded=() if last_id else tuple(skipped_fires(schedule, fire.planned_at)[-MAX_UNRECORDED:]),
    )


def _unrecorded_at(schedule: Schedule, now: datetime) -> tuple[datetime, ...]:
    """Return the unrecorded planned times until now, which a version with another timing must keep."""
    return tuple(_unrecorded(schedule, lambda at: at <= now + CLOCK_SKEW_TOLERANCE, now)[-MAX_UNRECORDED:])


def _unrecorded(schedule: Schedule, is_over: Callable[[datetime], bool], until: datetime) -> list[datetime]:
    """Return the unrecorded times of earlier versions, then the past times of this one within a day before `until`."""
    if schedule.next_fire_at is None:
        return list(schedule.unrecorded)
    since = max(schedule.next_fire_at, until - FIRE_LOOKBACK) - timedelta(seconds=1)
    return list(dict.fromkeys([*schedule.unrecorded, *takewhile(is_over, schedule.timing.fire_times_after(since))]))


def _next(schedule: Schedule, now: datetime) -> Schedule:
    return replace(schedule, version=schedule.version + 1, updated_at=now)
