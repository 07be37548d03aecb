"""`unique_key` and `mutex`: at most one job that has not ended has each. Whoever comes next takes it over, or stands in
line for it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from vigil_core.domain.errors import JobCreationFailed, StoreConflict
from vigil_core.domain.jobs import job as jobs
from vigil_core.domain.jobs.job import Job, NewJob
from vigil_core.services.context import Context
from vigil_core.services.verdict_log import log_fate
from vigil_core.store.keys import HoldKind
from vigil_core.store.locks import Hold, HoldClaim, contested_claim

OPERATION_RUNNING = "Another operation is already running"
ATTEMPTS = 12


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What a new job has to take, or the job that already stands for its unique key."""

    claims: tuple[HoldClaim, ...] = ()
    existing: Job | None = None


def claims_for_new(ctx: Context, namespace: str, new: NewJob) -> Claims:
    """See who has what the new job wants at its creation. The unique key comes first: an existing job answers in its
    place.

    Raises:
        JobCreationFailed: a job that has not ended has the mutex, or stands in line for it.
    """
    claims: list[HoldClaim] = []
    if new.unique_key is not None:
        claim, holder = _look(ctx, namespace, "unique", new.unique_key)
        if holder is not None:
            return Claims(existing=holder)
        claims.append(claim)
    if new.mutex_key is not None and not new.mutex_queues:
        claims.append(_claim_or_refuse(ctx, namespace, "mutex", new.mutex_key))
    return Claims(claims=tuple(claims))


def claims_for_retry(ctx: Context, job: Job) -> list[HoldClaim]:
    """What an ended job has to take anew to live again. Raises JobCreationFailed when another live job has it."""
    claims: list[HoldClaim] = []
    if job.unique_key is not None:
        claims.append(_claim_or_refuse(ctx, job.namespace, "unique", job.unique_key))
    if job.mutex_key is not None and not job.mutex_queues:
        claims.append(_claim_or_refuse(ctx, job.namespace, "mutex", job.mutex_key))
    return claims


def claims_at_release(ctx: Context, job: Job) -> list[HoldClaim]:
    """What a job of a run has to take to start, where it would not wait for it. Raises JobCreationFailed when another
    live job has it."""
    if job.mutex_key is None or job.mutex_queues:
        return []
    _, holder = _holder(ctx, job.namespace, "mutex", job.mutex_key)
    if holder is not None and holder.job_id == job.job_id:
        return []
    return [_claim_or_refuse(ctx, job.namespace, "mutex", job.mutex_key)]


def admit(ctx: Context, before: Job | None, after: Job) -> tuple[Job, tuple[HoldClaim, ...]]:
    """A version about to be stored, together with what it takes: a job that becomes ready takes the mutex that it would
    wait for, or a place in line."""
    if not (after.takes_mutex_when_ready and jobs.becomes_ready(before, after)):
        return after, ()
    name = str(after.mutex_key)
    hold, holder = _holder(ctx, after.namespace, "mutex", name)
    if hold is None:
        return after, (HoldClaim(kind="mutex", name=name, seen_counter=0),)
    if hold.job_id == after.job_id and before is not None and not before.ended:
        return after, ()  # Kept through a retry's delay.
    if holder is None and not hold.contested:
        return after, (HoldClaim(kind="mutex", name=name, seen_counter=hold.counter),)
    return jobs.line_up(after, ctx.holds.next_place(after.namespace, name, now=ctx.now())), ()


def hand_over(ctx: Context, namespace: str, name: str, *, by: str) -> None:
    """Let the first in line have a mutex whose holder has ended. Can be repeated, by any number at once.

    Whoever lines up and whoever ends is seen in the stream after it was written, and this is done for both: so either
    the line is seen, or the end of the holder.
    """
    conflicts = 0
    while conflicts < ATTEMPTS:
        hold, holder = _holder(ctx, namespace, "mutex", name)
        if hold is None:
            return
        first = ctx.holds.first_in_line(namespace, name)
        if first is None:
            if hold.contested:
                ctx.holds.calm(namespace, hold)
            return
        if holder is not None:
            ctx.holds.look_again(namespace, hold, now=ctx.now())
            return
        job = ctx.jobs.find(namespace, first.job_id)
        if job is None or job.place_in_line != first.number:
            ctx.holds.leave_line(namespace, name, first)
            continue
        try:
            let_in = jobs.let_in(job, now=ctx.now(), by=by)
            ctx.jobs.save(job, let_in, [contested_claim(namespace, hold, now=ctx.now())])
        except StoreConflict:
            ctx.sleep(0.01 * conflicts)
            conflicts += 1
            continue
        log_fate("let_in", [let_in])
        return
    raise StoreConflict(f"Mutex {name!r} is wanted by too many at once: try again")


@dataclass(frozen=True, kw_only=True)
class Standstill:
    """Why nobody is let in to a mutex, and since when at the latest; None when that cannot be told."""

    why: str
    since: datetime | None


def standstill(ctx: Context, namespace: str, name: str) -> Standstill | None:
    """Whether whoever is first in line for a mutex should have it, or should not be there."""
    hold, holder = _holder(ctx, namespace, "mutex", name)
    first = None if hold is None else ctx.holds.first_in_line(namespace, name)
    if hold is None or first is None:
        return None
    job = ctx.jobs.find(namespace, first.job_id)
    if job is None or job.place_in_line != first.number:
        since = None if job is None else job.updated_at
        return Standstill(why=f"{first.job_id} no longer wants its place in line", since=since)
    if holder is not None:
        return None
    gone = ctx.jobs.find(namespace, hold.job_id)
    since = max(job.updated_at, gone.updated_at) if gone else job.updated_at
    return Standstill(why=f"{hold.job_id}, which had it, has ended, and {job.job_id} still waits", since=since)


def clear_line(ctx: Context, namespace: str, name: str, *, by: str) -> None:
    """Forget the first in line who no longer want their place, then hand over. Can be repeated."""
    while (first := ctx.holds.first_in_line(namespace, name)) is not None:
        job = ctx.jobs.find(namespace, first.job_id)
        if job is not None and job.place_in_line == first.number:
            break
        ctx.holds.leave_line(namespace, name, first)
    hand_over(ctx, namespace, name, by=by)


def _claim_or_refuse(ctx: Context, namespace: str, kind: HoldKind, name: str) -> HoldClaim:
    claim, holder = _look(ctx, namespace, kind, name)
    if holder is not None:
        raise JobCreationFailed(OPERATION_RUNNING, job_id=holder.job_id)
    return claim


def _look(ctx: Context, namespace: str, kind: HoldKind, name: str) -> tuple[HoldClaim, Job | None]:
    """The claim to make, and the live job that stands in its way: the holder, or else the first in line."""
    hold, holder = _holder(ctx, namespace, kind, name)
    if hold is not None and holder is None and hold.contested and (first := ctx.holds.first_in_line(namespace, name)):
        waiting = ctx.jobs.find(namespace, first.job_id)
        holder = waiting if waiting is not None and waiting.place_in_line == first.number else None
    return HoldClaim(kind=kind, name=name, seen_counter=0 if hold is None else hold.counter), holder


def _holder(ctx: Context, namespace: str, kind: HoldKind, name: str) -> tuple[Hold | None, Job | None]:
    """A hold, and the job that has it: none when that has ended, even if it stands in line again."""
    hold = ctx.holds.find(namespace, kind, name)
    if hold is None:
        return None, None
    # The hold is read before its holder: whoever revives the holder raises the counter, and the claim fails.
    holder = ctx.jobs.find(namespace, hold.job_id)
    has_it = holder is not None and not holder.ended and holder.place_in_line is None
    return hold, holder if has_it else None
