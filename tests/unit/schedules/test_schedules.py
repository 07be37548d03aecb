"""When the runs of a schedule are, through summer time and back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_core.domain.ids import at_time, is_uuid7
from vigil_core.domain.schedules import LATE, Missed, Run, Schedule, Timing, period, planned, ran, redefined, turn, zone

BERLIN = "Europe/Berlin"
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def cron(expression: str, timezone: str = "UTC") -> Timing:
    return Timing(cron=expression, rate=None, timezone=timezone, anchor=NEW_YEAR)


def rate(text: str, anchor: datetime = NEW_YEAR) -> Timing:
    return Timing(cron=None, rate=text, timezone="UTC", anchor=anchor)


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"{text}+00:00")


def runs(timing: Timing, after: str, count: int = 3) -> list[str]:
    return [moment.isoformat().removesuffix("+00:00") for moment in islice(timing.after(at(after)), count)]


class TestCron:
    def test_is_local_time(self) -> None:
        workdays = cron("30 9 * * MON-FRI", BERLIN)
        assert runs(workdays, "2026-01-30T12:00", 2) == ["2026-02-02T08:30:00", "2026-02-03T08:30:00"]
        assert runs(workdays, "2026-07-03T12:00", 1) == ["2026-07-06T07:30:00"]

    def test_what_falls_into_the_gap_of_spring_happens_when_it_is_over(self) -> None:
        """On 29 March 2026, 02:00 in Berlin is followed by 03:00."""
        assert runs(cron("30 2 * * *", BERLIN), "2026-03-28T00:00") == [
            "2026-03-28T01:30:00",
            "2026-03-29T01:00:00",
            "2026-03-30T00:30:00",
        ]

    def test_what_falls_into_the_hour_that_autumn_has_twice_happens_once(self) -> None:
        """On 25 October 2026, 02:59 in Berlin is followed by 02:00."""
        assert runs(cron("30 2 * * *", BERLIN), "2026-10-24T00:00") == [
            "2026-10-24T00:30:00",
            "2026-10-25T00:30:00",
            "2026-10-26T01:30:00",
        ]

    def test_asked_for_in_the_second_of_two_like_hours_it_does_not_go_back(self) -> None:
        assert runs(cron("45 2 * * *", BERLIN), "2026-10-25T01:30", 1) == ["2026-10-26T01:45:00"]

    def test_every_hour_goes_by_real_time(self) -> None:
        hourly = cron("0 * * * *", BERLIN)
        assert runs(hourly, "2026-10-24T23:30") == ["2026-10-25T00:00:00", "2026-10-25T01:00:00", "2026-10-25T02:00:00"]
        assert runs(hourly, "2026-03-28T23:30") == ["2026-03-29T00:00:00", "2026-03-29T01:00:00", "2026-03-29T02:00:00"]

    def test_leap_days(self) -> None:
        assert runs(cron("0 0 29 2 *"), "2026-01-01T00:00", 2) == ["2028-02-29T00:00:00", "2032-02-29T00:00:00"]

    def test_is_not_found_again_at_its_own_moment(self) -> None:
        assert runs(cron("0 * * * *"), "2026-01-01T10:00:00", 1) == ["2026-01-01T11:00:00"]
        assert runs(cron("0 * * * *"), "2026-01-01T09:59:59.999", 1) == ["2026-01-01T10:00:00"]

    @pytest.mark.parametrize(
        "expression",
        ["", "* * * *", "* * * * * *", "@daily", "61 * * * *", "0 0 30 2 *", "0 24 * * *", "x * * * *", "*/0 * * * *",
         "1-0 * * * *", "0 0 L-3 * *", "0 0 * * 9", "0 0 ² * *", "0 0 * * ²L", "1/1/1 * * * *"],
    )  # fmt: skip
    def test_refuses_what_is_none(self, expression: str) -> None:
        with pytest.raises(ValueError, match=r"five fields|is no cron expression: "):
            next(cron(expression).after(NEW_YEAR))

    @given(
        st.sampled_from([BERLIN, "America/New_York", "Africa/Cairo", "Asia/Beirut", "Australia/Lord_Howe", "UTC"]),
        st.sampled_from(["*/20 * * * *", "0 0 * * *", "30 1,2 * * *", "59 23 * * 6", "*/30 0 * * *", "0 */5 L * *"]),
        st.timedeltas(timedelta(0), timedelta(days=1000)),
    )
    def test_asked_one_by_one_it_says_what_it_says_in_one_go(
        self, name: str, expression: str, since: timedelta
    ) -> None:
        timing, start = cron(expression, name), NEW_YEAR + since
        listed = list(islice(timing.after(start), 5))
        assert listed == sorted(set(listed))
        assert all(moment > start and moment.microsecond == 0 for moment in listed)
        for earlier, later in pairwise(listed):
            assert next(timing.after(earlier)) == later


class TestRate:
    def test_is_counted_from_its_anchor(self) -> None:
        assert runs(rate("5 minutes"), "2026-01-01T00:00", 2) == ["2026-01-01T00:05:00", "2026-01-01T00:10:00"]
        assert runs(rate("1 hour"), "2026-01-01T03:59:59", 2) == ["2026-01-01T04:00:00", "2026-01-01T05:00:00"]
        assert runs(rate("2 days"), "2026-01-03T00:00", 1) == ["2026-01-05T00:00:00"]
        assert runs(rate("2 days"), "2025-12-01T00:00", 1) == ["2026-01-03T00:00:00"]

    @pytest.mark.parametrize(
        "text", ["", "5", "0 minutes", "5 seconds", "-1 day", "367 days", "1  hour", "1 hour ", "1 week"]
    )
    def test_refuses_what_is_none(self, text: str) -> None:
        with pytest.raises(ValueError, match="must be"):
            period(text)


@pytest.mark.parametrize(
    "name", ["", "Nowhere/City", "../../etc/passwd", "/etc/localtime", "America", "a\0b", "é", "zone.tab"]
)
def test_a_zone_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        zone(name)


def test_a_zone_is_found_by_its_name() -> None:
    assert zone("UTC") is UTC
    assert zone("America/Argentina/Buenos_Aires") == ZoneInfo("America/Argentina/Buenos_Aires")


@pytest.mark.parametrize(
    ("since", "until", "last"),
    [
        ("2026-01-01T10:00:00", "2026-01-01T10:00:00", "2026-01-01T10:00:00"),
        ("2026-01-01T10:00:00", "2026-01-01T10:59:59", "2026-01-01T10:00:00"),
        ("2026-01-01T10:00:00", "2026-01-01T14:30:00", "2026-01-01T14:00:00"),
        ("2026-01-01T10:00:00", "2026-03-01T14:30:00", "2026-03-01T14:00:00"),
    ],
)
def test_the_last_of_several(since: str, until: str, last: str) -> None:
    assert cron("0 * * * *").latest(at(since), at(until)) == at(last)
    assert rate("1 hour").latest(at(since), at(until)) == at(last)


def test_the_last_of_few_far_apart() -> None:
    assert cron("0 0 29 2 *").latest(at("2028-02-29T00:00"), at("2035-01-01T00:00")) == at("2032-02-29T00:00")


def schedule(timing: Timing, missed: Missed = "skip") -> Schedule:
    made = Schedule(
        namespace="team", name="s", schedule_id="i", timing=timing, creates="job", body={}, enabled=True, missed=missed,
        overlap="allow", generation="", next_at=None, created_at=NEW_YEAR, updated_at=NEW_YEAR,
    )  # fmt: skip
    return planned(made, now=NEW_YEAR, generation="g1")


@pytest.mark.parametrize("late", [timedelta(0), LATE])
def test_a_run_that_is_a_little_late_is_not_missed(late: timedelta) -> None:
    hourly = schedule(cron("0 * * * *"))
    assert turn(hourly, at("2026-01-01T01:00") + late) == (at("2026-01-01T01:00"), False)


def test_of_missed_runs_the_last_is_made_up_for_or_none() -> None:
    now = at("2026-01-01T05:30")
    assert turn(schedule(cron("0 * * * *")), now) == (at("2026-01-01T05:00"), True)
    assert turn(schedule(cron("0 * * * *"), "run_once"), now) == (at("2026-01-01T05:00"), False)


def test_after_missed_runs_comes_what_is_to_come() -> None:
    now = at("2026-01-01T05:30")
    after = ran(schedule(cron("0 * * * *")), Run(planned_at=at("2026-01-01T05:00"), at=now, outcome="missed"))
    assert after.next_at == at("2026-01-01T06:00")


def test_an_alarm_that_comes_early_does_not_find_its_own_time_again() -> None:
    now = at("2026-01-01T00:59:59")
    hourly = schedule(cron("0 * * * *"))
    assert hourly.is_due(now)
    planned_at, missed = turn(hourly, now)
    assert (planned_at, missed) == (at("2026-01-01T01:00"), False)
    assert ran(hourly, Run(planned_at=planned_at, at=now, outcome="created")).next_at == at("2026-01-01T02:00")


def test_defined_again_the_same_way_it_is_the_same() -> None:
    before = schedule(rate("1 hour"))
    later = at("2026-01-01T00:30")
    again = schedule(rate("1 hour", anchor=later))
    assert redefined(before, again) is before
    other = redefined(before, schedule(rate("2 hours", anchor=later)))
    assert (other.timing.anchor, other.generation, other.version) == (later, "g1", 2)


def test_ids_of_a_time() -> None:
    moment = at("2026-01-31T09:00")
    assert is_uuid7(at_time(moment, "a"))
    assert at_time(moment, "a") == at_time(moment, "a") != at_time(moment, "b")
    assert at_time(moment, "a") < at_time(moment + timedelta(milliseconds=1), "a")
