"""Hand jobs of a queue to a worker: by priority, then by age, each under a lease and to one worker only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from typing import Protocol

from vigil_core.domain.errors import JobNotFound, StoreConflict
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.lease import Lease
from vigil_core.services.context import ChangesRuns, UsesJobQueues
from vigil_core.services.jobs.transitions import apply_timers
from vigil_core.services.long_poll import long_poll
from vigil_core.services.workflows.commands import may_start
from vigil_core.store.jobs.job_rows import PRIORITY_RANKS
from vigil_core.store.queues import ReadyJob


class ClaimJobsContext(ChangesRuns, UsesJobQueues, Protocol):
    """What this module uses of the outside world."""


CANDIDATE_WINDOW = 20
"""Ready jobs that a claim looks at: enough for some workers at once to find each its own, and with usual names within
4 KB, which is what half a read unit pays for."""
MAX_EXPIRED = 10
"""Leases that a claim takes back which finds too few jobs ready."""
MAX_PAUSE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class ClaimRequest:
    """What a worker asks for. With a `claim_id`, asking again grants the same jobs again."""

    queue: str
    worker: str
    limit: int
    lease_s: int
    claim_id: str | None


def claim_jobs(
    ctx: ClaimJobsContext, namespace: str, request: ClaimRequest, *, actor: str, until: datetime
) -> list[Job]:
    """Jobs that now run under leases of this worker; none when there was none until the hold was over."""
    granted = long_poll(
        ctx,
        lambda: _try_claim(ctx, namespace, request, actor),
        is_done=bool,
        until=until,
        latest=_try_claim(ctx, namespace, request, actor),
        max_pause_s=MAX_PAUSE_S,
    )
    ctx.job_queues.record_worker_activity(
        namespace, request.queue, request.worker, now=ctx.now(), granted=bool(granted)
    )
    return granted


def _try_claim(ctx: ClaimJobsContext, namespace: str, request: ClaimRequest, actor: str) -> list[Job]:
    paused = ctx.job_queues.is_paused(namespace, request.queue)
    granted: list[Job] = []
    for candidates in _candidate_batches(ctx, namespace, request, actor, paused=paused):
        remaining = list(candidates)
        while remaining and len(granted) < request.limit:
            try:
                job = _grant(ctx, namespace, remaining.pop(0).job_id, request, actor, paused=paused)
            except StoreConflict:
                # Others want the same jobs. In any order each soon finds one that nobody else is trying to get.
                remaining.sort(key=lambda candidate: (candidate.rank, ctx.jitter()))
                continue
            if job is not None:
                granted.append(job)
        if granted:
            break
    return granted


def _candidate_batches(
    ctx: ClaimJobsContext, namespace: str, request: ClaimRequest, actor: str, *, paused: bool
) -> Iterator[Sequence[ReadyJob]]:
    """What may be granted. A claim with an id keeps its candidates before it grants any: whoever repeats it tries the
    same ones, and others only if nobody got any of those."""
    if request.claim_id is None:
        if not paused:
            yield _find_candidates(ctx, namespace, request, actor)
        return
    tried: set[str] = set()
    for batch_number in count():
        claim_id = f"{request.claim_id}#{batch_number}"
        saved_ids = ctx.job_queues.candidates(namespace, request.queue, claim_id)
        if saved_ids is None:
            candidates = [] if paused else _find_candidates(ctx, namespace, request, actor)
            # One that is ready and yet was not granted may be its run's to give: it is not tried for ever.
            untried = [candidate for candidate in candidates if candidate.job_id not in tried]
            if not untried:
                return
            ids = [candidate.job_id for candidate in _spread(ctx, untried, request.limit)]
            saved_ids = ctx.job_queues.save_candidates(namespace, request.queue, claim_id, ids, now=ctx.now())
        tried.update(saved_ids)
        yield [ReadyJob(job_id=job_id, rank=0) for job_id in saved_ids]


def _spread(ctx: ClaimJobsContext, candidates: Sequence[ReadyJob], limit: int) -> list[ReadyJob]:
    """The first ones, and as many of the others by lot: of workers that ask at the same moment all but one would come
    too late for the first, and each soon for the next."""
    shuffled = sorted(candidates[limit:], key=lambda candidate: (candidate.rank, ctx.jitter()))
    return [*candidates[:limit], *shuffled[:limit]]


def _find_candidates(ctx: ClaimJobsContext, namespace: str, request: ClaimRequest, actor: str) -> list[ReadyJob]:
    """Those that are ready, in their order; where they do not suffice, also those whose leases have run out."""
    ready = ctx.job_queues.ready(namespace, request.queue, CANDIDATE_WINDOW)
    if len(ready) >= request.limit:
        return ready
    expired_ids = ctx.job_queues.overdue(namespace, request.queue, "running", ctx.now(), MAX_EXPIRED)
    for job_id in expired_ids:
        with suppress(JobNotFound, StoreConflict):
            apply_timers(ctx, namespace, job_id, actor=actor)
    return [*ready, *(ReadyJob(job_id=job_id, rank=len(PRIORITY_RANKS)) for job_id in expired_ids)]


def _grant(
    ctx: ClaimJobsContext, namespace: str, job_id: str, request: ClaimRequest, actor: str, *, paused: bool
) -> Job | None:
    """The job under a lease of this claim; None when it is not to be had, whatever the index says.

    Raises:
        StoreConflict: somebody else was changing it at this moment.
    """
    job = ctx.jobs.find(namespace, job_id)
    if job is None or job.deleted:
        return None
    if job.status == "running" and job.lease and request.claim_id and job.lease.claim_id == request.claim_id:
        return job
    if paused or job.status != "pending" or job.executor != "worker" or job.queue != request.queue:
        return None
    if not may_start(ctx, job):
        return None
    now = ctx.now()
    lease = Lease(
        token=ctx.new_id(),
        worker=request.worker,
        duration_s=request.lease_s,
        expires_at=now + timedelta(seconds=request.lease_s),
        claim_id=request.claim_id,
    )
    running = transitions.claim(job, lease, now=now, actor=actor)
    try:
        ctx.jobs.save(job, running)
    except StoreConflict:
        latest = ctx.jobs.find(namespace, job_id) if request.claim_id else None
        if latest and latest.lease and latest.lease.claim_id == request.claim_id:
            return latest  # This very claim, repeated, was first.
        raise
    return running
