"""The doctor finds everything that can get stuck, repairs it, and finds nothing when it runs again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.support.world import KEY, NAMESPACE, World
from vigil_core.domain.dead_letters import DeadLetter
from vigil_core.domain.exact_json import loads
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.domain.jobs.retry import RetryPolicy
from vigil_core.domain.schedules import Schedule, ScheduleTiming, replace_definition
from vigil_core.domain.webhooks import Delivery
from vigil_core.services.background import sweeper
from vigil_core.services.jobs import transitions
from vigil_core.services.locks import promote_next_waiter
from vigil_core.services.operations import doctor
from vigil_core.services.operations.dead_letters import DeadLetterBatch, DeadLetterList, RedriveReport
from vigil_core.services.operations.doctor import Checkup, Finding, RepairOutcome
from vigil_core.services.queues.claim import ClaimRequest, claim_jobs
from vigil_core.services.schedules import manage as schedules
from vigil_core.services.webhooks import deliver
from vigil_core.store import keys
from vigil_core.store.locks import queue_entry_put
from vigil_core.store.postponed_records import PostponedRecord
from vigil_core.store.table import DynamoTable, Update

LATER = 240
"""A time in seconds that is longer than the doctor's grace."""


@dataclass
class FakeDeadLetters:
    """Dead letters that a test sets. A redrive processes all except those in `failing`."""

    batches: list[DeadLetterBatch] = field(default_factory=list)
    messages: dict[str, int] = field(default_factory=lambda: {"fan_out": 0, "sweeper": 0})
    failing: list[DeadLetterBatch] = field(default_factory=list)

    def list(self) -> DeadLetterList:
        return DeadLetterList(batches=self.batches, total=len(self.batches), messages=self.messages)

    def redrive(self, until: datetime) -> RedriveReport:
        report = RedriveReport(
            batches=len(self.batches) - len(self.failing), failed=self.failing, messages=self.messages
        )
        self.batches, self.messages = self.failing, {"fan_out": 0, "sweeper": 0}
        return report


@dataclass
class DoctorWorld:
    """A world with its table, and a doctor for it."""

    world: World
    table: DynamoTable
    letters: FakeDeadLetters = field(default_factory=FakeDeadLetters)

    def examine(self, until: datetime) -> Checkup:
        letters: Any = self.letters
        return doctor.examine(self.world.ctx, letters, until)

    def repair(self, findings: Sequence[Finding], until: datetime) -> list[RepairOutcome | None]:
        return doctor.repair(self.world.ctx, findings, until)

    def examine_now(self) -> Checkup:
        return self.examine(self.world.time + timedelta(minutes=3))

    def found_problems(self) -> list[tuple[str, str]]:
        return [(finding.kind, finding.entity_id) for finding in self.examine_now().findings]

    def repair_all(self) -> list[RepairOutcome | None]:
        return self.repair(self.examine_now().findings, self.world.time + timedelta(minutes=3))

    def sweep(self) -> None:
        """Process every message for the sweeper."""
        while self.world.queues.sweeper_messages:
            sweeper.on_message(self.world.ctx, loads(self.world.queues.sweeper_messages.pop(0)[0]))

    def stored(self, job_id: str) -> Job:
        return transitions.find_job(self.world.ctx, NAMESPACE, job_id)

    def rewrite(self, job_id: str, expression: str, **values: Any) -> None:
        values = {f":{name}": value for name, value in values.items()}
        self.table.update(Update(key=keys.job(NAMESPACE, job_id), expression=expression, values=values))


@pytest.fixture
def doctor_world(table: DynamoTable) -> Iterator[DoctorWorld]:
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(doctor, "list_dead_letters", lambda letters: letters.list())
        patches.setattr(doctor, "redrive_dead_letters", lambda letters, until: letters.redrive(until))
        yield DoctorWorld(World(table, spec_page_entries=2), table)


def overdue_wait(doctor_world: DoctorWorld) -> str:
    """Create a wait that is past its deadline."""
    job_id = doctor_world.world.job()
    answer = doctor_world.world.wait({job_id: None}, wait_options={"expires_in": 60})
    doctor_world.world.pass_time(60)
    return str(answer["wait_id"])


def unfinished_registration(doctor_world: DoctorWorld) -> str:
    """Create a large wait whose message to the fan-out function is lost."""
    jobs = [doctor_world.world.job() for _ in range(6)]
    answer = doctor_world.world.wait(dict.fromkeys(jobs))
    assert doctor_world.world.queues.fan_out_messages
    doctor_world.world.queues.fan_out_messages.clear()
    doctor_world.world.pass_time(600)
    return str(answer["wait_id"])


def lost_delivery(doctor_world: DoctorWorld) -> str:
    """Create a delivery whose message is lost."""
    world = doctor_world.world
    delivery = Delivery(
        namespace=NAMESPACE, webhook="ci", delivery_id="d1", event_id="e1", event_type="x", body="{}", url=None,
        status="pending", created_at=world.time, next_attempt_at=world.time,
    )  # fmt: skip
    deliver.enqueue_deliveries(world.ctx, [delivery])
    world.queues.webhook_messages.clear()
    return keys.delivery_due_id("ci", "d1")


def overdue_schedule(doctor_world: DoctorWorld) -> str:
    """Create a schedule whose timer is lost."""
    world = doctor_world.world
    timing = ScheduleTiming(cron="*/30 * * * *", rate=None, timezone="UTC", anchor=world.time)
    schedules.put_schedule(
        world.ctx,
        Schedule(
            namespace=NAMESPACE, name="nightly", schedule_id="s", timing=timing, action="job",
            body={"job_type": "report"}, enabled=True, misfire_policy="run_once", overlap_policy="allow",
            generation="g",
            next_fire_at=None, created_at=world.time,
            updated_at=world.time,
        ),
    )  # fmt: skip
    world.pass_time(1_800)
    return "nightly"


def queued(world: World) -> str:
    return world.job(mutex_key="disk", queue_on_conflict=True)


def stalled_mutex(doctor_world: DoctorWorld) -> str:
    """Create a mutex with a queue whose owner ended without a stream record for the matcher."""
    first, _ = queued(doctor_world.world), queued(doctor_world.world)
    doctor_world.world.do(transitions.start, first)
    doctor_world.world.complete(first)
    return "disk"


def abandoned_queue_entry(doctor_world: DoctorWorld) -> str:
    """Create a mutex queue in which the entry of an ended job is before that of an open job. The owner still runs."""
    world = doctor_world.world
    gone = world.running()
    world.complete(gone)
    first, _ = queued(world), queued(world)
    world.do(transitions.start, first)
    entry_put = queue_entry_put(doctor_world.stored(gone), 1, ttl=4_000_000_000)
    doctor_world.table.put(type(entry_put)(row={**entry_put.row, "pk": keys.mutex_queue(NAMESPACE, "disk")}))
    promote_next_waiter(world.ctx, NAMESPACE, "disk", actor="sweeper")
    return "disk"


def overdue_job(doctor_world: DoctorWorld) -> str:
    """Create a job that is past its start time."""
    return doctor_world.world.job(scheduled_at=doctor_world.world.time + timedelta(seconds=30))


def job_with_expired_lease(doctor_world: DoctorWorld) -> str:
    """Create a claimed job whose worker has crashed."""
    job_id = doctor_world.world.job(priority="critical")
    request = ClaimRequest(queue="default", worker="w", limit=1, lease_s=30, claim_id=None)
    claimed = claim_jobs(doctor_world.world.ctx, NAMESPACE, request, actor=KEY, until=doctor_world.world.time)
    assert [job.job_id for job in claimed] == [job_id]
    return job_id


def undispatched_job(doctor_world: DoctorWorld) -> str:
    """Create a job of executor `http` without a stream record for the matcher."""
    now = doctor_world.world.ctx.now()
    job_type = JobType(
        namespace=NAMESPACE, name="kind", executor="http", queue="default", stages=("submit", "complete"), defaults={},
        payload_schema=None, description=None, created_at=now, updated_at=now, target={"url": "https://a.example/"},
    )  # fmt: skip
    doctor_world.world.ctx.job_types.store_target(job_type)
    return doctor_world.world.job(executor="http", target_ref=job_type.target_ref)


def unindexed_job(doctor_world: DoctorWorld) -> str:
    """Create a pending job without an index entry."""
    job_id = doctor_world.world.job()
    doctor_world.rewrite(job_id, "REMOVE g1pk, g1sk")
    return job_id


def stale_index_entry(doctor_world: DoctorWorld) -> str:
    """Create an ended job that still has an index entry in its queue."""
    job_id = doctor_world.world.running()
    doctor_world.world.complete(job_id)
    sort_key = keys.ready_job(2, doctor_world.world.time, job_id)
    doctor_world.rewrite(job_id, "SET g1pk = :pk, g1sk = :sk", pk=keys.ready_jobs(NAMESPACE, "default"), sk=sort_key)
    return job_id


def unevaluated_job(doctor_world: DoctorWorld) -> str:
    """Create a waiting job whose dependency ended without a stream record for the matcher."""
    world = doctor_world.world
    before = world.running()
    after = world.job(depends_on=(before,))
    world.run_matcher()
    world.complete(before)
    return after


def postponed_record(doctor_world: DoctorWorld) -> str:
    """Create a postponed record, and let the sweeper request its retry, which removes it."""
    world, store = doctor_world.world, doctor_world.world.ctx.postponed_records
    record = PostponedRecord(
        namespace=NAMESPACE, group="matcher#job#1", sequence_number="7", record={}, postponed_at=world.time,
        next_attempt_at=world.time,
    )  # fmt: skip
    store.add(record)
    world.ctx = replace(world.ctx, stream_consumers=RemovingConsumers(lambda: store.remove(record)))
    return "matcher#job#1#7"


@dataclass(frozen=True)
class RemovingConsumers:
    """Consumers of the stream whose retry succeeds."""

    remove: Callable[[], None]

    def retry_postponed(self, consumer: str, event: str) -> None:
        assert (consumer, loads(event)) == (
            "matcher",
            {"postponed": {"namespace": NAMESPACE, "group": "matcher#job#1"}},
        )
        self.remove()


PLANTED: list[tuple[str, Callable[[DoctorWorld], str]]] = [
    ("wait_expiry", overdue_wait),
    ("wait_registration", unfinished_registration),
    ("delivery", lost_delivery),
    ("schedule", overdue_schedule),
    ("mutex", stalled_mutex),
    ("mutex", abandoned_queue_entry),
    ("postponed", postponed_record),
    ("job_overdue", overdue_job),
    ("job_overdue", job_with_expired_lease),
    ("job_not_dispatched", undispatched_job),
    ("job_misplaced", unindexed_job),
    ("job_misplaced", stale_index_entry),
    ("job_dependencies", unevaluated_job),
]


@pytest.mark.parametrize(("kind", "plant"), PLANTED, ids=lambda of: getattr(of, "__name__", of))
def test_each_stuck_entity_is_found_and_repaired(
    doctor_world: DoctorWorld, kind: str, plant: Callable[[DoctorWorld], str]
) -> None:
    entity_id = plant(doctor_world)
    doctor_world.world.pass_time(LATER)
    (finding,) = doctor_world.examine_now().findings
    assert (finding.kind, finding.namespace, finding.entity_id) == (kind, NAMESPACE, entity_id)
    assert finding.since is not None
    assert finding.since <= doctor_world.world.time - doctor.GRACE
    assert doctor_world.found_problems() == [(kind, entity_id)], "an examination changes nothing"

    (outcome,) = doctor_world.repair_all()
    assert outcome is not None
    assert outcome.repaired, outcome.message
    doctor_world.sweep()
    doctor_world.world.run_fan_out()
    assert doctor_world.found_problems() == []


@pytest.mark.parametrize(
    "plant",
    [
        stalled_mutex,
        overdue_job,
        job_with_expired_lease,
        undispatched_job,
        unindexed_job,
        stale_index_entry,
        unevaluated_job,
    ],
    ids=lambda of: of.__name__,
)
def test_recent_problem_within_the_grace_period_is_ignored(
    doctor_world: DoctorWorld, plant: Callable[[DoctorWorld], str]
) -> None:
    plant(doctor_world)
    doctor_world.world.pass_time(120)
    assert doctor_world.found_problems() == []


def test_repair_produces_the_missing_effect(doctor_world: DoctorWorld) -> None:
    wait_id, released, started_id, indexed_id = (
        overdue_wait(doctor_world),
        unevaluated_job(doctor_world),
        overdue_job(doctor_world),
        unindexed_job(doctor_world),
    )
    doctor_world.world.pass_time(LATER)
    assert len(doctor_world.repair_all()) == 4
    assert doctor_world.world.show({"wait_id": wait_id})["status"] == "expired"
    assert [doctor_world.stored(job_id).status for job_id in (released, started_id, indexed_id)] == ["pending"] * 3
    ready = [job.job_id for job in doctor_world.world.ctx.job_queues.ready(NAMESPACE, "default", 10)]
    assert {released, started_id, indexed_id} <= set(ready)


def test_repair_gives_the_mutex_to_the_next_queued_job(doctor_world: DoctorWorld) -> None:
    first, second = queued(doctor_world.world), queued(doctor_world.world)
    doctor_world.world.do(transitions.start, first)
    doctor_world.world.complete(first)
    doctor_world.world.pass_time(LATER)
    doctor_world.repair_all()
    assert doctor_world.stored(second).status == "pending"


def test_refused_schedule_is_found_until_its_definition_is_corrected(doctor_world: DoctorWorld) -> None:
    world = doctor_world.world
    world.job()
    overdue_schedule(doctor_world)
    (schedule,), _ = world.ctx.schedules.page(NAMESPACE, after=None, limit=1)
    refused = replace(schedule, action="job", body={"job_type": "report", "depends_on": ["pair"]})
    world.ctx.schedules.save(schedule, replace(refused, version=schedule.version + 1))
    world.pass_time(60)
    world.sweep()
    (finding,) = [each for each in doctor_world.examine_now().findings if each.kind == "schedule_refused"]
    assert (finding.namespace, finding.entity_id) == (NAMESPACE, schedule.name)
    assert "MISSING_DEPENDENCY" in finding.problem
    (outcome,) = doctor_world.repair([finding], world.time + timedelta(minutes=3))
    assert outcome is not None
    assert not outcome.repaired
    stored = world.ctx.schedules.find(NAMESPACE, schedule.name)
    assert stored is not None
    corrected = replace_definition(stored, replace(stored, body={"job_type": "report"}, updated_at=world.time))
    world.ctx.schedules.save(stored, corrected)
    world.pass_time(1_800)
    world.sweep()
    assert all(each.kind != "schedule_refused" for each in doctor_world.examine_now().findings)


def test_healthy_stack_has_no_findings(doctor_world: DoctorWorld) -> None:
    world = doctor_world.world
    undispatched_job(doctor_world)
    completed_id = world.running()
    world.wait({completed_id: None})
    open_ = world.job()
    world.job(depends_on=(completed_id, open_))
    world.wait({open_: None}, wait_options={"expires_in": 3_600})
    retried = world.running(retry=RetryPolicy(max_attempts=2, initial_delay=3_600, jitter=False))  # type: ignore[arg-type]
    world.fail(retried)
    world.job(scheduled_at=world.time + timedelta(hours=1))
    world.running(timeout_s=7_200)
    first, second, _ = queued(world), queued(world), queued(world)
    world.do(transitions.start, first)
    world.do(transitions.cancel, second)
    world.complete(completed_id)
    job_with_expired_lease(doctor_world)
    overdue_schedule(doctor_world)
    for _ in range(6):
        world.run_matcher()
        world.pass_time(60)
        world.sweep()
    checkup = doctor_world.examine_now()
    assert checkup.findings == []
    assert not checkup.more
    assert checkup.queues == 1
    assert checkup.jobs > 5


def test_running_job_with_unindexed_heartbeats_is_overdue_until_repaired(
    doctor_world: DoctorWorld,
) -> None:
    job_id = job_with_expired_lease(doctor_world)
    lease = doctor_world.stored(job_id).lease
    assert lease is not None
    for _ in range(20):
        doctor_world.world.pass_time(20)
        transitions.heartbeat(doctor_world.world.ctx, NAMESPACE, job_id, lease_token=lease.token, lease_s=30)
    assert doctor_world.found_problems() == [("job_overdue", job_id)]
    doctor_world.repair_all()
    assert doctor_world.found_problems() == []
    assert doctor_world.stored(job_id).status == "running", "the worker still sends heartbeats"


def test_undispatched_job_of_a_paused_queue_is_not_a_finding(doctor_world: DoctorWorld) -> None:
    undispatched_job(doctor_world)
    doctor_world.world.ctx.job_queues.set_paused(NAMESPACE, "default", True)
    doctor_world.world.pass_time(LATER)
    assert doctor_world.found_problems() == []


def test_repair_redrives_dead_letters(doctor_world: DoctorWorld) -> None:
    dead_letter = DeadLetter(function_arn="f", condition="c", records=1, event="{}")
    batch = DeadLetterBatch(key="a", stored_at=doctor_world.world.time, dead_letter=dead_letter)
    doctor_world.letters = FakeDeadLetters([batch], {"fan_out": 0, "sweeper": 2})
    (finding,) = doctor_world.examine_now().findings
    assert (finding.kind, finding.namespace, finding.since) == ("dead_letters", None, doctor_world.world.time)
    assert finding.problem == "1 batches of stream records, dead messages: 2 of sweeper"
    doctor_world.letters.failing = [batch]
    assert doctor_world.repair_all() == [
        RepairOutcome(repaired=False, message="0 batches handled, 2 messages sent back, 1 failed again, 0 not tried")
    ]
    doctor_world.letters.failing = []
    assert [outcome and outcome.repaired for outcome in doctor_world.repair_all()] == [True]
    assert doctor_world.found_problems() == []


def test_examination_over_its_limits_reports_more(doctor_world: DoctorWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        overdue_job(doctor_world)
    doctor_world.world.pass_time(LATER)
    assert not doctor_world.examine_now().more
    monkeypatch.setattr(doctor, "MAX_FINDINGS", 3)
    checkup = doctor_world.examine_now()
    assert (len(checkup.findings), checkup.more) == (3, True)
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "MAX_NEW_JOBS", 0)
    monkeypatch.setattr(doctor, "MAX_JOBS_PER_QUEUE", 2)
    checkup = doctor_world.examine_now()
    assert (len(checkup.findings), checkup.more) == (2, True)


def test_doctor_without_time_left_starts_nothing(doctor_world: DoctorWorld) -> None:
    overdue_job(doctor_world)
    doctor_world.world.pass_time(LATER)
    findings = doctor_world.examine_now().findings
    assert doctor_world.repair(findings, doctor_world.world.time) == [None]
    checkup = doctor_world.examine(doctor_world.world.time)
    assert (checkup.findings, checkup.more) == ([], True)


def test_failed_repair_does_not_block_the_others(doctor_world: DoctorWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, good = overdue_job(doctor_world), overdue_job(doctor_world)
    doctor_world.world.pass_time(LATER)

    def on_time(ctx: Any, namespace: str, job_id: str, *, actor: str) -> None:
        if job_id == broken:
            raise RuntimeError("no")
        transitions.apply_timers(ctx, namespace, job_id, actor=actor)

    monkeypatch.setattr(doctor, "apply_timers", on_time)
    assert {outcome.message for outcome in doctor_world.repair_all() if outcome} == {
        "done",
        "failed: RuntimeError('no')",
    }
    assert doctor_world.found_problems() == [("job_overdue", broken)]
    assert doctor_world.stored(good).status == "pending"
