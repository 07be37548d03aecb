"""List jobs, newest first, filtered."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from vigil_core.domain.jobs import Job
from vigil_core.domain.jsontext import dumps
from vigil_core.services.context import Context

READ_BUDGET = 1_000
"""Jobs that one page may read."""
DAY_BUDGET = 50
"""Days that one page may look through: each takes a query for each of its shards, even where all has expired."""
BYTE_BUDGET = 1_500_000
"""Bytes of the variable parts that one page may show: Lambda's answer takes 6 MB, in which JSON is escaped again."""
BATCH = 50
"""State and live row of each: the hundred keys of one BatchGetItem."""


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Which jobs: None lets all of them pass. Times are created_at, `created_before` excluded."""

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

    def takes(self, job: Job) -> bool:
        """Whether a job passes; the times are left to the index."""
        wanted = (
            (self.job_type, job.job_type),
            (self.queue, job.queue),
            (self.correlation_id, job.correlation_id),
            (self.trace_id, job.trace_id),
            (self.dependency_status, job.dependency_status),
            (self.batch_id, job.batch_id),
            (self.workflow_id, job.workflow_id),
        )
        return (
            (self.statuses is None or job.status in self.statuses)
            and (self.tag is None or self.tag in job.tags)
            and all(asked is None or asked == actual for asked, actual in wanted)
        )


def list_jobs(
    ctx: Context, namespace: str, wanted: JobFilter, *, before_place: str | None, page_size: int
) -> tuple[list[Job], str | None]:
    """One page, and the place to go on before, None at the end.

    A page ends when it is full or has used its budget of reads or bytes; it may be short while there is more.
    """
    listed = ctx.listing.newest_first(
        namespace,
        "jobs",
        before_place=before_place,
        created_after=wanted.created_after,
        created_before=wanted.created_before,
    )
    found: list[Job] = []
    read = size = days = 0
    place = before_place
    while read < READ_BUDGET and days < DAY_BUDGET:
        batch = list(islice(listed, min(BATCH, max(page_size, 1))))
        if not batch:
            return found, None
        ids = [line.entity_id for line in batch if line.entity_id is not None]
        read += len(ids)
        days += len(batch) - len(ids)
        jobs = ctx.jobs.find_many(namespace, ids, live=True)
        for line in batch:
            job = jobs.get(line.entity_id or "")
            if job is not None and not job.deleted and wanted.takes(job):
                size += _bytes(job)
                if len(found) == page_size or (found and size > BYTE_BUDGET):
                    return found, place
                found.append(job)
            place = line.place
    return found, place


def _bytes(job: Job) -> int:
    return len(dumps([job.fields, job.milestones, job.tags, job.message]).encode())
