"""Response models of queues."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import Field, WithJsonSchema

from vigil_core.api.jobs.models import DependencyResultView, JobView
from vigil_core.domain.jobs.dependency_results import InlineResults, dependencies_url
from vigil_core.domain.jobs.job import Job, Priority
from vigil_core.domain.jobs.lease import Lease
from vigil_core.domain.timestamps import to_text
from vigil_core.schemas.base import ResponseModel, TimestampText
from vigil_core.store.jobs.payloads import JobPayloads


class ClaimedJob(JobView):
    """A claimed job under its lease, with the results of its dependencies."""

    lease_token: str
    lease_expires_at: TimestampText
    dependencies_truncated: bool = Field(description="Whether `dependencies` leaves out a dependency or a result")
    dependencies_url: str | None = Field(
        description="The path of all dependencies with their results, page by page, if `dependencies` is truncated"
    )
    dependencies: dict[str, DependencyResultView] = Field(
        description="The first dependencies by name: up to 100, with up to 256 KB of results"
    )

    @classmethod
    def from_claim(cls, job: Job, lease: Lease, payloads: JobPayloads, inline_results: InlineResults) -> ClaimedJob:
        """Return the job for its worker."""
        view = JobView.with_payloads(job, payloads)
        return cls(
            **{name: getattr(view, name) for name in view.model_fields_set},
            lease_token=lease.token,
            lease_expires_at=to_text(lease.expires_at),
            dependencies={result.name: DependencyResultView.from_domain(result) for result in inline_results.results},
            dependencies_truncated=inline_results.truncated,
            dependencies_url=dependencies_url(job.job_id) if inline_results.truncated else None,
        )


class ClaimedJobs(ResponseModel):
    """The jobs that the claim was granted. The list is empty if the queue has no job to grant."""

    jobs: list[ClaimedJob]


class QueueDepth(ResponseModel):
    """The number of open jobs of a queue by status. `running` counts the jobs with a lease or a timeout."""

    pending: int
    scheduled: int
    waiting: int
    running: int


class WorkerView(ResponseModel):
    """A worker that claimed jobs during the last day. `running` counts the jobs that it runs now."""

    worker: str
    running: int
    last_seen: TimestampText


class QueueSummary(ResponseModel):
    """A queue. A queue exists as soon as a job names it."""

    queue: str
    paused: bool


class QueueView(QueueSummary):
    """A queue with its depth and workers."""

    depth: QueueDepth
    pending_by_priority: dict[Priority, int]
    oldest_age_s: Annotated[Decimal, WithJsonSchema({"type": "number", "minimum": 0})] | None
    last_claim_at: TimestampText | None
    workers: list[WorkerView]


class QueueList(ResponseModel):
    """One page of queues, sorted by name. Only a null token marks the end."""

    queues: list[QueueSummary]
    next_page_token: str | None
