"""Count the open jobs and waits of a namespace once a day, and correct its counters.

The recount reads the lists of the namespace, a part in each sweep. It counts what was open at one moment, its start:
created before, and not ended or ended after. So the time that it takes does not matter:

1. It reads the counters, and stores the time.
2. It reads the lists from that time backwards, and counts what was open at that time.
3. It subtracts the difference between the two from the counters, which other processes have changed in the meantime.

If the process crashes, the next sweep continues at the last stored position.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Protocol

from vigil_core.domain.jobs.job import Job
from vigil_core.services.context import UsesClock, UsesJobs, UsesLimits, UsesListing, UsesWaits
from vigil_core.services.limits.counting import open_jobs_of
from vigil_core.store.counters import Counts, RecountProgress
from vigil_core.store.listing import ListingEntry

ROWS_PER_SWEEP = 2_000
"""The rows that one sweep reads for the recount of a namespace."""
_BATCH = 100


class RecountContext(UsesLimits, UsesListing, UsesJobs, UsesWaits, UsesClock, Protocol):
    """The counters, the lists, the jobs and the waits."""


def recount(ctx: RecountContext, namespace: str, *, max_rows: int = ROWS_PER_SWEEP) -> bool:
    """Continue the recount of a namespace, or begin one.

    Returns:
        Whether the recount is complete.
    """
    counters = ctx.limits.counters
    progress = counters.recount_progress(namespace) or RecountProgress(
        started_at=ctx.now(), before=counters.read(namespace), counted=Counts(), list_name="jobs", cursor=None
    )
    rows_left = max_rows
    while rows_left > 0:
        entries = _next_entries(ctx, namespace, progress)
        rows_left -= len(entries)
        if entries:
            counted = _count(ctx, namespace, progress, entries)
            progress = replace(progress, counted=counted, cursor=entries[-1].cursor)
        elif progress.list_name == "jobs":
            progress = replace(progress, list_name="waits", cursor=None)
        else:
            drift = progress.counted.minus(progress.before)
            counters.add(namespace, jobs=drift.jobs, waits_by_key=drift.waits_by_key)
            counters.end_recount(namespace, idle=progress.counted == Counts() == progress.before)
            return True
    counters.save_recount(namespace, progress)
    return False


def _next_entries(ctx: RecountContext, namespace: str, progress: RecountProgress) -> list[ListingEntry]:
    listed = ctx.listing.newest_first(
        namespace, progress.list_name, before_cursor=progress.cursor, created_before=progress.started_at
    )
    return list(islice(listed, _BATCH))


def _count(ctx: RecountContext, namespace: str, progress: RecountProgress, entries: list[ListingEntry]) -> Counts:
    """Add the entries that were open at the start of the recount to its counts."""
    ids = [entry.entity_id for entry in entries if entry.entity_id is not None]
    started_at = progress.started_at
    if progress.list_name == "jobs":
        jobs = ctx.jobs.find_many(namespace, ids, consistent=False).values()
        open_jobs = sum(_was_open(job, started_at) for job in jobs)
        return replace(progress.counted, jobs=progress.counted.jobs + open_jobs)
    waits_by_key = dict(progress.counted.waits_by_key)
    for wait in ctx.waits.find_many(namespace, ids).values():
        if wait.ended_at is None or wait.ended_at > started_at:
            waits_by_key[wait.created_by] = waits_by_key.get(wait.created_by, 0) + 1
    return replace(progress.counted, waits_by_key=waits_by_key)


def _was_open(job: Job, started_at: datetime) -> int:
    """Return how many open jobs a job counted as at a time."""
    if not job.ended:
        return open_jobs_of(job)
    return int(job.finished_at is not None and job.finished_at > started_at and not job.deleted)
