"""Claims: grant jobs of a queue to a worker, by priority, then by age.

One claim has these steps:

1. Find candidates in index `due`: the first ready jobs and, if these do not suffice, jobs with an expired lease.
2. With a claim id, save the candidates before any is granted.
3. Grant candidates one by one until the limit is reached. A grant is a conditional write that starts the job under a
   lease of this worker.
4. If nothing was granted, repeat the steps until the long poll ends.

The index is only a hint: step 3 reads each job itself, consistently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import count
from typing import Protocol

from vigil_core.domain.errors import StoreConflict
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.lease import Lease
from vigil_core.services.context import ChangesRuns, UsesJobQueues, UsesLimits
from vigil_core.services.long_poll import SlotRequest, long_poll
from vigil_core.services.queues.leases import reclaim_expired_leases
from vigil_core.services.workflows.commands import may_start
from vigil_core.store.jobs.job_rows import PRIORITY_RANKS
from vigil_core.store.queues import ReadyJob


class ClaimJobsContext(ChangesRuns, UsesJobQueues, UsesLimits, Protocol):
    """The collaborators of a claim."""


CANDIDATE_WINDOW = 20
"""The number of ready jobs that a claim reads. It gives several concurrent workers a job each. With names of common
length, 20 index entries fit into 4 KB, which cost half a read unit."""
MAX_EXPIRED = 10
"""The number of expired leases that a claim reclaims if too few jobs are ready."""
MAX_PAUSE_S = 1.0
"""The longest pause between two tries of one long poll."""


@dataclass(frozen=True, kw_only=True)
class ClaimRequest:
    """A worker's request for jobs.

    A repeated request with the same `claim_id` returns the same jobs.
    """

    queue: str
    worker: str
    limit: int
    lease_s: int
    claim_id: str | None


def claim_jobs(
    ctx: ClaimJobsContext,
    namespace: str,
    request: ClaimRequest,
    *,
    actor: str,
    until: datetime,
    slot: SlotRequest | None = None,
) -> list[Job]:
    """Grant jobs to a worker, and wait for some until a time if none is available.

    A `claim_id` belongs to its API key: another key with the same `claim_id` makes another claim.

    Returns:
        The jobs, now running under leases of this worker; an empty list if none became available in time.
    """
    if request.claim_id is not None:
        request = replace(request, claim_id=f"{actor}#{request.claim_id}")
    granted = long_poll(
        ctx,
        lambda: _try_claim(ctx, namespace, request, actor),
        is_done=bool,
        until=until,
        latest=_try_claim(ctx, namespace, request, actor),
        slot=slot,
        max_pause_s=MAX_PAUSE_S,
    )
    ctx.job_queues.record_worker_activity(
        namespace, request.queue, request.worker, now=ctx.now(), granted=bool(granted)
    )
    return granted


def _try_claim(ctx: ClaimJobsContext, namespace: str, request: ClaimRequest, actor: str) -> list[Job]:
    """Grant jobs from the first batch of candidates that has any to grant.

    The crash argument, for a claim with a claim id:

    1. The candidates are stored before the first grant, so every granted job is among them.
    2. If the process crashes after some grants, or its answer is lost, the worker repeats the claim.
    3. The repeated claim reads the stored candidates and finds its own leases by the claim id, so it returns the
       granted jobs again.
    4. If the worker does not repeat the claim, the leases expire and the sweeper returns the jobs to the queue.
    """
    paused = ctx.job_queues.is_paused(namespace, request.queue)
    granted: list[Job] = []
    for candidates in _candidate_batches(ctx, namespace, request, actor, paused=paused):
        granted = _grant_batch(ctx, namespace, candidates, request, actor, paused=paused)
        if granted:
            break
    return granted


def _candidate_batches(
    ctx: ClaimJobsContext, namespace: str, request: ClaimRequest, actor: str, *, paused: bool
) -> Iterator[Sequence[ReadyJob]]:
    """Yield batches of candidates: a single one without a claim id, otherwise stored ones.

    With a claim id, batch n is stored under the claim id and n before it is yielded. The first writer decides: of two
    deliveries of one claim, both use the same batch. Batch n + 1 exists only if batch n granted nothing.
    """
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
            # A run may keep a ready job from starting. Without this filter the claim would try that job forever.
            untried = [candidate for candidate in candidates if candidate.job_id not in tried]
            if not untried:
                return
            ids = [candidate.job_id for candidate in _spread(ctx, untried, request.limit)]
            saved_ids = ctx.job_queues.save_candidates(namespace, request.queue, claim_id, ids, now=ctx.now())
        tried.update(saved_ids)
        yield [ReadyJob(job_id=job_id, rank=0) for job_id in saved_ids]


def _find_candidates(ctx: ClaimJobsContext, namespace: str, request: ClaimRequest, actor: str) -> list[ReadyJob]:
    """Read the first ready jobs; if they do not suffice, reclaim expired leases and add their jobs at the end."""
    ready = ctx.job_queues.ready(namespace, request.queue, CANDIDATE_WINDOW)
    if len(ready) >= request.limit:
        return ready
    expired_ids = reclaim_expired_leases(ctx, namespace, request.queue, limit=MAX_EXPIRED, actor=actor)
    return [*ready, *(ReadyJob(job_id=job_id, rank=len(PRIORITY_RANKS)) for job_id in expired_ids)]


def _spread(ctx: ClaimJobsContext, candidates: Sequence[ReadyJob], limit: int) -> list[ReadyJob]:
    """Select the first candidates, and as many random ones of the rest.

    Of workers that claim at the same moment, only one gets the first candidates. The random ones differ from worker to
    worker, so the others soon get one of those.
    """
    shuffled = sorted(candidates[limit:], key=lambda candidate: (candidate.rank, ctx.jitter()))
    return [*candidates[:limit], *shuffled[:limit]]


def _grant_batch(
    ctx: ClaimJobsContext,
    namespace: str,
    candidates: Sequence[ReadyJob],
    request: ClaimRequest,
    actor: str,
    *,
    paused: bool,
) -> list[Job]:
    """Grant candidates in their order until the limit is reached.

    After a conflict, other workers are trying the same jobs: shuffle the remaining candidates of each priority, so that
    the workers soon try different jobs.
    """
    granted: list[Job] = []
    remaining = list(candidates)
    while remaining and len(granted) < request.limit:
        try:
            job = _grant(ctx, namespace, remaining.pop(0).job_id, request, actor, paused=paused)
        except StoreConflict:
            remaining.sort(key=lambda candidate: (candidate.rank, ctx.jitter()))
            continue
        if job is not None:
            granted.append(job)
    return granted


def _grant(
    ctx: ClaimJobsContext, namespace: str, job_id: str, request: ClaimRequest, actor: str, *, paused: bool
) -> Job | None:
    """Start a job under a lease of this worker.

    The concurrency argument, for two workers that try the same job:

    1. Both read the pending job, version n.
    2. Each writes version n + 1 with its own lease, conditional on version n. One write succeeds.
    3. The other one raises StoreConflict. If it belongs to the same claim, delivered twice, it returns the job of the
       first write.

    Returns:
        The running job; None if the job is no longer available, whatever the index shows.

    Raises:
        StoreConflict: Another process changed the job at the same time.
    """
    job = ctx.jobs.find(namespace, job_id)
    if job is None or job.deleted:
        return None
    if job.status == "running" and _is_lease_of(job, request):
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
        if latest is not None and _is_lease_of(latest, request):
            return latest
        raise
    return running


def _is_lease_of(job: Job, request: ClaimRequest) -> bool:
    """Return whether this claim, in an earlier delivery, has the lease on the job."""
    return request.claim_id is not None and job.lease is not None and job.lease.claim_id == request.claim_id
