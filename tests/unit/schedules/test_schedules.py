"""Fire times of a schedule, across daylight saving time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_core.domain.ids import derive_id_at, is_uuid7
from vigil_core.domain.schedules import (
    MISFIRE_GRACE,
    MisfirePolicy,
    Schedule,
    ScheduleFire,
    ScheduleTiming,
    after_fire,
    due_fire,
    parse_rate,
    parse_timezone,
    replace_definition,
    with_next_fire,
)

BERLIN = "Europe/Berlin"
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def cron(expression: str, timezone: str = "UTC") -> ScheduleTiming:
    return ScheduleTiming(cron=expression, rate=None, timezone=timezone, anchor=NEW_YEAR)


def rate(text: str, anchor: datetime = NEW_YEAR) -> ScheduleTiming:
    return ScheduleTiming(cron=None, rate=text, timezone="UTC", anchor=anchor)


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"{text}+00:00")


def runs(timing: ScheduleTiming, after: str, count: int = 3) -> list[str]:
    return [moment.isoformat().removesuffix("+00:00") for moment in islice(timing.fire_times_after(at(after)), count)]


class TestCron:
    def test_cron_is_evaluated_in_local_time(self) -> None:
        workdays = cron("30 9 * * MON-FRI", BERLIN)
        assert runs(workdays, "2026-01-30T12:00", 2) == ["2026-02-02T08:30:00", "2026-02-03T08:30:00"]
        assert runs(workdays, "2026-07-03T12:00", 1) == ["2026-07-06T07:30:00"]

    def test_fire_time_in_the_spring_gap_moves_to_its_end(self) -> None:
        """Note: on 29 March 2026, 03:00 follows 02:00 in Berlin."""
        assert runs(cron("30 2 * * *", BERLIN), "2026-03-28T00:00") == [
            "2026-03-28T01:30:00",
            "2026-03-29T01:00:00",
            "2026-03-30T00:30:00",
        ]

    def test_fire_time_in_the_repeated_autumn_hour_occurs_once(self) -> None:
        """Note: on 25 October 2026, 02:00 follows 02:59 in Berlin."""
        assert runs(cron("30 2 * * *", BERLIN), "2026-10-24T00:00") == [
            "2026-10-24T00:30:00",
            "2026-10-25T00:30:00",
            "2026-10-26T01:30:00",
        ]

    def test_next_fire_time_in_the_second_autumn_hour_does_not_go_back(self) -> None:
        assert runs(cron("45 2 * * *", BERLIN), "2026-10-25T01:30", 1) == ["2026-10-26T01:45:00"]

    def test_hourly_cron_follows_elapsed_time(self) -> None:
        hourly = cron("0 * * * *", BERLIN)
        assert runs(hourly, "2026-10-24T23:30") == ["2026-10-25T00:00:00", "2026-10-25T01:00:00", "2026-10-25T02:00:00"]
        assert runs(hourly, "2026-03-28T23:30") == ["2026-03-29T00:00:00", "2026-03-29T01:00:00", "2026-03-29T02:00:00"]

    def test_leap_day_cron_fires_only_in_leap_years(self) -> None:
        assert runs(cron("0 0 29 2 *"), "2026-01-01T00:00", 2) == ["2028-02-29T00:00:00", "2032-02-29T00:00:00"]

    def test_next_fire_time_is_after_the_given_moment(self) -> None:
        assert runs(cron("0 * * * *"), "2026-01-01T10:00:00", 1) == ["2026-01-01T11:00:00"]
        assert runs(cron("0 * * * *"), "2026-01-01T09:59:59.999", 1) == ["2026-01-01T10:00:00"]

    @pytest.mark.parametrize(
        "expression",
        ["", "* * * *", "* * * * * *", "@daily", "61 * * * *", "0 0 30 2 *", "0 24 * * *", "x * * * *", "*/0 * * * *",
         "1-0 * * * *", "0 0 L-3 * *", "0 0 * * 9", "0 0 ² * *", "0 0 * * ²L", "1/1/1 * * * *"],
    )  # fmt: skip
    def test_invalid_cron_expression_is_refused(self, expression: str) -> None:
        with pytest.raises(ValueError, match=r"five fields|is not a valid cron expression: "):
            next(cron(expression).fire_times_after(NEW_YEAR))

    @given(
        st.sampled_from([BERLIN, "America/New_York", "Africa/Cairo", "Asia/Beirut", "Australia/Lord_Howe", "UTC"]),
        st.sampled_from(["*/20 * * * *", "0 0 * * *", "30 1,2 * * *", "59 23 * * 6", "*/30 0 * * *", "0 */5 L * *"]),
        st.timedeltas(timedelta(0), timedelta(days=1000)),
    )
    def test_single_and_listed_cron_fire_times_agree(self, name: str, expression: str, since: timedelta) -> None:
        timing, start = cron(expression, name), NEW_YEAR + since
        listed = list(islice(timing.fire_times_after(start), 5))
        assert listed == sorted(set(listed))
        assert all(moment > start and moment.microsecond == 0 for moment in listed)
        for earlier, later in pairwise(listed):
            assert next(timing.fire_times_after(earlier)) == later


def shows(expression: str, local: datetime) -> bool:
    """Return whether a clock shows a time of an expression with `*`, steps, ranges and lists of numbers."""

    def matches(field: str, value: int, lowest: int) -> bool:
        for term in field.split(","):
            values, _, step = term.partition("/")
            first, _, last = values.partition("-")
            if values == "*":
                first, last = str(lowest), "59"
            if int(first) <= value <= int(last or (59 if step else first)) and not (value - int(first)) % int(
                step or 1
            ):
                return True
        return False

    minute, hour, day, month, weekday = expression.split()
    assert (day, month, weekday) == ("*", "*", "*")
    return matches(minute, local.minute, 0) and matches(hour, local.hour, 0) and not local.second


CLOCK_CHANGES = [
    ("Europe/Berlin", "2026-03-29T01:00"), ("Europe/Berlin", "2026-10-25T01:00"),
    ("Australia/Lord_Howe", "2026-10-03T15:30"), ("Australia/Lord_Howe", "2026-04-04T15:00"),
    ("America/Havana", "2026-03-08T05:00"), ("America/Havana", "2026-11-01T05:00"),
    ("Africa/Cairo", "2026-04-23T22:00"), ("Africa/Cairo", "2026-10-29T21:00"),
    ("Asia/Beirut", "2026-03-28T22:00"), ("America/St_Johns", "2010-11-07T02:31"), ("Pacific/Apia", "2011-12-30T10:00"),
    ("Asia/Kathmandu", "2026-01-01T00:00"), ("UTC", "2026-01-01T00:00"),
]  # fmt: skip
"""Time zones, each with a moment at which its clock changes, or without a change."""


@pytest.mark.parametrize(("zone", "change"), CLOCK_CHANGES)
@pytest.mark.parametrize(
    "expression",
    ["* * * * *", "*/5 * * * *", "0 */12 * * *", "0 */5 * * *", "*/7 */3 * * *", "30 * * * *", "*/20 0-2 * * *",
     "* 10-10/3 * * *", "15,45 */1 * * *"],
)  # fmt: skip
def test_cron_with_a_star_fires_whenever_the_local_clock_shows_its_time(
    zone: str, change: str, expression: str
) -> None:
    start, clock = at(change) - timedelta(hours=30), ZoneInfo(zone)
    minutes = [start + timedelta(minutes=number) for number in range(1, 60 * 60)]
    expected = [minute for minute in minutes if shows(expression, minute.astimezone(clock))]
    timing = cron(expression, zone)
    assert list(takewhile(lambda moment: moment <= minutes[-1], timing.fire_times_after(start))) == expected
    for number in range(0, len(minutes), 37):  # From any moment on, the times are the same.
        following = next((moment for moment in expected if moment > minutes[number]), None)
        found = next(timing.fire_times_after(minutes[number]))
        assert found == following or (following is None and found > minutes[-1])


@pytest.mark.parametrize(
    ("expression", "hours"),
    [("0 10-10/3 * * *", [10]), ("0 05-5/2 * * *", [5]), ("0 1-1/2,10-10/3 * * *", [1, 10]),
     ("0 10-16/3 * * *", [10, 13, 16]),
     ("0 20/3 * * *", [20, 23]), ("0 1-11/5 * * *", [1, 6, 11])],
)  # fmt: skip
def test_range_with_a_step_stays_in_its_range(expression: str, hours: list[int]) -> None:
    times = list(islice(cron(expression).fire_times_after(at("2026-01-01T00:30")), len(hours)))
    assert [moment.hour for moment in times] == hours


def test_range_of_one_weekday_or_month_with_a_step_is_that_one() -> None:
    assert runs(cron("0 0 * * MON-MON/2"), "2026-01-01T00:00", 2) == ["2026-01-05T00:00:00", "2026-01-12T00:00:00"]
    assert runs(cron("0 0 1 feb-feb/3 *"), "2026-01-01T00:00", 2) == ["2026-02-01T00:00:00", "2027-02-01T00:00:00"]


def test_day_of_month_and_day_of_week_combine_as_documented() -> None:
    assert runs(cron("0 0 13 * FRI"), "2026-02-01T00:00", 3) == [
        "2026-02-06T00:00:00", "2026-02-13T00:00:00", "2026-02-20T00:00:00",
    ]  # fmt: skip
    assert runs(cron("0 0 */13 * FRI"), "2026-02-01T00:00", 2) == ["2026-02-27T00:00:00", "2026-03-27T00:00:00"]


class TestRate:
    def test_rate_counts_from_its_anchor(self) -> None:
        assert runs(rate("5 minutes"), "2026-01-01T00:00", 2) == ["2026-01-01T00:05:00", "2026-01-01T00:10:00"]
        assert runs(rate("1 hour"), "2026-01-01T03:59:59", 2) == ["2026-01-01T04:00:00", "2026-01-01T05:00:00"]
        assert runs(rate("2 days"), "2026-01-03T00:00", 1) == ["2026-01-05T00:00:00"]
        assert runs(rate("2 days"), "2025-12-01T00:00", 1) == ["2026-01-03T00:00:00"]

    @pytest.mark.parametrize(
        "text", ["", "5", "0 minutes", "5 seconds", "-1 day", "367 days", "1  hour", "1 hour ", "1 week"]
    )
    def test_invalid_rate_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="must be"):
            parse_rate(text)


@pytest.mark.parametrize(
    "name", ["", "Nowhere/City", "../../etc/passwd", "/etc/localtime", "America", "a\0b", "é", "zone.tab"]
)
def test_unknown_time_zone_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a time zone"):
        parse_timezone(name)


def test_time_zone_is_found_by_its_name() -> None:
    assert parse_timezone("UTC") is UTC
    assert parse_timezone("America/Argentina/Buenos_Aires") == ZoneInfo("America/Argentina/Buenos_Aires")


@pytest.mark.parametrize(
    ("since", "until", "last"),
    [
        ("2026-01-01T10:00:00", "2026-01-01T10:00:00", "2026-01-01T10:00:00"),
        ("2026-01-01T10:00:00", "2026-01-01T10:59:59", "2026-01-01T10:00:00"),
        ("2026-01-01T10:00:00", "2026-01-01T14:30:00", "2026-01-01T14:00:00"),
        ("2026-01-01T10:00:00", "2026-03-01T14:30:00", "2026-03-01T14:00:00"),
    ],
)
def test_latest_returns_the_last_fire_time_of_an_interval(since: str, until: str, last: str) -> None:
    assert cron("0 * * * *").latest_between(at(since), at(until)) == at(last)
    assert rate("1 hour").latest_between(at(since), at(until)) == at(last)


def test_latest_finds_a_rare_fire_time() -> None:
    assert cron("0 0 29 2 *").latest_between(at("2028-02-29T00:00"), at("2035-01-01T00:00")) == at("2032-02-29T00:00")


def schedule(timing: ScheduleTiming, missed: MisfirePolicy = "skip") -> Schedule:
    made = Schedule(
        namespace="team", name="s", schedule_id="i", timing=timing, action="job", body={}, enabled=True,
        misfire_policy=missed,
        overlap_policy="allow", generation="", next_fire_at=None, created_at=NEW_YEAR, updated_at=NEW_YEAR,
    )  # fmt: skip
    return with_next_fire(made, now=NEW_YEAR, generation="g1")


@pytest.mark.parametrize("late", [timedelta(0), MISFIRE_GRACE])
def test_fire_within_the_grace_is_not_a_misfire(late: timedelta) -> None:
    hourly = schedule(cron("0 * * * *"))
    assert due_fire(hourly, at("2026-01-01T01:00") + late) == (at("2026-01-01T01:00"), False)


def test_misfires_are_coalesced_into_the_latest_or_skipped() -> None:
    now = at("2026-01-01T05:30")
    assert due_fire(schedule(cron("0 * * * *")), now) == (at("2026-01-01T05:00"), True)
    assert due_fire(schedule(cron("0 * * * *"), "run_once"), now) == (at("2026-01-01T05:00"), False)


def test_next_fire_after_misfires_is_in_the_future() -> None:
    now = at("2026-01-01T05:30")
    after = after_fire(
        schedule(cron("0 * * * *")), ScheduleFire(planned_at=at("2026-01-01T05:00"), fired_at=now, outcome="missed")
    )
    assert after.next_fire_at == at("2026-01-01T06:00")


def test_early_timer_does_not_fire_the_same_time_twice() -> None:
    now = at("2026-01-01T00:59:59")
    hourly = schedule(cron("0 * * * *"))
    assert hourly.is_due(now)
    planned_at, missed = due_fire(hourly, now)
    assert (planned_at, missed) == (at("2026-01-01T01:00"), False)
    assert after_fire(hourly, ScheduleFire(planned_at=planned_at, fired_at=now, outcome="created")).next_fire_at == at(
        "2026-01-01T02:00"
    )


def test_equal_definition_leaves_the_schedule_unchanged() -> None:
    before = schedule(rate("1 hour"))
    later = at("2026-01-01T00:30")
    again = schedule(rate("1 hour", anchor=later))
    assert replace_definition(before, again) is before
    other = replace_definition(before, schedule(rate("2 hours", anchor=later)))
    assert (other.timing.anchor, other.generation, other.version) == (later, "g1", 2)


def test_id_of_a_fire_time_is_deterministic_and_ordered() -> None:
    moment = at("2026-01-31T09:00")
    assert is_uuid7(derive_id_at(moment, "a"))
    assert derive_id_at(moment, "a") == derive_id_at(moment, "a") != derive_id_at(moment, "b")
    assert derive_id_at(moment, "a") < derive_id_at(moment + timedelta(milliseconds=1), "a")
