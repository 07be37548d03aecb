"""`unique_key` and `mutex`: at most one job that has not ended has each. Whoever comes next takes it over, or stands in
line for it."""

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
    """What this module uses of the outside world."""


OPERATION_RUNNING = "Another operation is already running"


@dataclass(frozen=True, kw_only=True)
class NewJobLocks:
    """What a new job has to take, or the job that already stands for its unique key."""

    acquisitions: tuple[LockAcquisition, ...] = ()
    existing_job: Job | None = None


def locks_for_new_job(ctx: LocksContext, namespace: str, new: NewJob) -> NewJobLocks:
    """See who has what the new job wants at its creation. The unique key comes first: an existing job answers in its
    place.

    Raises:
        JobCreationFailed: a job that has not ended has the mutex, or stands in line for it.
    """
    acquisitions: list[LockAcquisition] = []
    if new.unique_key is not None:
        acquisition, holder = _check_lock(ctx, namespace, "unique", new.unique_key)
        if holder is not None:
            return NewJobLocks(existing_job=holder)
        acquisitions.append(acquisition)
    if new.mutex_key is not None and not new.queue_on_conflict:
        acquisitions.append(_acquire_or_raise(ctx, namespace, "mutex", new.mutex_key))
    return NewJobLocks(acquisitions=tuple(acquisitions))


def locks_for_retry(ctx: LocksContext, job: Job) -> list[LockAcquisition]:
    """What an ended job has to take anew to live again. Raises JobCreationFailed when another live job has it."""
    acquisitions: list[LockAcquisition] = []
    if job.unique_key is not None:
        acquisitions.append(_acquire_or_raise(ctx, job.namespace, "unique", job.unique_key))
    if job.mutex.key is not None and not job.mutex.queue_on_conflict:
        acquisitions.append(_acquire_or_raise(ctx, job.namespace, "mutex", job.mutex.key))
    return acquisitions


def locks_for_release(ctx: LocksContext, job: Job) -> list[LockAcquisition]:
    """What a job of a run has to take to start, where it would not wait for it. Raises JobCreationFailed when another
    live job has it."""
    if job.mutex.key is None or job.mutex.queue_on_conflict:
        return []
    _, holder = _lock_and_holder(ctx, job.namespace, "mutex", job.mutex.key)
    if holder is not None and holder.job_id == job.job_id:
        return []
    return [_acquire_or_raise(ctx, job.namespace, "mutex", job.mutex.key)]


def acquire_or_enqueue(ctx: LocksContext, before: Job | None, after: Job) -> tuple[Job, tuple[LockAcquisition, ...]]:
    """A version about to be stored, together with what it takes: a job that becomes ready takes the mutex that it would
    wait for, or a place in line."""
    if not (after.mutex.acquired_when_ready and transitions.becomes_ready(before, after)):
        return after, ()
    name = str(after.mutex.key)
    lock, holder = _lock_and_holder(ctx, after.namespace, "mutex", name)
    if lock is None:
        return after, (LockAcquisition(kind="mutex", name=name, seen_counter=0),)
    if lock.job_id == after.job_id and before is not None and not before.ended:
        return after, ()  # Kept through a retry's delay.
    if holder is None and not lock.has_mutex_queue:
        return after, (LockAcquisition(kind="mutex", name=name, seen_counter=lock.counter),)
    return transitions.enqueue_for_mutex(after, ctx.locks.next_position(after.namespace, name, now=ctx.now())), ()


def promote_next_waiter(ctx: LocksContext, namespace: str, name: str, *, actor: str) -> None:
    """Let the first in line have a mutex whose holder has ended. Can be repeated, by any number at once.

    Whoever lines up and whoever ends is seen in the stream after it was written, and this is done for both: so either
    the line is seen, or the end of the holder.
    """
    retry_on_conflict(lambda: _promote_once(ctx, namespace, name, actor), sleep=ctx.sleep, subject=f"mutex {name!r}")


def _promote_once(ctx: LocksContext, namespace: str, name: str, actor: str) -> None:
    """Promote the first live entry of the mutex queue, and remove stale entries before it.

    Raises:
        StoreConflict: Another process changed the job or the lock.
    """
    while True:
        lock, holder = _lock_and_holder(ctx, namespace, "mutex", name)
        if lock is None:
            return
        first_entry = ctx.locks.first_queued(namespace, name)
        if first_entry is None:
            if lock.has_mutex_queue:
                ctx.locks.mark_queue_empty(namespace, lock)
            return
        if holder is not None:
            ctx.locks.extend_check(namespace, lock, now=ctx.now())
            return
        job = ctx.jobs.find(namespace, first_entry.job_id)
        if job is None or job.mutex.position != first_entry.position:
            ctx.locks.remove_queue_entry(namespace, name, first_entry)
            continue
        promoted = transitions.acquire_mutex(job, now=ctx.now(), actor=actor)
        ctx.jobs.save(job, promoted, [mutex_acquisition(namespace, lock, now=ctx.now())])
        log_transition("let_in", [promoted])
        return


@dataclass(frozen=True, kw_only=True)
class Stall:
    """Why nobody is let in to a mutex, and since when at the latest; None when that cannot be told."""

    reason: str
    since: datetime | None


def find_stall(ctx: LocksContext, namespace: str, name: str) -> Stall | None:
    """Whether whoever is first in line for a mutex should have it, or should not be there."""
    lock, holder = _lock_and_holder(ctx, namespace, "mutex", name)
    first_entry = None if lock is None else ctx.locks.first_queued(namespace, name)
    if lock is None or first_entry is None:
        return None
    job = ctx.jobs.find(namespace, first_entry.job_id)
    if job is None or job.mutex.position != first_entry.position:
        since = None if job is None else job.updated_at
        return Stall(reason=f"{first_entry.job_id} no longer wants its place in line", since=since)
    if holder is not None:
        return None
    last_holder = ctx.jobs.find(namespace, lock.job_id)
    since = max(job.updated_at, last_holder.updated_at) if last_holder else job.updated_at
    return Stall(reason=f"{lock.job_id}, which had it, has ended, and {job.job_id} still waits", since=since)


def repair_wait_queue(ctx: LocksContext, namespace: str, name: str, *, actor: str) -> None:
    """Forget the first in line who no longer want their place, then hand over. Can be repeated."""
    while (first_entry := ctx.locks.first_queued(namespace, name)) is not None:
        job = ctx.jobs.find(namespace, first_entry.job_id)
        if job is not None and job.mutex.position == first_entry.position:
            break
        ctx.locks.remove_queue_entry(namespace, name, first_entry)
    promote_next_waiter(ctx, namespace, name, actor=actor)


def _acquire_or_raise(ctx: LocksContext, namespace: str, kind: LockKind, name: str) -> LockAcquisition:
    acquisition, holder = _check_lock(ctx, namespace, kind, name)
    if holder is not None:
        raise JobCreationFailed(OPERATION_RUNNING, job_id=holder.job_id)
    return acquisition


def _check_lock(ctx: LocksContext, namespace: str, kind: LockKind, name: str) -> tuple[LockAcquisition, Job | None]:
    """The claim to make, and the live job that stands in its way: the holder, or else the first in line."""
    lock, holder = _lock_and_holder(ctx, namespace, kind, name)
    if (
        lock is not None
        and holder is None
        and lock.has_mutex_queue
        and (first_entry := ctx.locks.first_queued(namespace, name))
    ):
        first_job = ctx.jobs.find(namespace, first_entry.job_id)
        holder = first_job if first_job is not None and first_job.mutex.position == first_entry.position else None
    return LockAcquisition(kind=kind, name=name, seen_counter=0 if lock is None else lock.counter), holder


def _lock_and_holder(ctx: LocksContext, namespace: str, kind: LockKind, name: str) -> tuple[Lock | None, Job | None]:
    """A hold, and the job that has it: none when that has ended, even if it stands in line again."""
    lock = ctx.locks.find(namespace, kind, name)
    if lock is None:
        return None, None
    # The hold is read before its holder: whoever revives the holder raises the counter, and the claim fails.
    holder = ctx.jobs.find(namespace, lock.job_id)
    is_holder = holder is not None and not holder.ended and holder.mutex.position is None
    return lock, holder if is_holder else None
