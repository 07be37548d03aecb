"""Lists of jobs, newest first, with filters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from vigil_core.domain.exact_json import dumps
from vigil_core.domain.ids import is_uuid7, workflow_job_id
from vigil_core.domain.jobs.batch import item_id
from vigil_core.domain.jobs.job import Job
from vigil_core.services.context import UsesJobs, UsesListing, UsesLocks, UsesRuns
from vigil_core.services.pagination import fill_page
from vigil_core.store.listing import ListingEntry, jobs_where


class JobListingContext(UsesJobs, UsesListing, UsesRuns, UsesLocks, Protocol):
    """The jobs, their index, and the rows that name the jobs of a run, a batch or a unique key."""


READ_BATCH = 50
"""The number of jobs per request: a BatchGetItem takes 100 keys, and each job has a state row and a live row."""


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """The filters of a list of jobs; None matches every job.

    The times refer to `created_at`; `created_before` is exclusive.
    """

    statuses: tuple[str, ...] | None = None
    job_type: str | None = None
    queue: str | None = None
    tag: str | None = None
    workflow_id: str | None = None
    batch_id: str | None = None
    dependency_status: str | None = None
    correlation_id: str | None = None
    unique_key: str | None = None
    trace_id: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None

    def matches(self, job: Job) -> bool:
        """Return whether a job matches all filters. Only an open job holds its unique key."""
        criteria = (
            (self.job_type, job.job_type),
            (self.queue, job.queue),
            (self.correlation_id, job.correlation_id),
            (self.trace_id, job.trace_id),
            (self.dependency_status, job.dependencies.status),
            (self.batch_id, job.batch.batch_id),
            (self.workflow_id, job.workflow.workflow_id),
        )
        return (
            (self.statuses is None or job.status in self.statuses)
            and (self.tag is None or self.tag in job.tags)
            and (self.unique_key is None or (self.unique_key == job.unique_key and not job.ended))
            and (self.created_after is None or self.created_after <= job.created_at)
            and (self.created_before is None or job.created_at < self.created_before)
            and all(expected is None or expected == actual for expected, actual in criteria)
        )


def list_jobs(
    ctx: JobListingContext, namespace: str, job_filter: JobFilter, *, before_cursor: str | None, page_size: int
) -> tuple[list[Job], str | None]:
    """Read one page of jobs, and the cursor before which the next page starts; None at the end.

    A page ends when it is full or has used its budget of reads or bytes, so it can be short before the end.
    """
    return fill_page(
        _candidates(ctx, namespace, job_filter, before_cursor),
        lambda ids: ctx.jobs.find_many(namespace, ids, live=True),
        lambda job: not job.deleted and job_filter.matches(job),
        before_cursor=before_cursor,
        page_size=page_size,
        batch_size=min(READ_BATCH, max(page_size, 1)),
        size_of=_variable_bytes,
    )


def _candidates(
    ctx: JobListingContext, namespace: str, job_filter: JobFilter, before_cursor: str | None
) -> Iterator[ListingEntry]:
    """Return the jobs that may match, from the smallest set that the filters name.

    The ids of the jobs of a run or a batch follow from its own row, and the lock of a unique key names its job. The
    index `correlation` has the jobs of a correlation id. Otherwise the index `listing` filters by queue and type.
    """
    if job_filter.workflow_id is not None:
        return _after(before_cursor, _job_ids_of_run(ctx, namespace, job_filter.workflow_id))
    if job_filter.batch_id is not None:
        return _after(before_cursor, _item_ids(ctx, namespace, job_filter.batch_id))
    if job_filter.unique_key is not None:
        lock = ctx.locks.find(namespace, "unique", job_filter.unique_key)
        return _after(before_cursor, [] if lock is None else [lock.job_id])
    if job_filter.correlation_id is not None:
        return ctx.listing.with_correlation_id(
            namespace,
            job_filter.correlation_id,
            before_cursor=before_cursor,
            created_after=job_filter.created_after,
            created_before=job_filter.created_before,
        )
    return ctx.listing.newest_first(
        namespace,
        "jobs",
        before_cursor=before_cursor,
        created_after=job_filter.created_after,
        created_before=job_filter.created_before,
        where=jobs_where(queue=job_filter.queue, job_type=job_filter.job_type),
    )


def _job_ids_of_run(ctx: JobListingContext, namespace: str, workflow_id: str) -> list[str]:
    """Return the ids of the jobs of a run, last job of the definition first."""
    if not is_uuid7(workflow_id) or ctx.runs.find(namespace, workflow_id) is None:
        return []
    return [workflow_job_id(workflow_id, node.name) for node in reversed(ctx.runs.graph(namespace, workflow_id).nodes)]


def _item_ids(ctx: JobListingContext, namespace: str, batch_id: str) -> list[str]:
    """Return the ids of the items of a batch, last attempt and last item first."""
    batch = ctx.jobs.find(namespace, batch_id) if is_uuid7(batch_id) else None
    if batch is None or batch.batch.size is None:
        return []
    return [
        item_id(batch_id, attempt, index)
        for attempt in range(batch.attempt, 0, -1)
        for index in range(batch.batch.size - 1, -1, -1)
    ]


def _after(before_cursor: str | None, job_ids: Sequence[str]) -> Iterator[ListingEntry]:
    """Yield the jobs after the one that a cursor names.

    The id is the last part of a cursor, as in index `listing`.
    """
    last_id = None if before_cursor is None else before_cursor.rpartition("#")[2]
    start = job_ids.index(last_id) + 1 if last_id in job_ids else 0
    for job_id in job_ids[start:]:
        yield ListingEntry(entity_id=job_id, cursor=f"#{job_id}")


def _variable_bytes(job: Job) -> int:
    return len(dumps([job.fields, job.milestones, job.tags, job.message]).encode())
