"""Mutexes with a queue: jobs acquire them one at a time in the order in which they became ready, however others end."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.support.world import KEY, NAMESPACE, World
from vigil_core.domain.errors import JobCreationFailed
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.jobs.retry import RetryPolicy
from vigil_core.services import locks
from vigil_core.services.jobs import transitions
from vigil_core.services.locks import promote_next_waiter
from vigil_core.services.queues.claim import ClaimRequest, claim_jobs
from vigil_core.store import keys
from vigil_core.store.table import DynamoTable


def queued(world: World, **attributes: Any) -> str:
    return world.job(**{"mutex_key": "disk", "queue_on_conflict": True, **attributes})


def status(world: World, job_id: str) -> str:
    return transitions.find_job(world.ctx, NAMESPACE, job_id).status


def promote_next(world: World) -> None:
    """Run the matcher's step for a job that has ended or entered the mutex queue."""
    promote_next_waiter(world.ctx, NAMESPACE, "disk", actor="matcher")


def test_jobs_acquire_the_mutex_one_at_a_time_in_arrival_order(world: World) -> None:
    jobs = [queued(world) for _ in range(5)]
    for n, job_id in enumerate(jobs):
        assert [status(world, other) for other in jobs[n:]] == ["pending"] + ["waiting"] * (4 - n)
        world.do(transitions.start, job_id)
        promote_next(world)
        assert [status(world, other) for other in jobs[n + 1 :]] == ["waiting"] * (4 - n), "the mutex has an owner"
        world.complete(job_id) if n % 2 else world.fail(job_id)
        promote_next(world)
        promote_next(world)
    assert queued(world)
    promote_next(world)


def test_job_retains_its_mutex_during_a_retry_delay(world: World) -> None:
    first = queued(world, retry=RetryPolicy(max_attempts=2, initial_delay=Decimal(20), jitter=False))
    second = queued(world)
    world.do(transitions.start, first)
    world.fail(first)
    promote_next(world)
    assert (status(world, first), status(world, second)) == ("scheduled", "waiting")
    world.pass_time(20)
    transitions.apply_timers(world.ctx, NAMESPACE, first)
    assert (status(world, first), status(world, second)) == ("pending", "waiting")


def test_scheduled_job_requests_its_mutex_at_its_start_time(world: World) -> None:
    later = queued(world, scheduled_at=world.time + timedelta(seconds=30))
    now = queued(world)
    assert (status(world, later), status(world, now)) == ("scheduled", "pending")
    world.pass_time(30)
    transitions.apply_timers(world.ctx, NAMESPACE, later)
    assert status(world, later) == "waiting"
    world.do(transitions.cancel, now)
    promote_next(world)
    assert status(world, later) == "pending"


def test_cancelled_job_leaves_the_mutex_queue(world: World, table: DynamoTable) -> None:
    first, second, third = (queued(world) for _ in range(3))
    world.do(transitions.cancel, second)
    world.do(transitions.cancel, first)
    promote_next(world)
    assert status(world, third) == "pending"
    assert not table.query_page(keys.mutex_queue(NAMESPACE, "disk")).rows


def test_retried_job_goes_to_the_end_of_the_mutex_queue(world: World) -> None:
    first, second = queued(world), queued(world)
    world.do(transitions.start, first)
    world.fail(first)
    world.do(transitions.retry, first)
    assert status(world, first) == "waiting", "the mutex is free, but another job is queued before it"
    promote_next(world)
    assert (status(world, first), status(world, second)) == ("waiting", "pending")


def test_retried_job_acquires_its_former_mutex_again(world: World) -> None:
    """Check that a retried job acquires the lock again, although it is still its last owner.

    Without a new acquisition, another job could acquire the lock at the same moment.
    """
    only = queued(world)
    world.do(transitions.cancel, only)
    before = world.ctx.locks.find(NAMESPACE, "mutex", "disk")
    world.do(transitions.retry, only)
    after = world.ctx.locks.find(NAMESPACE, "mutex", "disk")
    assert before
    assert after
    assert after.counter == before.counter + 1


def test_rejecting_job_is_refused_while_the_mutex_has_an_owner_or_queue(world: World) -> None:
    first = queued(world)
    with pytest.raises(JobCreationFailed, match="Another operation is already running"):
        world.job(mutex_key="disk")
    second = queued(world)
    world.do(transitions.cancel, first)
    with pytest.raises(JobCreationFailed):
        world.job(mutex_key="disk")
    promote_next(world)
    world.do(transitions.cancel, second)
    assert status(world, world.job(mutex_key="disk")) == "pending"


def test_queued_job_acquires_the_mutex_after_a_rejecting_owner(world: World) -> None:
    blunt = world.job(mutex_key="disk")
    polite = queued(world)
    world.do(transitions.cancel, blunt)
    assert transitions.find_job(world.ctx, NAMESPACE, blunt).needs_matching
    promote_next(world)
    assert status(world, polite) == "pending"


def test_mutex_of_a_crashed_worker_passes_to_the_next_job(world: World) -> None:
    first, second = queued(world), queued(world)
    request = ClaimRequest(queue="default", worker="w", limit=1, lease_s=10, claim_id=None)
    (job,) = claim_jobs(world.ctx, NAMESPACE, request, actor=KEY, until=world.time)
    assert job.job_id == first
    world.pass_time(61)
    world.sweep()
    assert status(world, first) == "failed"
    world.pass_time(61)
    world.sweep()
    assert status(world, second) == "pending", "the sweeper found it without a stream record"


def test_empty_mutex_queue_is_removed_from_the_due_index(world: World) -> None:
    first, second = queued(world), queued(world)
    for job_id in (second, first):
        world.do(transitions.cancel, job_id)
    assert due_mutexes(world) == 1
    promote_next(world)
    assert due_mutexes(world) == 0


def due_mutexes(world: World) -> int:
    far = world.time + timedelta(days=1)
    return sum(
        due.kind == "mutex" for shard in range(keys.DUE_PARTITIONS) for due in world.ctx.due_index.overdue(shard, far)
    )


def test_job_queued_while_the_owner_ends_acquires_the_mutex(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the owner and promote the next job between a new job's read of the lock and the write of its queue entry.

    The new job must not stay in the mutex queue forever.
    """
    first = queued(world)
    read_lock = locks._lock_and_owner

    def read_then_end_owner(*args: Any) -> Any:
        lock_and_owner = read_lock(*args)
        monkeypatch.setattr(locks, "_lock_and_owner", read_lock)
        world.do(transitions.cancel, first)
        promote_next(world)
        return lock_and_owner

    monkeypatch.setattr(locks, "_lock_and_owner", read_then_end_owner)
    late = queued(world)
    job: Job = transitions.find_job(world.ctx, NAMESPACE, late)
    assert (job.status, job.needs_matching) == ("waiting", True), "the stream reports it to the matcher"
    promote_next(world)
    assert status(world, late) == "pending"


def test_history_shows_the_mutex_as_reason_of_the_release(world: World) -> None:
    first, second = queued(world), queued(world)
    world.do(transitions.start, first)
    world.do(transitions.fail, first, JobError(code="E", message="m"))
    promote_next(world)
    history = world.ctx.jobs.history(transitions.find_job(world.ctx, NAMESPACE, second))
    assert [(line.kind, line.status, line.reason) for line in history] == [
        ("created", "waiting", None),
        ("ready", "pending", "mutex"),
    ]
