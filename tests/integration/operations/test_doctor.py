"""The doctor finds each thing that can get stuck, mends it, and finds nothing at a second look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.support.world import KEY, NAMESPACE, World
from vigil_core.domain.dead_letters import DeadLetter
from vigil_core.domain.exact_json import loads
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.domain.jobs.retry import RetryPolicy
from vigil_core.domain.schedules import Schedule, Timing
from vigil_core.domain.webhooks import Delivery
from vigil_core.services.background import sweeper as sweep
from vigil_core.services.jobs import transitions as change_job
from vigil_core.services.locks import hand_over
from vigil_core.services.operations import doctor
from vigil_core.services.operations.dead_letters import Batch, DeadLetterList, Redriven
from vigil_core.services.operations.doctor import Checkup, Doctor, Outcome
from vigil_core.services.queues.claim import Claim, claim_jobs
from vigil_core.services.schedules import manage as schedules
from vigil_core.services.webhooks import deliver as tell_webhooks
from vigil_core.store import keys
from vigil_core.store.locks import place_put
from vigil_core.store.table import DynamoTable, Update

LATER = 240
"""More than the doctor's patience, in seconds."""


@dataclass
class Letters:
    """Dead letters as a test wants them; a redrive handles all but those that fail again."""

    batches: list[Batch] = field(default_factory=list)
    messages: dict[str, int] = field(default_factory=lambda: {"fan_out": 0, "sweeper": 0})
    failing: list[Batch] = field(default_factory=list)

    def list(self) -> DeadLetterList:
        return DeadLetterList(batches=self.batches, total=len(self.batches), messages=self.messages)

    def redrive(self, until: datetime) -> Redriven:
        done = Redriven(batches=len(self.batches) - len(self.failing), failed=self.failing, messages=self.messages)
        self.batches, self.messages = self.failing, {"fan_out": 0, "sweeper": 0}
        return done


@dataclass
class Practice:
    """A world, its table, and a doctor."""

    world: World
    table: DynamoTable
    letters: Letters = field(default_factory=Letters)

    @property
    def doctor(self) -> Doctor:
        letters: Any = self.letters
        return Doctor(self.world.ctx, letters)

    def look(self) -> Checkup:
        return self.doctor.look(self.world.time + timedelta(minutes=3))

    def found(self) -> list[tuple[str, str]]:
        return [(finding.kind, finding.entity_id) for finding in self.look().findings]

    def mend(self) -> list[Outcome | None]:
        return self.doctor.mend(self.look().findings, self.world.time + timedelta(minutes=3))

    def sweep(self) -> None:
        """What the sweeper was asked for."""
        while self.world.queues.wake_ups:
            sweep.on_message(self.world.ctx, loads(self.world.queues.wake_ups.pop(0)[0]))

    def stored(self, job_id: str) -> Job:
        return change_job.find_job(self.world.ctx, NAMESPACE, job_id)

    def rewrite(self, job_id: str, expression: str, **values: Any) -> None:
        values = {f":{name}": value for name, value in values.items()}
        self.table.update(Update(key=keys.job(NAMESPACE, job_id), expression=expression, values=values))


@pytest.fixture
def practice(table: DynamoTable) -> Practice:
    return Practice(World(table, spec_page_entries=2), table)


def late_wait(practice: Practice) -> str:
    """A wait whose time is over."""
    job_id = practice.world.job()
    answer = practice.world.wait({job_id: None}, wait_options={"expires_in": 60})
    practice.world.pass_time(60)
    return str(answer["wait_id"])


def unfinished_registration(practice: Practice) -> str:
    """A large wait whose message to the fan-out function is lost."""
    jobs = [practice.world.job() for _ in range(6)]
    answer = practice.world.wait(dict.fromkeys(jobs))
    assert practice.world.queues.wide
    practice.world.queues.wide.clear()
    practice.world.pass_time(600)
    return str(answer["wait_id"])


def lost_delivery(practice: Practice) -> str:
    """A delivery whose message is lost."""
    world = practice.world
    delivery = Delivery(
        namespace=NAMESPACE, webhook="ci", delivery_id="d1", event_id="e1", event_type="x", body="{}", url=None,
        status="pending", created_at=world.time, next_at=world.time,
    )  # fmt: skip
    tell_webhooks.hand_over(world.ctx, [delivery])
    world.queues.to_tell.clear()
    return keys.delivery_due_id("ci", "d1")


def late_schedule(practice: Practice) -> str:
    """A schedule whose alarm is lost."""
    world = practice.world
    timing = Timing(cron="*/30 * * * *", rate=None, timezone="UTC", anchor=world.time)
    schedules.put_schedule(
        world.ctx,
        Schedule(
            namespace=NAMESPACE, name="nightly", schedule_id="s", timing=timing, creates="job",
            body={"job_type": "report"}, enabled=True, missed="run_once", overlap="allow", generation="g",
            next_at=None, created_at=world.time,
            updated_at=world.time,
        ),
    )  # fmt: skip
    world.pass_time(1_800)
    return "nightly"


def queued(world: World) -> str:
    return world.job(mutex_key="disk", mutex_queues=True)


def standstill(practice: Practice) -> str:
    """A mutex whose holder has ended, and the matcher never heard of it."""
    first, _ = queued(practice.world), queued(practice.world)
    practice.world.do(change_job.start, first)
    practice.world.complete(first)
    return "disk"


def abandoned_place(practice: Practice) -> str:
    """A place in line of a job that has ended, before that of one that wants it; the holder is at work."""
    world = practice.world
    gone = world.running()
    world.complete(gone)
    first, _ = queued(world), queued(world)
    world.do(change_job.start, first)
    place = place_put(practice.stored(gone), 1)
    practice.table.put(type(place)(row={**place.row, "pk": keys.line(NAMESPACE, "disk")}))
    hand_over(world.ctx, NAMESPACE, "disk", by="sweeper")
    return "disk"


def overdue(practice: Practice) -> str:
    """A job that was to begin."""
    return practice.world.job(scheduled_at=practice.world.time + timedelta(seconds=30))


def lapsed(practice: Practice) -> str:
    """A job whose worker has died."""
    job_id = practice.world.job(priority="critical")
    wanted = Claim(queue="default", worker="w", most=1, lease_s=30, claim_id=None)
    claimed = claim_jobs(practice.world.ctx, NAMESPACE, wanted, by=KEY, until=practice.world.time)
    assert [job.job_id for job in claimed] == [job_id]
    return job_id


def undispatched(practice: Practice) -> str:
    """A job of Vigil's own that the matcher has not seen."""
    now = practice.world.ctx.now()
    job_type = JobType(
        namespace=NAMESPACE, name="kind", executor="http", queue="default", stages=("submit", "complete"), defaults={},
        payload_schema=None, description=None, created_at=now, updated_at=now, target={"url": "https://a.example/"},
    )  # fmt: skip
    practice.world.ctx.job_types.keep_target(job_type)
    return practice.world.job(executor="http", target_ref=job_type.target_ref)


def hidden(practice: Practice) -> str:
    """A job that its queue does not show."""
    job_id = practice.world.job()
    practice.rewrite(job_id, "REMOVE g1pk, g1sk")
    return job_id


def haunting(practice: Practice) -> str:
    """A job that has ended, and that its queue shows to workers."""
    job_id = practice.world.running()
    practice.world.complete(job_id)
    place = keys.ready_job(2, practice.world.time, job_id)
    practice.rewrite(job_id, "SET g1pk = :pk, g1sk = :sk", pk=keys.ready_jobs(NAMESPACE, "default"), sk=place)
    return job_id


def unjudged(practice: Practice) -> str:
    """A job that waits for one that has ended, and the matcher never heard of it."""
    world = practice.world
    before = world.running()
    after = world.job(depends_on=(before,))
    world.run_matcher()
    world.complete(before)
    return after


PLANTED: list[tuple[str, Callable[[Practice], str]]] = [
    ("wait_expiry", late_wait),
    ("wait_registration", unfinished_registration),
    ("delivery", lost_delivery),
    ("schedule", late_schedule),
    ("mutex", standstill),
    ("mutex", abandoned_place),
    ("job_overdue", overdue),
    ("job_overdue", lapsed),
    ("job_not_dispatched", undispatched),
    ("job_misplaced", hidden),
    ("job_misplaced", haunting),
    ("job_dependencies", unjudged),
]


@pytest.mark.parametrize(("kind", "plant"), PLANTED, ids=lambda of: getattr(of, "__name__", of))
def test_what_is_stuck_is_found_and_mended(practice: Practice, kind: str, plant: Callable[[Practice], str]) -> None:
    entity_id = plant(practice)
    practice.world.pass_time(LATER)
    (finding,) = practice.look().findings
    assert (finding.kind, finding.namespace, finding.entity_id) == (kind, NAMESPACE, entity_id)
    assert finding.since is not None
    assert finding.since <= practice.world.time - doctor.PATIENCE
    assert practice.found() == [(kind, entity_id)], "a look changes nothing"

    (outcome,) = practice.mend()
    assert outcome is not None
    assert outcome.mended, outcome.said
    practice.sweep()
    practice.world.run_fan_out()
    assert practice.found() == []


@pytest.mark.parametrize(
    "plant", [standstill, overdue, lapsed, undispatched, hidden, haunting, unjudged], ids=lambda of: of.__name__
)
def test_what_may_yet_heal_by_itself_is_left_alone(practice: Practice, plant: Callable[[Practice], str]) -> None:
    plant(practice)
    practice.world.pass_time(120)
    assert practice.found() == []


def test_mending_has_the_effect_that_was_missing(practice: Practice) -> None:
    wait_id, released, begun, shown = late_wait(practice), unjudged(practice), overdue(practice), hidden(practice)
    practice.world.pass_time(LATER)
    assert len(practice.mend()) == 4
    assert practice.world.show({"wait_id": wait_id})["status"] == "expired"
    assert [practice.stored(job_id).status for job_id in (released, begun, shown)] == ["pending"] * 3
    ready = [job.job_id for job in practice.world.ctx.job_queues.ready(NAMESPACE, "default", 10)]
    assert {released, begun, shown} <= set(ready)


def test_the_next_in_line_is_let_in(practice: Practice) -> None:
    first, second = queued(practice.world), queued(practice.world)
    practice.world.do(change_job.start, first)
    practice.world.complete(first)
    practice.world.pass_time(LATER)
    practice.mend()
    assert practice.stored(second).status == "pending"


def test_a_healthy_world_has_nothing_to_mend(practice: Practice) -> None:
    world = practice.world
    undispatched(practice)
    done = world.running()
    world.wait({done: None})
    open_ = world.job()
    world.job(depends_on=(done, open_))
    world.wait({open_: None}, wait_options={"expires_in": 3_600})
    retried = world.running(retry=RetryPolicy(max_attempts=2, initial_delay=3_600, jitter=False))  # type: ignore[arg-type]
    world.fail(retried)
    world.job(scheduled_at=world.time + timedelta(hours=1))
    world.running(timeout_s=7_200)
    first, second, _ = queued(world), queued(world), queued(world)
    world.do(change_job.start, first)
    world.do(change_job.cancel, second)
    world.complete(done)
    lapsed(practice)
    late_schedule(practice)
    for _ in range(6):
        world.run_matcher()
        world.pass_time(60)
        world.sweep()
    checkup = practice.look()
    assert checkup.findings == []
    assert not checkup.more
    assert checkup.queues == 1
    assert checkup.jobs > 5


def test_a_running_job_whose_heartbeats_were_not_shown_is_overdue_until_the_sweeper_shows_them(
    practice: Practice,
) -> None:
    job_id = lapsed(practice)
    lease = practice.stored(job_id).lease
    assert lease is not None
    for _ in range(20):
        practice.world.pass_time(20)
        change_job.heartbeat(practice.world.ctx, NAMESPACE, job_id, lease_token=lease.token, length_s=30)
    assert practice.found() == [("job_overdue", job_id)]
    practice.mend()
    assert practice.found() == []
    assert practice.stored(job_id).status == "running", "its worker is alive"


def test_a_paused_queue_keeps_what_it_is_to_keep(practice: Practice) -> None:
    undispatched(practice)
    practice.world.ctx.job_queues.set_paused(NAMESPACE, "default", True)
    practice.world.pass_time(LATER)
    assert practice.found() == []


def test_dead_letters_are_redriven(practice: Practice) -> None:
    letter = DeadLetter(function_arn="f", condition="c", records=1, event="{}")
    batch = Batch(key="a", stored_at=practice.world.time, letter=letter)
    practice.letters = Letters([batch], {"fan_out": 0, "sweeper": 2})
    (finding,) = practice.look().findings
    assert (finding.kind, finding.namespace, finding.since) == ("dead_letters", None, practice.world.time)
    assert finding.what == "1 batches of stream records, dead messages: 2 of sweeper"
    practice.letters.failing = [batch]
    assert practice.mend() == [
        Outcome(mended=False, said="0 batches handled, 2 messages sent back, 1 failed again, 0 not tried")
    ]
    practice.letters.failing = []
    assert [outcome and outcome.mended for outcome in practice.mend()] == [True]
    assert practice.found() == []


def test_bounds_are_told(practice: Practice, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        overdue(practice)
    practice.world.pass_time(LATER)
    assert not practice.look().more
    monkeypatch.setattr(doctor, "MOST_FOUND", 3)
    checkup = practice.look()
    assert (len(checkup.findings), checkup.more) == (3, True)
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "MOST_NEW", 0)
    monkeypatch.setattr(doctor, "MOST_OF_A_QUEUE", 2)
    checkup = practice.look()
    assert (len(checkup.findings), checkup.more) == (2, True)


def test_without_time_nothing_is_begun(practice: Practice) -> None:
    overdue(practice)
    practice.world.pass_time(LATER)
    findings = practice.look().findings
    assert practice.doctor.mend(findings, practice.world.time) == [None]
    checkup = practice.doctor.look(practice.world.time)
    assert (checkup.findings, checkup.more) == ([], True)


def test_what_cannot_be_mended_keeps_nothing_else_from_it(practice: Practice, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, good = overdue(practice), overdue(practice)
    practice.world.pass_time(LATER)

    def on_time(ctx: Any, namespace: str, job_id: str, *, by: str) -> None:
        if job_id == broken:
            raise RuntimeError("no")
        change_job.on_time(ctx, namespace, job_id, by=by)

    monkeypatch.setattr(doctor, "on_time", on_time)
    assert {outcome.said for outcome in practice.mend() if outcome} == {"done", "failed: RuntimeError('no')"}
    assert practice.found() == [("job_overdue", broken)]
    assert practice.stored(good).status == "pending"
