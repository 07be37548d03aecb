"""No row that an open job needs expires before the job, and every row expires some time after the last job."""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from random import Random

import pytest

from tests.integration.jobs.test_retention import expire
from tests.model.moto_table import empty_table
from tests.support.live import stored
from tests.support.row_expiry import CONFIGURATION
from tests.support.world import NAMESPACE, World
from vigil_core.domain.errors import InvalidTransition, JobCreationFailed
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.services.jobs import job_types, transitions
from vigil_core.services.locks import promote_next_waiter
from vigil_core.services.queues.renew_ttl import MINUTES_PER_DAY, renew_queue_ttl
from vigil_core.store import keys
from vigil_core.store.queues import MIN_QUEUE_TTL
from vigil_core.store.table import DynamoTable

DAY = 86_400
LONGEST_HOP_DAYS = 25
"""Less than the time for which a queue outlives its last renewal."""


def define(world: World, version: int) -> JobType:
    """Define the job type `post` with another target for each version."""
    now = world.ctx.now()
    job_type = JobType(
        namespace=NAMESPACE,
        name="post",
        executor="http",
        queue="calls",
        stages=("submit", "complete"),
        defaults={},
        payload_schema=None,
        description=None,
        created_at=now,
        updated_at=now,
        target={"url": f"https://a.example/{version}"},
    )
    return job_types.put_job_type(world.ctx, job_type)[0]


def minute_of(queue: str) -> timedelta:
    return timedelta(minutes=zlib.crc32(f"{NAMESPACE}#{queue}".encode()) % MINUTES_PER_DAY)


def renew_all(world: World) -> None:
    """Do what the sweep does each day for the queues, and each minute for the contested mutexes."""
    midnight = world.time.replace(hour=0, minute=0, second=0, microsecond=0)
    for queue, _ in list(world.ctx.job_queues.list_queues(NAMESPACE)):
        renew_queue_ttl(world.ctx, NAMESPACE, queue, midnight + minute_of(queue))
    for partition in range(keys.DUE_PARTITIONS):
        for due in list(world.ctx.due_index.overdue(partition, world.time)):
            if due.kind == "mutex":
                promote_next_waiter(world.ctx, NAMESPACE, due.entity_id, actor="sweeper")


class History:
    """Random changes of jobs with locks, targets and queues, and the days between them."""

    def __init__(self, world: World, table: DynamoTable, seed: int) -> None:
        self.world, self.table, self.random = world, table, Random(seed)
        self.job_ids: list[str] = []
        self.job_type = define(world, 0)

    def jobs(self) -> list[Job]:
        return list(self.world.ctx.jobs.find_many(NAMESPACE, self.job_ids).values())

    def step(self) -> None:
        action = self.random.choice([self.create, self.create, self.change, self.change, self.change, self.redefine])
        with suppress(JobCreationFailed, InvalidTransition):
            action()

    def create(self) -> None:
        kind = self.random.randrange(6)
        queue = f"q{self.random.randrange(8)}"
        attributes: list[dict[str, object]] = [
            {"unique_key": f"u{self.random.randrange(3)}", "queue": queue},
            {"mutex_key": f"m{self.random.randrange(2)}", "queue_on_conflict": True, "queue": queue},
            {"mutex_key": f"x{self.random.randrange(2)}", "executor": "none"},
            {"job_type": "post", "executor": "http", "target_ref": self.job_type.target_ref, "queue": "calls"},
            {"queue": queue, "scheduled_at": self.world.time + timedelta(days=self.random.randrange(1, 900))},
            {"executor": "none", "queue": queue, "unique_key": f"u{self.random.randrange(3)}"},
        ]
        self.job_ids.append(self.world.job(**attributes[kind]))

    def change(self) -> None:
        if not (jobs := self.jobs()):
            return
        job = self.random.choice(jobs)
        change = self.random.choice([transitions.start, transitions.cancel, transitions.retry, None, None])
        if change is not None:
            self.world.do(change, job.job_id)
        elif job.status != "running":
            transitions.apply_timers(self.world.ctx, NAMESPACE, job.job_id)
        else:
            self.random.choice([self.world.complete, self.world.fail])(job.job_id)

    def redefine(self) -> None:
        if self.random.random() < 0.3:
            job_types.delete_job_type(self.world.ctx, NAMESPACE, "post")
        self.job_type = define(self.world, self.random.randrange(3))

    def pass_days(self) -> None:
        self.world.pass_time(self.random.randrange(1, LONGEST_HOP_DAYS) * DAY)
        renew_all(self.world)
        expire(self.world, self.table)

    def check(self) -> None:
        """Check the rows that the open jobs need."""
        queues = {queue for queue, _ in self.world.ctx.job_queues.list_queues(NAMESPACE)}
        for job in self.jobs():
            if job.ended:
                continue
            self.check_locks(job)
            if job.target_ref is not None:
                assert self.world.ctx.job_types.target(NAMESPACE, job.target_ref), job
            if self.world.ctx.jobs.index_entry_of(job) is not None:
                assert job.queue in queues, job

    def check_locks(self, job: Job) -> None:
        if job.unique_key is not None:
            lock = self.world.ctx.locks.find(NAMESPACE, "unique", job.unique_key)
            assert lock is not None, job
            assert lock.job_id == job.job_id, job
        if job.mutex.key is None:
            return
        lock = self.world.ctx.locks.find(NAMESPACE, "mutex", job.mutex.key)
        assert lock is not None, job
        if job.mutex.position is None:
            assert lock.job_id == job.job_id, job
        else:
            entry = keys.mutex_queue_entry(NAMESPACE, job.mutex.key, job.mutex.position)
            assert self.table.get(entry) is not None, job
            assert lock.counter >= job.mutex.position, job


@pytest.fixture
def table(table: DynamoTable) -> DynamoTable:
    """Return the table without boto3, which makes the random histories ten times faster."""
    del table
    return empty_table()


@pytest.mark.parametrize("seed", range(6))
def test_no_row_expires_before_the_open_job_that_needs_it(world: World, table: DynamoTable, seed: int) -> None:
    history = History(world, table, seed)
    for _ in range(30):
        for _ in range(history.random.randrange(1, 4)):
            history.step()
        history.check()
        history.pass_days()
        history.check()
    world.pass_time(3_000 * DAY)
    expire(world, table)
    assert {row["entity"]["S"] for row in stored(table)} <= CONFIGURATION


@pytest.mark.parametrize("swept", [False, True])
def test_locks_and_queue_entries_of_jobs_that_stay_open_for_years_are_renewed(
    world: World, table: DynamoTable, swept: bool
) -> None:
    owner = world.running(unique_key="u", mutex_key="m", queue_on_conflict=True, executor="none")
    waiting = world.job(mutex_key="m", queue_on_conflict=True, executor="none")
    for number in range(12):
        world.pass_time(100 * DAY)
        expire(world, table)
        world.report(owner, fields={"n": number})
        transitions.apply_timers(world.ctx, NAMESPACE, waiting)
        world.ctx.jobs.renew_ttl(transitions.find_job(world.ctx, NAMESPACE, waiting))
        if swept:
            promote_next_waiter(world.ctx, NAMESPACE, "m", actor="sweeper")
    for lock in (world.ctx.locks.find(NAMESPACE, "unique", "u"), world.ctx.locks.find(NAMESPACE, "mutex", "m")):
        assert lock is not None
        assert lock.job_id == owner
    position = transitions.find_job(world.ctx, NAMESPACE, waiting).mutex.position
    assert position is not None
    assert table.get(keys.mutex_queue_entry(NAMESPACE, "m", position)) is not None


def test_target_of_an_unused_job_type_is_stored_again_for_its_next_job(world: World, table: DynamoTable) -> None:
    job_type = define(world, 0)
    world.pass_time(1_000 * DAY)
    expire(world, table)
    assert job_type.target_ref is not None
    with pytest.raises(LookupError):
        world.ctx.job_types.target(NAMESPACE, job_type.target_ref)
    world.job(job_type="post", executor="http", target_ref=job_type.target_ref)
    assert world.ctx.job_types.target(NAMESPACE, job_type.target_ref) == job_type.target


def test_target_expires_after_its_job_type_and_the_last_job(world: World, table: DynamoTable) -> None:
    job_type = define(world, 0)
    assert job_type.target_ref is not None
    job_types.delete_job_type(world.ctx, NAMESPACE, "post")
    world.job(job_type="post", executor="http", target_ref=job_type.target_ref)
    world.pass_time(400 * DAY)
    expire(world, table)
    assert world.ctx.job_types.target(NAMESPACE, job_type.target_ref) == job_type.target
    world.pass_time(1_000 * DAY)
    expire(world, table)
    assert not [row for row in stored(table) if row["entity"]["S"] == "target"]


def test_queue_expires_a_month_after_its_last_job(world: World, table: DynamoTable) -> None:
    world.complete(world.running(queue="images"))
    world.pass_time((MIN_QUEUE_TTL - timedelta(days=1)).total_seconds())
    expire(world, table)
    assert ("images", False) in list(world.ctx.job_queues.list_queues(NAMESPACE))
    world.pass_time(2 * DAY)
    renew_all(world)
    expire(world, table)
    assert list(world.ctx.job_queues.list_queues(NAMESPACE)) == []


def test_pause_of_a_queue_without_jobs_lasts_a_year(world: World, table: DynamoTable) -> None:
    world.ctx.job_queues.set_paused(NAMESPACE, "images", True)
    world.pass_time(360 * DAY)
    expire(world, table)
    assert world.ctx.job_queues.is_paused(NAMESPACE, "images")
    world.job(queue="images")
    world.pass_time(20 * DAY)
    expire(world, table)
    assert world.ctx.job_queues.is_paused(NAMESPACE, "images"), "each job extends it"


def test_old_tracked_job_that_is_cancelled_is_found_by_the_sweep_of_its_queue(world: World, table: DynamoTable) -> None:
    job_id = world.running(executor="none", queue="tracked")
    world.pass_time(100 * DAY)
    expire(world, table)
    assert list(world.ctx.job_queues.list_queues(NAMESPACE)) == []
    cancelled = world.do(transitions.cancel, job_id)
    assert cancelled.status == "running"
    world.pass_time(120)
    world.sweep()
    assert transitions.find_job(world.ctx, NAMESPACE, job_id).status == "cancelled"


def test_definition_never_shortens_the_life_of_an_equal_target(world: World) -> None:
    job_type = define(world, 0)
    start = world.time + timedelta(days=2_000)
    world.job(job_type="post", executor="http", target_ref=job_type.target_ref, scheduled_at=start)
    world.ctx.job_types.store_target(replace(job_type, version=2))
    world.pass_time(2_000 * DAY)
    assert world.ctx.job_types.target(NAMESPACE, str(job_type.target_ref)) == job_type.target
