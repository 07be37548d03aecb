"""Locks: unique keys and mutexes, and the promotion of queued jobs.

At most one open job has a unique key or a mutex. A lock row names its owner, the job that acquired it last. No process
releases a lock: it is free when its owner has ended, and the next job acquires it.

Every acquisition is part of the transaction that saves the job, and it is conditional on the counter of the lock that
was read. Of two jobs that acquire the same lock, only one can succeed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from vigil_core.domain.errors import JobCreationFailed
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job, NewJob
from vigil_core.services.context import UsesClock, UsesJobs, UsesLocks
from vigil_core.services.optimistic import retry_on_conflict
from vigil_core.services.verdict_log import log_transition
from vigil_core.store.keys import LockKind
from vigil_core.store.locks import Lock, LockAcquisition, mutex_acquisition


class LocksContext(UsesJobs, UsesLocks, UsesClock, Protocol):
    """The locks, the jobs that own them or are queued for them, and the time."""


OPERATION_RUNNING = "Another operation is already running"


@dataclass(frozen=True, kw_only=True)
class NewJobLocks:
    """The locks that a new job must acquire, or the open job that has its unique key."""

    acquisitions: tuple[LockAcquisition, ...] = ()
    existing_job: Job | None = None


def locks_for_new_job(ctx: LocksContext, namespace: str, new: NewJob) -> NewJobLocks:
    """Return the locks that a new job acquires when it is created.

    The unique key is checked first: if an open job has it, the creation returns that job.

    Raises:
        JobCreationFailed: An open job owns the mutex or is in its queue.
    """
    acquisitions: list[LockAcquisition] = []
    if new.unique_key is not None:
        acquisition, conflicting_job = _check_lock(ctx, namespace, "unique", new.unique_key)
        if conflicting_job is not None:
            return NewJobLocks(existing_job=conflicting_job)
        acquisitions.append(acquisition)
    if new.mutex_key is not None and not new.queue_on_conflict:
        acquisitions.append(_acquire_or_raise(ctx, namespace, "mutex", new.mutex_key))
    return NewJobLocks(acquisitions=tuple(acquisitions))


def locks_for_retry(ctx: LocksContext, job: Job) -> list[LockAcquisition]:
    """Return the locks that an ended job must acquire before a retry by a client.

    Raises:
        JobCreationFailed: Another open job has one of the locks.
    """
    acquisitions: list[LockAcquisition] = []
    if job.unique_key is not None:
        acquisitions.append(_acquire_or_raise(ctx, job.namespace, "unique", job.unique_key))
    if job.mutex.key is not None and not job.mutex.queue_on_conflict:
        acquisitions.append(_acquire_or_raise(ctx, job.namespace, "mutex", job.mutex.key))
    return acquisitions


def locks_for_release(ctx: LocksContext, job: Job) -> list[LockAcquisition]:
    """Return the mutex that a job of a run acquires when the run releases the job.

    The list is empty if the job queues for its mutex instead, or owns it already.

    Raises:
        JobCreationFailed: Another open job has the mutex.
    """
    if job.mutex.key is None or job.mutex.queue_on_conflict:
        return []
    _, owner = _lock_and_owner(ctx, job.namespace, "mutex", job.mutex.key)
    if owner is not None and owner.job_id == job.job_id:
        return []
    return [_acquire_or_raise(ctx, job.namespace, "mutex", job.mutex.key)]


def acquire_or_enqueue(ctx: LocksContext, before: Job | None, after: Job) -> tuple[Job, tuple[LockAcquisition, ...]]:
    """Let a job that becomes ready acquire its mutex, or enter the mutex queue.

    1. Read the lock, then its owner.
    2. If the job has the mutex already (it retries without having ended in between), change nothing.
    3. If the mutex is free and its queue is empty, acquire it with the write of the job.
    4. Otherwise allocate the next mutex position. The write of the job then includes its queue entry.

    If the process crashes in step 4 before the job is saved, the position stays unused and the lock stays marked as
    contested, as if a job were queued. The sweeper checks contested locks every minute, finds the queue empty, and
    records that.

    Args:
        ctx: The collaborators.
        before: The stored version of the job; None for a new job.
        after: The next version, which is not saved yet.

    Returns:
        The version to save, and the lock acquisitions to write with it.
    """
    if not (after.mutex.acquired_when_ready and transitions.becomes_ready(before, after)):
        return after, ()
    name = str(after.mutex.key)
    lock, owner = _lock_and_owner(ctx, after.namespace, "mutex", name)
    if lock is None:
        return after, (LockAcquisition(kind="mutex", name=name, seen_counter=0),)
    if lock.job_id == after.job_id and before is not None and not before.ended:
        return after, ()
    if owner is None and not lock.has_mutex_queue:
        return after, (LockAcquisition(kind="mutex", name=name, seen_counter=lock.counter),)
    return transitions.enqueue_for_mutex(after, ctx.locks.next_position(after.namespace, name, now=ctx.now())), ()


def promote_next_waiter(ctx: LocksContext, namespace: str, name: str, *, actor: str) -> None:
    """Let the first queued job acquire a mutex whose owner has ended.

    The matcher calls this after a job enters the mutex queue, and after a job with a mutex ends. The sweeper calls it
    every minute for a contested lock. Any number of calls may run at the same time.

    No queued job is missed:

    1. Write order: a queue entry is written before the stream delivers the queued job, and the end of an owner is
       written before the stream delivers the ended job.
    2. Read order: this function runs after each of the two deliveries, and reads both the owner and the queue.
    3. Conclusion: the call that runs after the later of the two writes sees both of them.

    No mutex has two owners:

    1. Write order: every acquisition increments the counter of the lock, and so does a retry of the ended owner.
    2. Read order: the lock with its counter is read before the owner and the queue.
    3. Conclusion: if the mutex is acquired after the read of the lock, the write of this function fails, because its
       condition names the older counter. The function then starts again.

    If the process crashes before the write, the stream delivers the record again, and the sweeper checks the lock.

    Raises:
        StoreConflict: Too many concurrent changes of the mutex.
    """
    retry_on_conflict(lambda: _promote_once(ctx, namespace, name, actor), sleep=ctx.sleep, subject=f"mutex {name!r}")


def _promote_once(ctx: LocksContext, namespace: str, name: str, actor: str) -> None:
    """Promote the first queued job if the mutex is free.

    1. Read the lock, then its owner. Without a lock there is no queue.
    2. Read the first queue entry. If there is none, the lock is not contested any more.
    3. If the owner is open, postpone the next check of the sweeper.
    4. Read the queued job. If it has left this position, remove the entry and start again.
    5. Save the job as `pending`, together with the acquisition of the mutex.

    Raises:
        StoreConflict: A concurrent change of the job or the lock won.
    """
    while True:
        lock, owner = _lock_and_owner(ctx, namespace, "mutex", name)
        if lock is None:
            return
        first_entry = ctx.locks.first_queued(namespace, name)
        if first_entry is None:
            if lock.has_mutex_queue:
                ctx.locks.mark_queue_empty(namespace, lock)
            return
        if owner is not None:
            ctx.locks.extend_check(namespace, lock, now=ctx.now())
            return
        job = ctx.jobs.find(namespace, first_entry.job_id)
        if job is None or job.mutex.position != first_entry.position:
            ctx.locks.remove_queue_entry(namespace, name, first_entry)
            continue
        promoted = transitions.acquire_mutex(job, now=ctx.now(), actor=actor)
        ctx.jobs.save(job, promoted, [mutex_acquisition(namespace, lock, now=ctx.now())])
        log_transition("mutex_acquired", [promoted])
        return


@dataclass(frozen=True, kw_only=True)
class Stall:
    """Why a mutex queue does not progress.

    The stall has existed at least since `since`, which is None if that time is unknown.
    """

    reason: str
    since: datetime | None


def find_stall(ctx: LocksContext, namespace: str, name: str) -> Stall | None:
    """Find the stall of a mutex queue: a queued job with a free mutex, or an entry without its job."""
    lock, owner = _lock_and_owner(ctx, namespace, "mutex", name)
    first_entry = None if lock is None else ctx.locks.first_queued(namespace, name)
    if lock is None or first_entry is None:
        return None
    job = ctx.jobs.find(namespace, first_entry.job_id)
    if job is None or job.mutex.position != first_entry.position:
        since = None if job is None else job.updated_at
        return Stall(reason=f"{first_entry.job_id} is no longer queued at this position", since=since)
    if owner is not None:
        return None
    last_owner = ctx.jobs.find(namespace, lock.job_id)
    since = max(job.updated_at, last_owner.updated_at) if last_owner else job.updated_at
    return Stall(reason=f"the owner {lock.job_id} has ended, but {job.job_id} is still queued", since=since)


def repair_wait_queue(ctx: LocksContext, namespace: str, name: str, *, actor: str) -> None:
    """Remove entries whose jobs have left the mutex queue, then promote the first queued job. Idempotent."""
    while (first_entry := ctx.locks.first_queued(namespace, name)) is not None:
        job = ctx.jobs.find(namespace, first_entry.job_id)
        if job is not None and job.mutex.position == first_entry.position:
            break
        ctx.locks.remove_queue_entry(namespace, name, first_entry)
    promote_next_waiter(ctx, namespace, name, actor=actor)


def _acquire_or_raise(ctx: LocksContext, namespace: str, kind: LockKind, name: str) -> LockAcquisition:
    acquisition, conflicting_job = _check_lock(ctx, namespace, kind, name)
    if conflicting_job is not None:
        raise JobCreationFailed(OPERATION_RUNNING, job_id=conflicting_job.job_id)
    return acquisition


def _check_lock(ctx: LocksContext, namespace: str, kind: LockKind, name: str) -> tuple[LockAcquisition, Job | None]:
    """Return the acquisition of a lock, and the open job that prevents it: the owner, or the first queued job."""
    lock, conflicting_job = _lock_and_owner(ctx, namespace, kind, name)
    if (
        lock is not None
        and conflicting_job is None
        and lock.has_mutex_queue
        and (first_entry := ctx.locks.first_queued(namespace, name))
    ):
        first_job = ctx.jobs.find(namespace, first_entry.job_id)
        is_queued = first_job is not None and first_job.mutex.position == first_entry.position
        conflicting_job = first_job if is_queued else None
    return LockAcquisition(kind=kind, name=name, seen_counter=0 if lock is None else lock.counter), conflicting_job


def _lock_and_owner(ctx: LocksContext, namespace: str, kind: LockKind, name: str) -> tuple[Lock | None, Job | None]:
    """Read a lock, then its owner.

    The owner is None if it has ended, even if that job is queued for the same mutex again. A retry of an ended owner
    increments the counter of the lock, so an acquisition with the older counter fails.
    """
    lock = ctx.locks.find(namespace, kind, name)
    if lock is None:
        return None, None
    owner = ctx.jobs.find(namespace, lock.job_id)
    is_owner = owner is not None and not owner.ended and owner.mutex.position is None
    return lock, owner if is_owner else None
