"""`unique_key` and `mutex`: at most one job that has not ended has each, and whoever comes next takes it over."""

from __future__ import annotations

from dataclasses import dataclass

from vigil_core.domain.errors import JobCreationFailed
from vigil_core.domain.jobs import Job, NewJob
from vigil_core.services.context import Context
from vigil_core.store.holds import HoldClaim
from vigil_core.store.keys import HoldKind

OPERATION_RUNNING = "Another operation is already running"


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What a new job has to take, or the job that already stands for its unique key."""

    claims: tuple[HoldClaim, ...] = ()
    existing: Job | None = None


def claims_for_new(ctx: Context, namespace: str, new: NewJob) -> Claims:
    """See who has what the new job wants. The unique key comes first: an existing job answers in its place.

    Raises:
        JobCreationFailed: a job that has not ended has the mutex.
    """
    claims: list[HoldClaim] = []
    if new.unique_key is not None:
        claim, holder = _look(ctx, namespace, "unique", new.unique_key)
        if holder is not None:
            return Claims(existing=holder)
        claims.append(claim)
    if new.mutex_key is not None:
        claim, holder = _look(ctx, namespace, "mutex", new.mutex_key)
        if holder is not None:
            raise JobCreationFailed(OPERATION_RUNNING, job_id=holder.job_id)
        claims.append(claim)
    return Claims(claims=tuple(claims))


def claims_for_retry(ctx: Context, job: Job) -> list[HoldClaim]:
    """What an ended job has to take anew to live again. Raises JobCreationFailed when another live job has it."""
    claims: list[HoldClaim] = []
    wanted: list[tuple[HoldKind, str | None]] = [("unique", job.unique_key), ("mutex", job.mutex_key)]
    for kind, name in wanted:
        if name is None:
            continue
        claim, holder = _look(ctx, job.namespace, kind, name)
        if holder is not None:
            raise JobCreationFailed(OPERATION_RUNNING, job_id=holder.job_id)
        claims.append(claim)
    return claims


def _look(ctx: Context, namespace: str, kind: HoldKind, name: str) -> tuple[HoldClaim, Job | None]:
    """The claim to make, and the live job that stands in its way."""
    hold = ctx.holds.find(namespace, kind, name)
    if hold is None:
        return HoldClaim(kind=kind, name=name, seen_counter=0), None
    # The hold is read before its holder: whoever revives the holder raises the counter, and the claim fails.
    holder = ctx.jobs.find(namespace, hold.job_id)
    live = holder is not None and not holder.ended
    return HoldClaim(kind=kind, name=name, seen_counter=hold.counter), holder if live else None
