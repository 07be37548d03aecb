"""Schedules fired by timers and the sweep: late, twice, after changes, and by a process that crashes at any write."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from boto3.dynamodb.types import TypeSerializer

from tests.support.world import NAMESPACE, World
from vigil_core.domain.errors import InvalidTransition, MissingDependency
from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.domain.jobs.stages import DEFAULT_STAGES
from vigil_core.domain.schedules import Schedule, ScheduleFire, ScheduleTiming
from vigil_core.runtime.logging import logger
from vigil_core.runtime.metrics import METRIC_BY_EVENT_TYPE
from vigil_core.services.background import sweeper
from vigil_core.services.events.publish import events_of
from vigil_core.services.jobs import transitions
from vigil_core.services.schedules import fire
from vigil_core.services.schedules import manage as schedules
from vigil_core.store import keys
from vigil_core.store.stream import StreamRecord
from vigil_core.store.table import DynamoTable

SCHEDULE_NAME = "nightly"


def put(world: World, **members: Any) -> Schedule:
    """Store the test's schedule: a job of type `report` every hour."""
    timing = ScheduleTiming(cron=members.pop("cron", "0 * * * *"), rate=None, timezone="UTC", anchor=world.time)
    parts: dict[str, Any] = {
        "namespace": NAMESPACE, "name": SCHEDULE_NAME, "schedule_id": world.ctx.new_id(), "timing": timing,
        "action": "job", "body": {"job_type": "report"}, "enabled": True, "misfire_policy": "skip",
        "overlap_policy": "allow",
        "generation": world.ctx.new_id(), "next_fire_at": None, "created_at": world.time, "updated_at": world.time,
    }  # fmt: skip
    return schedules.put_schedule(world.ctx, Schedule(**parts | members))[0]


def stored_schedule(world: World, name: str = SCHEDULE_NAME) -> Schedule:
    return schedules.find_schedule(world.ctx, NAMESPACE, name)


def last_fire(world: World) -> ScheduleFire:
    run = stored_schedule(world).last_fire
    assert run is not None
    return run


def jobs(world: World) -> list[Job]:
    """Return all jobs, newest first."""
    listed = world.ctx.listing.newest_first(NAMESPACE, "jobs")
    stored = [world.ctx.jobs.find(NAMESPACE, line.entity_id) for line in listed if line.entity_id]
    return [job for job in stored if job is not None]


def armed_timer(world: World) -> dict[str, JsonValue]:
    """Remove the only timer, move the clock to its time, and return its event."""
    ((name, (at, event)),) = world.timers.armed.items()
    del world.timers.armed[name]
    world.time = max(at, world.time)
    timer_event: dict[str, JsonValue] = event["timer"]
    return timer_event


def fire_timer(world: World) -> None:
    sweeper.on_timer(world.ctx, armed_timer(world))


def test_schedule_creates_a_job_at_each_fire_time(world: World) -> None:
    put(world)
    fire_timer(world)
    fire_timer(world)
    first, second = reversed(jobs(world))
    assert [job.created_at.isoformat() for job in (first, second)] == [
        "2026-01-31T10:00:00+00:00",
        "2026-01-31T11:00:00+00:00",
    ]
    assert (second.job_type, second.status, second.log[0].actor) == ("report", "pending", "schedule")
    assert last_fire(world) == ScheduleFire(
        planned_at=second.created_at, fired_at=second.created_at, outcome="created", created_id=second.job_id
    )
    assert stored_schedule(world).next_fire_at == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert [at.hour for at, _ in world.timers.armed.values()] == [12]


def test_scheduled_job_follows_its_type_at_creation(world: World) -> None:
    put(world)
    schema: dict[str, JsonValue] = {"type": "object"}
    job_type = JobType(
        namespace=NAMESPACE, name="report", executor="none", queue="reports", stages=DEFAULT_STAGES, defaults={},
        payload_schema=None, description=None, created_at=world.time, updated_at=world.time,
    )  # fmt: skip
    world.ctx.job_types.save(None, job_type)
    fire_timer(world)
    assert [(job.queue, job.executor) for job in jobs(world)] == [("reports", "none")]
    world.ctx.job_types.save(job_type, replace(job_type, payload_schema=schema, version=2))
    fire_timer(world)
    assert len(jobs(world)) == 1
    refused = last_fire(world)
    assert (refused.outcome, refused.created_id) == ("refused", None)
    assert refused.error is not None
    assert (refused.error.code, "/payload" in refused.error.message) == ("VALIDATION_FAILED", True)
    assert stored_schedule(world).next_fire_at == world.time + timedelta(hours=1)


def test_timer_that_fires_twice_creates_one_job(world: World) -> None:
    put(world)
    event = armed_timer(world)
    for _ in range(3):
        sweeper.on_timer(world.ctx, event)
    assert len(jobs(world)) == 1
    assert stored_schedule(world).version == 2


def test_sweep_fires_a_schedule_whose_timer_was_lost(world: World) -> None:
    put(world)
    world.timers.armed.clear()
    world.time = datetime(2026, 1, 31, 10, 0, 19, tzinfo=UTC)
    world.sweep()
    assert jobs(world) == [], "the sweep leaves a fire to its timer at first"
    world.pass_time(60)
    world.sweep()
    world.sweep()
    assert len(jobs(world)) == 1
    assert last_fire(world).planned_at == datetime(2026, 1, 31, 10, tzinfo=UTC)
    assert len(world.timers.armed) == 1, "a timer for the next fire exists"


def test_early_timer_does_nothing(world: World) -> None:
    put(world)
    event = armed_timer(world)
    world.time -= timedelta(seconds=10)
    sweeper.on_timer(world.ctx, event)
    assert jobs(world) == []


def test_misfire_is_skipped_or_run_once(world: World) -> None:
    put(world)
    world.time = datetime(2026, 1, 31, 13, 30, tzinfo=UTC)
    world.sweep()
    assert jobs(world) == []
    assert (last_fire(world).outcome, last_fire(world).planned_at.hour) == ("missed", 13)
    put(world, misfire_policy="run_once")
    world.time = datetime(2026, 1, 31, 18, 30, tzinfo=UTC)
    world.sweep()
    assert (last_fire(world).outcome, last_fire(world).planned_at.hour) == ("created", 18)
    assert len(jobs(world)) == 1
    assert stored_schedule(world).next_fire_at == datetime(2026, 1, 31, 19, tzinfo=UTC)


def test_fire_is_skipped_while_the_previous_job_is_open(world: World) -> None:
    put(world, overlap_policy="skip")
    fire_timer(world)
    fire_timer(world)
    fire_timer(world)
    (job,) = jobs(world)
    assert last_fire(world).outcome == "overlap"
    world.do(transitions.cancel, job.job_id)
    fire_timer(world)
    assert last_fire(world).outcome == "created"
    assert len(jobs(world)) == 2


def test_job_of_a_crashed_fire_counts_as_overlap(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    put(world, overlap_policy="skip")
    fire_timer(world)
    (first,) = jobs(world)
    world.do(transitions.cancel, first.job_id)
    with monkeypatch.context() as patch:
        patch.setattr(world.ctx.schedules, "save", _crash)
        with pytest.raises(RuntimeError, match="died"):
            fire_timer(world)
    assert len(jobs(world)) == 2, "the job was created before the crash"
    world.pass_time(3600)  # The crashed fire is not finished before the next one is due.
    world.sweep()
    world.pass_time(60)
    world.sweep()
    assert len(jobs(world)) == 2
    assert last_fire(world).outcome == "overlap"


def crash_after_creation(world: World, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Fire the schedule, and crash after the creation of the job and before it is recorded in the schedule."""
    with monkeypatch.context() as patch:
        patch.setattr(world.ctx.schedules, "save", _crash)
        with pytest.raises(RuntimeError, match="died"):
            fire_timer(world)
    (job,) = jobs(world)
    return job


@pytest.mark.parametrize("change", ["replace", "pause and resume"])
def test_job_of_a_crashed_fire_blocks_overlap_after_the_schedule_changes(
    world: World, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    put(world, overlap_policy="allow" if change == "replace" else "skip")
    job = crash_after_creation(world, monkeypatch)
    world.pass_time(60)
    if change == "replace":
        put(world, cron="30 * * * *", overlap_policy="skip")
    else:
        schedules.set_schedule_enabled(world.ctx, NAMESPACE, SCHEDULE_NAME, enabled=False)
        world.pass_time(60)
        schedules.set_schedule_enabled(world.ctx, NAMESPACE, SCHEDULE_NAME, enabled=True)
    for _ in range(2):
        fire_timer(world)
        assert (last_fire(world).outcome, jobs(world)) == ("overlap", [job])
    world.do(transitions.cancel, job.job_id)
    fire_timer(world)
    assert last_fire(world).outcome == "created"
    assert stored_schedule(world).unrecorded == ()


@pytest.mark.parametrize("late", [0, 1800], ids=["on time", "misfired"])
def test_job_of_a_crashed_fire_blocks_every_later_overlap(
    world: World, monkeypatch: pytest.MonkeyPatch, late: int
) -> None:
    put(world, overlap_policy="skip")
    job = crash_after_creation(world, monkeypatch)
    world.pass_time(3_600 + late)
    world.sweep()
    world.pass_time(60)
    world.sweep()
    assert last_fire(world).outcome == ("missed" if late else "overlap")
    fire_timer(world)
    assert (last_fire(world).outcome, jobs(world)) == ("overlap", [job])


def _crash(*_: object) -> None:
    raise RuntimeError("died")


def test_refused_job_creation_is_recorded_as_the_fire_error(world: World) -> None:
    put(world, body={"job_type": "report", "mutex": {"key": "m"}})
    fire_timer(world)
    fire_timer(world)
    assert len(jobs(world)) == 1
    error = last_fire(world).error
    assert error is not None
    assert error.code == "JOB_CREATION_FAILED"


@pytest.mark.parametrize(
    ("error", "code"),
    [(MissingDependency([]), "MISSING_DEPENDENCY"), (OverflowError("date"), "PROCESSING_FAILED"),
     (TypeError("no text"), "PROCESSING_FAILED"), (InvalidTransition("no"), "INVALID_TRANSITION")],
)  # fmt: skip
def test_every_permanent_error_of_a_creation_refuses_the_fire(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    put(world)
    with monkeypatch.context() as patch:
        patch.setattr(fire, "submit", refuse)
        fire_timer(world)
    refused = last_fire(world)
    assert refused.error is not None
    assert (refused.outcome, refused.error.code) == ("refused", code)
    fire_timer(world)
    assert last_fire(world).outcome == "created"


def test_transient_error_of_a_creation_leaves_the_fire_due(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise TimeoutError

    put(world)
    with monkeypatch.context() as patch:
        patch.setattr(fire, "submit", refuse)
        with pytest.raises(TimeoutError):
            fire_timer(world)
    world.pass_time(60)
    world.sweep()
    assert last_fire(world).outcome == "created"


def test_refused_fire_is_one_event_and_a_log_line(
    world: World, table: DynamoTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = StringIO()
    monkeypatch.setattr(logger.registered_handler, "stream", log)
    put(world, body={"job_type": "report", "depends_on": ["pair"]})
    before = to_image(table, world)
    fire_timer(world)
    refused = to_image(table, world)
    record = StreamRecord(sequence_number="1", change={"Keys": {}, "OldImage": before, "NewImage": refused})
    (event,) = events_of(world.ctx, record)
    assert (event.type, event.subject, event.audience) == ("vigil.schedule.refused", SCHEDULE_NAME, "ending")
    assert event.data["planned_at"] == "2026-01-31T10:00:00.000Z"
    assert event.data["next_planned_at"] == "2026-01-31T11:00:00.000Z"
    error: Any = event.data["error"]
    assert error["code"] == "MISSING_DEPENDENCY"
    assert event.type in METRIC_BY_EVENT_TYPE
    assert '"message":"refused"' in log.getvalue()
    schedules.set_schedule_enabled(world.ctx, NAMESPACE, SCHEDULE_NAME, enabled=False)
    paused = {"Keys": {}, "OldImage": refused, "NewImage": to_image(table, world)}
    assert events_of(world.ctx, StreamRecord(sequence_number="2", change=paused)) == []


def to_image(table: DynamoTable, world: World) -> dict[str, Any]:
    """Return the schedule's row as a stream record shows it."""
    row = table.get(keys.schedule(NAMESPACE, SCHEDULE_NAME))
    assert row is not None
    serializer = TypeSerializer()
    return {name: serializer.serialize(value) for name, value in row.items()}


def test_existing_job_of_the_unique_key_is_recorded_as_the_fire(world: World) -> None:
    put(world, body={"job_type": "report", "unique_key": "one"})
    fire_timer(world)
    fire_timer(world)
    (job,) = jobs(world)
    assert (last_fire(world).outcome, last_fire(world).created_id) == ("existing", job.job_id)


def test_timer_of_a_replaced_schedule_does_nothing(world: World) -> None:
    put(world)
    (_, event), *_ = world.timers.armed.values()
    put(world, cron="30 * * * *")
    assert [at.minute for at, _ in world.timers.armed.values()] == [30]
    world.time = datetime(2026, 1, 31, 10, tzinfo=UTC)
    sweeper.on_timer(world.ctx, event["timer"])
    world.sweep()
    assert [last_fire(world).planned_at.minute] == [30]


def test_changed_body_applies_to_the_next_fire(world: World) -> None:
    put(world)
    event = armed_timer(world)
    world.pass_time(1)
    put(world, body={"job_type": "other"})
    sweeper.on_timer(world.ctx, event)
    assert [job.job_type for job in jobs(world)] == ["other"]


def test_paused_schedule_neither_fires_nor_catches_up(world: World) -> None:
    put(world, misfire_policy="run_once")
    event = armed_timer(world)
    schedules.set_schedule_enabled(world.ctx, NAMESPACE, SCHEDULE_NAME, enabled=False)
    sweeper.on_timer(world.ctx, event)
    world.pass_time(86_400)
    world.sweep()
    assert (jobs(world), world.timers.armed) == ([], {})
    resumed = schedules.set_schedule_enabled(world.ctx, NAMESPACE, SCHEDULE_NAME, enabled=True)
    assert resumed.next_fire_at == world.time + timedelta(hours=1)
    sweeper.on_timer(world.ctx, event)
    assert jobs(world) == []
    fire_timer(world)
    assert len(jobs(world)) == 1


def test_timer_of_a_deleted_schedule_does_not_fire_a_new_one_of_that_name(world: World) -> None:
    put(world)
    event = armed_timer(world)
    schedules.delete_schedule(world.ctx, NAMESPACE, SCHEDULE_NAME)
    sweeper.on_timer(world.ctx, event)
    world.pass_time(3_600)
    world.sweep()
    put(world)
    world.time = datetime(2026, 1, 31, 12, tzinfo=UTC)
    sweeper.on_timer(world.ctx, event)
    assert jobs(world) == []


def test_equal_names_in_two_namespaces_have_separate_timers(world: World) -> None:
    put(world)
    put(world, namespace="other")
    assert len(world.timers.armed) == 2


class ProcessCrashed(BaseException):
    """Error that simulates a crash before or after a write."""


class CrashingTable:
    """Table that crashes the process at its nth write, before the write or after it."""

    def __init__(self, table: DynamoTable, at: int, *, after: bool) -> None:
        self._table, self._left, self._done = table, at, after

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._table, name)
        if name not in {"put", "update", "delete", "batch_write", "transact"}:
            return call

        def write(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._done:
                raise ProcessCrashed
            answer = call(*args, **kwargs)
            if self._left == 0:
                raise ProcessCrashed
            return answer

        return write


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 7))
def test_sweep_finishes_a_fire_that_crashed(table: DynamoTable, at: int, after: bool) -> None:
    world = World(table)
    put(world, body={"job_type": "report", "payload": {"a": 1}, "unique_key": "one"})
    event = armed_timer(world)
    crashing_table: Any = CrashingTable(table, at, after=after)
    crashing_world = World(crashing_table)
    crashing_world.time, crashing_world.timers = world.time, world.timers
    try:
        sweeper.on_timer(crashing_world.ctx, event)
    except ProcessCrashed:
        pass
    else:
        assert at > 4, "the process must crash at each of its writes"
    world.pass_time(60)
    world.sweep()
    (job,) = jobs(world)
    assert (last_fire(world).outcome, last_fire(world).created_id) == ("created", job.job_id)
    assert stored_schedule(world).next_fire_at == datetime(2026, 1, 31, 11, tzinfo=UTC)
