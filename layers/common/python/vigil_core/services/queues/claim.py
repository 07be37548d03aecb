"""Hand jobs of a queue to a worker: by priority, then by age, each under a lease and to one worker only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count

from vigil_core.domain.errors import JobNotFound, StoreConflict
from vigil_core.domain.jobs import job as jobs
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.retry import Lease
from vigil_core.services.context import Context
from vigil_core.services.jobs.transitions import on_time
from vigil_core.services.long_poll import hold
from vigil_core.services.workflows.commands import may_begin
from vigil_core.store.jobs.jobs import RANKS
from vigil_core.store.queues import ReadyJob

WINDOW = 20
"""Ready jobs that a claim looks at: enough for some workers at once to find each its own, and with usual names within
4 KB, which is what half a read unit pays for."""
LAPSED = 10
"""Leases that a claim takes back which finds too few jobs ready."""
LONGEST_PAUSE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a worker asks for. With a `claim_id`, asking again grants the same jobs again."""

    queue: str
    worker: str
    most: int
    lease_s: int
    claim_id: str | None


def claim_jobs(ctx: Context, namespace: str, wanted: Claim, *, by: str, until: datetime) -> list[Job]:
    """Jobs that now run under leases of this worker; none when there was none until the hold was over."""
    granted = hold(
        ctx,
        lambda: _look(ctx, namespace, wanted, by),
        enough=bool,
        until=until,
        seen=_look(ctx, namespace, wanted, by),
        longest_pause_s=LONGEST_PAUSE_S,
    )
    ctx.job_queues.note_worker(namespace, wanted.queue, wanted.worker, now=ctx.now(), granted=bool(granted))
    return granted


def _look(ctx: Context, namespace: str, wanted: Claim, by: str) -> list[Job]:
    paused = ctx.job_queues.is_paused(namespace, wanted.queue)
    granted: list[Job] = []
    for candidates in _rounds(ctx, namespace, wanted, by, paused=paused):
        left = list(candidates)
        while left and len(granted) < wanted.most:
            try:
                job = _grant(ctx, namespace, left.pop(0).job_id, wanted, by, paused=paused)
            except StoreConflict:
                # Others want the same jobs. In any order each soon finds one that nobody else is trying to get.
                left.sort(key=lambda candidate: (candidate.rank, ctx.chance()))
                continue
            if job is not None:
                granted.append(job)
        if granted:
            break
    return granted


def _rounds(ctx: Context, namespace: str, wanted: Claim, by: str, *, paused: bool) -> Iterator[Sequence[ReadyJob]]:
    """What may be granted. A claim with an id keeps its candidates before it grants any: whoever repeats it tries the
    same ones, and others only if nobody got any of those."""
    if wanted.claim_id is None:
        if not paused:
            yield _candidates(ctx, namespace, wanted, by)
        return
    tried: set[str] = set()
    for number in count():
        claim_id = f"{wanted.claim_id}#{number}"
        kept = ctx.job_queues.candidates(namespace, wanted.queue, claim_id)
        if kept is None:
            found = [] if paused else _candidates(ctx, namespace, wanted, by)
            # One that is ready and yet was not granted may be its run's to give: it is not tried for ever.
            untried = [candidate for candidate in found if candidate.job_id not in tried]
            if not untried:
                return
            ids = [candidate.job_id for candidate in _some(ctx, untried, wanted.most)]
            kept = ctx.job_queues.keep_candidates(namespace, wanted.queue, claim_id, ids, now=ctx.now())
        tried.update(kept)
        yield [ReadyJob(job_id=job_id, rank=0) for job_id in kept]


def _some(ctx: Context, candidates: Sequence[ReadyJob], most: int) -> list[ReadyJob]:
    """The first ones, and as many of the others by lot: of workers that ask at the same moment all but one would come
    too late for the first, and each soon for the next."""
    by_lot = sorted(candidates[most:], key=lambda candidate: (candidate.rank, ctx.chance()))
    return [*candidates[:most], *by_lot[:most]]


def _candidates(ctx: Context, namespace: str, wanted: Claim, by: str) -> list[ReadyJob]:
    """Those that are ready, in their order; where they do not suffice, also those whose leases have run out."""
    ready = ctx.job_queues.ready(namespace, wanted.queue, WINDOW)
    if len(ready) >= wanted.most:
        return ready
    lapsed = ctx.job_queues.overdue(namespace, wanted.queue, "running", ctx.now(), LAPSED)
    for job_id in lapsed:
        with suppress(JobNotFound, StoreConflict):
            on_time(ctx, namespace, job_id, by=by)
    return [*ready, *(ReadyJob(job_id=job_id, rank=len(RANKS)) for job_id in lapsed)]


def _grant(ctx: Context, namespace: str, job_id: str, wanted: Claim, by: str, *, paused: bool) -> Job | None:
    """The job under a lease of this claim; None when it is not to be had, whatever the index says.

    Raises:
        StoreConflict: somebody else was changing it at this moment.
    """
    job = ctx.jobs.find(namespace, job_id)
    if job is None or job.deleted:
        return None
    if job.status == "running" and job.lease and wanted.claim_id and job.lease.claim_id == wanted.claim_id:
        return job
    if paused or job.status != "pending" or job.executor != "worker" or job.queue != wanted.queue:
        return None
    if not may_begin(ctx, job):
        return None
    now = ctx.now()
    lease = Lease(
        token=ctx.new_id(),
        worker=wanted.worker,
        length_s=wanted.lease_s,
        until=now + timedelta(seconds=wanted.lease_s),
        claim_id=wanted.claim_id,
    )
    running = jobs.claim(job, lease, now=now, by=by)
    try:
        ctx.jobs.save(job, running)
    except StoreConflict:
        now_theirs = ctx.jobs.find(namespace, job_id) if wanted.claim_id else None
        if now_theirs and now_theirs.lease and now_theirs.lease.claim_id == wanted.claim_id:
            return now_theirs  # This very claim, repeated, was first.
        raise
    return running
