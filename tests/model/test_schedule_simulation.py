"""Simulated schedules: each planned time has at most one job, no fire overlaps against its policy, and no due fire is
lost.

Processes crash, and timers are lost or fire twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import count
from random import Random

import pytest
from moto import mock_aws

from tests.model.crash_injection import CrashingWorld, simulate
from tests.model.seeds import WORLDS, blocks, third
from tests.support.table import create_table
from tests.support.world import NAMESPACE
from vigil_core.domain import schedules as schedule_rules
from vigil_core.domain.errors import InvalidTransition, ScheduleNotFound
from vigil_core.domain.ids import derive_id_at
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.schedules import CLOCK_SKEW_TOLERANCE, MISFIRE_GRACE, Schedule, ScheduleTiming
from vigil_core.services.background import sweeper as sweep
from vigil_core.services.jobs import transitions as change_job
from vigil_core.services.schedules import fire as run_schedule
from vigil_core.services.schedules import manage as schedules

STEPS = (
    ["define"] * 2 + ["timer"] * 6 + ["work"] * 3 + ["switch", "remove", "lose"] + ["time_passes"] * 8 + ["sweep"] * 4
)
NAMES = ("a", "b")
pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]


class ScheduleSimulation(CrashingWorld):
    """Schedules with a rate, whose jobs have executor `none`."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.known: dict[str, Schedule] = {}
        """Every schedule in its last known version, by id."""
        self.jobs: dict[str, list[Job]] = {}
        """The entities that each schedule created, in order."""

    def define(self, chance: Random) -> None:
        now, minutes = self.world.ctx.now(), chance.choice([1, 2, 10])
        wanted = Schedule(
            namespace=NAMESPACE,
            name=chance.choice(NAMES),
            schedule_id=self.world.ctx.new_id(),
            timing=ScheduleTiming(
                cron=None, rate=f"{minutes} minutes", timezone="UTC", anchor=now.replace(microsecond=0)
            ),
            action="job",
            body={"job_type": "test", **chance.choice([{}, {}, {"mutex": {"key": "m"}}, {"unique_key": "u"}])},
            enabled=chance.random() < 0.9,
            misfire_policy=chance.choice(["skip", "run_once"]),
            overlap_policy=chance.choice(["allow", "skip", "skip"]),
            generation=self.world.ctx.new_id(),
            next_fire_at=None,
            created_at=now,
            updated_at=now,
        )
        self.with_crashes(chance, lambda: schedules.put_schedule(self.world.ctx, wanted))

    def switch(self, chance: Random) -> None:
        with suppress(ScheduleNotFound):
            self.with_crashes(
                chance,
                lambda: schedules.set_schedule_enabled(
                    self.world.ctx, NAMESPACE, chance.choice(NAMES), enabled=chance.random() < 0.6
                ),
            )

    def remove(self, chance: Random) -> None:
        if chance.random() < 0.3:
            with suppress(ScheduleNotFound):
                self.with_crashes(
                    chance, lambda: schedules.delete_schedule(self.world.ctx, NAMESPACE, chance.choice(NAMES))
                )

    def timer(self, chance: Random) -> None:
        """Fire a due timer, and fire it again now and then."""
        armed = self.world.timers.armed
        over = [name for name, (at, _) in armed.items() if at <= self.world.time + CLOCK_SKEW_TOLERANCE]
        if over:
            name = chance.choice(over)
            self.with_crashes(chance, lambda: sweep.on_timer(self.world.ctx, armed[name][1]["timer"]))
            if chance.random() < 0.8:
                armed.pop(name, None)

    def lose(self, chance: Random) -> None:
        """Lose a timer."""
        if armed := self.world.timers.armed:
            armed.pop(chance.choice(list(armed)))

    def work(self, chance: Random) -> None:
        still_open = [job.job_id for jobs in self.jobs.values() for job in jobs if not self.stored(job.job_id).ended]
        if still_open:
            with suppress(InvalidTransition):
                self.world.do(change_job.cancel, chance.choice(still_open))

    def time_passes(self, chance: Random) -> None:
        self.world.pass_time(chance.choice([1, 9, 31, 61, 61, 400]))

    def check_invariants(self) -> None:
        for name in NAMES:
            if schedule := self.world.ctx.schedules.find(NAMESPACE, name):
                self._check_overlap(self.known.get(schedule.schedule_id), schedule)
                self.known[schedule.schedule_id] = schedule
        new, self.streamed.versions = self.streamed.versions, []
        for version in new:
            if version.version == 1:
                self._check_creation(version)

    def _check_creation(self, job: Job) -> None:
        planned = {
            each.created_id_at(at): (each, at) for each in self.known.values() for at in _times(each, job.created_at)
        }
        assert job.job_id in planned, "it is the one job of a planned time"
        schedule, at = planned[job.job_id]
        earlier = self.jobs.setdefault(schedule.schedule_id, [])
        assert at <= job.created_at + CLOCK_SKEW_TOLERANCE, "it did not begin before its time"
        if schedule.misfire_policy == "skip":
            assert job.created_at - at <= MISFIRE_GRACE, "what was missed is left out"
        if schedule.overlap_policy == "skip" and earlier:
            last = self.stored(earlier[-1].job_id)
            assert last.finished_at, "it overlaps"
            assert last.finished_at <= job.created_at, "it overlaps"
        earlier.append(job)

    def _check_overlap(self, before: Schedule | None, after: Schedule) -> None:
        assert (after.next_fire_at is not None) == after.enabled
        run = after.last_fire
        if run is None or (before is not None and run == before.last_fire):
            return
        assert before is None or before.last_fire is None or before.last_fire.planned_at < run.planned_at
        match run.outcome:
            case "created" | "existing":
                assert run.created_id
                self.stored(run.created_id)
            case "missed":
                assert run.fired_at - run.planned_at > MISFIRE_GRACE
                assert after.misfire_policy == "skip"
            case "overlap":
                assert after.overlap_policy == "skip"
            case "refused":
                assert "mutex" in after.body

    def check_end(self) -> None:
        self.world.timers.armed.clear()
        self.pass_minutes(3)
        self.check_invariants()
        for name in NAMES:
            schedule = self.world.ctx.schedules.find(NAMESPACE, name)
            if schedule is None or schedule.next_fire_at is None:
                continue
            # The sweep leaves a fire to its timer for a while.
            assert schedule.next_fire_at > self.world.time - timedelta(seconds=61 + 20), "it was seen to"


def _times(schedule: Schedule, until: datetime) -> list[datetime]:
    """Return every planned time, counted from the anchor."""
    step = timedelta(minutes=int(str(schedule.timing.rate).split()[0]))
    count = max(0, (until + CLOCK_SKEW_TOLERANCE - schedule.timing.anchor) // step)
    return [schedule.timing.anchor + number * step for number in range(1, count + 1)]


@pytest.fixture(autouse=True)
def table() -> Iterator[None]:
    with mock_aws():
        create_table()
        yield


@pytest.mark.parametrize("seeds", blocks(third(WORLDS)), ids=str)
def test_simulated_schedule_processes_each_fire_time_once(seeds: range) -> None:
    simulate(ScheduleSimulation, STEPS, seeds, length=80)


_any_ids = count()


def _random_id(schedule: Schedule, planned_at: datetime) -> str:
    return derive_id_at(planned_at, f"any {next(_any_ids)}")


FAULTS: dict[str, tuple[object, str, object]] = {
    "a fire creates its job under a random id": (Schedule, "created_id_at", _random_id),
    "an open job is not an overlap": (run_schedule, "_active_id", lambda *_: None),
    "the sweep fires no schedule": (sweep, "fire_schedule", lambda *_, **__: None),
    "a misfire is still fired": (schedule_rules, "MISFIRE_GRACE", timedelta(days=1)),
}


@pytest.mark.fault
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises(AssertionError):
        simulate(ScheduleSimulation, STEPS, range(100), length=80, shorten=False)
