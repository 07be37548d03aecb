"""A mutex that jobs wait for: in the order in which they became ready, one at a time, whatever becomes of others."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.support.world import KEY, NAMESPACE, World
from vigil_core.domain.errors import JobCreationFailed
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.jobs.retry import RetryPolicy
from vigil_core.services import locks as take_holds
from vigil_core.services.jobs import transitions as change_job
from vigil_core.services.locks import hand_over
from vigil_core.services.queues.claim import Claim, claim_jobs
from vigil_core.store import keys
from vigil_core.store.table import DynamoTable


def queued(world: World, **wanted: Any) -> str:
    return world.job(**{"mutex_key": "disk", "mutex_queues": True, **wanted})


def status(world: World, job_id: str) -> str:
    return change_job.find_job(world.ctx, NAMESPACE, job_id).status


def hand(world: World) -> None:
    """What the matcher does when it hears of a job that has ended, or that stands in line."""
    hand_over(world.ctx, NAMESPACE, "disk", by="matcher")


def test_jobs_run_one_after_another_in_the_order_of_their_arrival(world: World) -> None:
    jobs = [queued(world) for _ in range(5)]
    for n, job_id in enumerate(jobs):
        assert [status(world, other) for other in jobs[n:]] == ["pending"] + ["waiting"] * (4 - n)
        world.do(change_job.start, job_id)
        hand(world)
        assert [status(world, other) for other in jobs[n + 1 :]] == ["waiting"] * (4 - n), "while it runs, nobody"
        world.complete(job_id) if n % 2 else world.fail(job_id)
        hand(world)
        hand(world)
    assert queued(world)
    hand(world)


def test_the_mutex_is_kept_through_the_delay_of_a_retry(world: World) -> None:
    first = queued(world, retry=RetryPolicy(max_attempts=2, initial_delay=Decimal(20), jitter=False))
    second = queued(world)
    world.do(change_job.start, first)
    world.fail(first)
    hand(world)
    assert (status(world, first), status(world, second)) == ("scheduled", "waiting")
    world.pass_time(20)
    change_job.on_time(world.ctx, NAMESPACE, first)
    assert (status(world, first), status(world, second)) == ("pending", "waiting")


def test_a_job_takes_it_when_its_time_has_come_and_not_before(world: World) -> None:
    later = queued(world, scheduled_at=world.time + timedelta(seconds=30))
    now = queued(world)
    assert (status(world, later), status(world, now)) == ("scheduled", "pending")
    world.pass_time(30)
    change_job.on_time(world.ctx, NAMESPACE, later)
    assert status(world, later) == "waiting"
    world.do(change_job.cancel, now)
    hand(world)
    assert status(world, later) == "pending"


def test_who_is_cancelled_in_line_leaves_it(world: World, table: DynamoTable) -> None:
    first, second, third = (queued(world) for _ in range(3))
    world.do(change_job.cancel, second)
    world.do(change_job.cancel, first)
    hand(world)
    assert status(world, third) == "pending"
    assert not table.query_page(keys.line(NAMESPACE, "disk")).rows


def test_a_retry_goes_to_the_end_of_the_line(world: World) -> None:
    first, second = queued(world), queued(world)
    world.do(change_job.start, first)
    world.fail(first)
    world.do(change_job.retry, first)
    assert status(world, first) == "waiting", "somebody stands in line, though nobody has it"
    hand(world)
    assert (status(world, first), status(world, second)) == ("waiting", "pending")


def test_a_retry_of_who_had_it_last_takes_it_anew(world: World) -> None:
    """Its hold still names it; all the same it must be taken, or another may take it at the same moment."""
    only = queued(world)
    world.do(change_job.cancel, only)
    before = world.ctx.holds.find(NAMESPACE, "mutex", "disk")
    world.do(change_job.retry, only)
    after = world.ctx.holds.find(NAMESPACE, "mutex", "disk")
    assert before
    assert after
    assert after.counter == before.counter + 1


def test_who_refuses_to_wait_is_refused_while_anybody_wants_it(world: World) -> None:
    first = queued(world)
    with pytest.raises(JobCreationFailed, match="Another operation is already running"):
        world.job(mutex_key="disk")
    second = queued(world)
    world.do(change_job.cancel, first)
    with pytest.raises(JobCreationFailed):
        world.job(mutex_key="disk")
    hand(world)
    world.do(change_job.cancel, second)
    assert status(world, world.job(mutex_key="disk")) == "pending"


def test_who_refuses_to_wait_is_waited_for(world: World) -> None:
    blunt = world.job(mutex_key="disk")
    polite = queued(world)
    world.do(change_job.cancel, blunt)
    assert change_job.find_job(world.ctx, NAMESPACE, blunt).for_matcher
    hand(world)
    assert status(world, polite) == "pending"


def test_a_worker_that_dies_gives_it_up(world: World) -> None:
    first, second = queued(world), queued(world)
    wanted = Claim(queue="default", worker="w", most=1, lease_s=10, claim_id=None)
    (job,) = claim_jobs(world.ctx, NAMESPACE, wanted, by=KEY, until=world.time)
    assert job.job_id == first
    world.pass_time(61)
    world.sweep()
    assert status(world, first) == "failed"
    world.pass_time(61)
    world.sweep()
    assert status(world, second) == "pending", "found by the sweeper, though the stream told nobody"


def test_a_line_of_nobody_is_taken_off_the_sweepers_list(world: World) -> None:
    first, second = queued(world), queued(world)
    for job_id in (second, first):
        world.do(change_job.cancel, job_id)
    assert due_mutexes(world) == 1
    hand(world)
    assert due_mutexes(world) == 0


def due_mutexes(world: World) -> int:
    far = world.time + timedelta(days=1)
    return sum(due.kind == "mutex" for shard in range(keys.DUE_SHARDS) for due in world.ctx.due.overdue(shard, far))


def test_two_that_line_up_at_the_end_of_the_holder(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder ends, and the line is handed on, between a newcomer's look and its place: it must not stand there for
    ever."""
    first = queued(world)
    look = take_holds._holder

    def look_and_be_overtaken(*args: Any) -> Any:
        found = look(*args)
        monkeypatch.setattr(take_holds, "_holder", look)
        world.do(change_job.cancel, first)
        hand(world)
        return found

    monkeypatch.setattr(take_holds, "_holder", look_and_be_overtaken)
    late = queued(world)
    job: Job = change_job.find_job(world.ctx, NAMESPACE, late)
    assert (job.status, job.for_matcher) == ("waiting", True), "the stream tells of it"
    hand(world)
    assert status(world, late) == "pending"


def test_the_history_says_why_it_waited(world: World) -> None:
    first, second = queued(world), queued(world)
    world.do(change_job.start, first)
    world.do(change_job.fail, first, JobError(code="E", message="m"))
    hand(world)
    history = world.ctx.jobs.history(change_job.find_job(world.ctx, NAMESPACE, second))
    assert [(line.kind, line.status, line.why) for line in history] == [
        ("created", "waiting", None),
        ("ready", "pending", "mutex"),
    ]
