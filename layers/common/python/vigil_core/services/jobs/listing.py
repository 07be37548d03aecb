"""Lists of jobs, newest first, with filters."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from vigil_core.domain.exact_json import dumps
from vigil_core.domain.jobs.job import Job
from vigil_core.services.context import UsesJobs, UsesListing
from vigil_core.services.pagination import fill_page


class JobListingContext(UsesJobs, UsesListing, Protocol):
    """The collaborators of the listing."""


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
    trace_id: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None

    def matches(self, job: Job) -> bool:
        """Return whether a job matches all filters except the times, which the index query applies."""
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
            and all(expected is None or expected == actual for expected, actual in criteria)
        )


def list_jobs(
    ctx: JobListingContext, namespace: str, job_filter: JobFilter, *, before_cursor: str | None, page_size: int
) -> tuple[list[Job], str | None]:
    """Read one page of jobs, and the cursor before which the next page starts; None at the end.

    A page ends when it is full or has used its budget of reads or bytes, so it can be short before the end.
    """
    index_rows = ctx.listing.newest_first(
        namespace,
        "jobs",
        before_cursor=before_cursor,
        created_after=job_filter.created_after,
        created_before=job_filter.created_before,
    )
    return fill_page(
        index_rows,
        lambda ids: ctx.jobs.find_many(namespace, ids, live=True),
        lambda job: not job.deleted and job_filter.matches(job),
        before_cursor=before_cursor,
        page_size=page_size,
        batch_size=min(READ_BATCH, max(page_size, 1)),
        size_of=_variable_bytes,
    )


def _variable_bytes(job: Job) -> int:
    return len(dumps([job.fields, job.milestones, job.tags, job.message]).encode())
