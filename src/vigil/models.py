"""Values that the client takes and returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NotRequired, Self, TypeAlias, TypedDict

from vigil_core.domain.jobs.job import Priority
from vigil_core.domain.jobs.status import TERMINAL, JobStatus
from vigil_core.domain.timestamps import from_text

Json: TypeAlias = dict[str, Any]
LegacyStatus: TypeAlias = Literal["PENDING", "SCHEDULED", "IN_PROGRESS", "COMPLETED", "FAILED", "NOT_FOUND"]

Decision: TypeAlias = Literal["retry", "skip", "abort"]
GraphFormat: TypeAlias = Literal["mermaid", "dot", "json", "svg"]

NOT_FOUND: Literal["not_found"] = "not_found"
"""The status that `status_only` returns for a job that does not exist."""

RUN_ENDED = frozenset({"completed", "failed", "cancelled"})
"""The terminal statuses of a workflow run. Only a retry changes a run with one."""

_LEGACY_STATUSES: dict[str, LegacyStatus] = {
    "scheduled": "SCHEDULED",
    "waiting": "PENDING",
    "pending": "PENDING",
    "running": "IN_PROGRESS",
    "completed": "COMPLETED",
    "failed": "FAILED",
    "cancelled": "FAILED",
    "skipped": "FAILED",
    NOT_FOUND: "NOT_FOUND",
}


def legacy_status(status: JobStatus | Literal["not_found"]) -> LegacyStatus:
    """Return the closest of the six statuses that older job trackers use."""
    return _LEGACY_STATUSES[status]


class Retry(TypedDict, total=False):
    """The retry policy of a job. Delays are in seconds."""

    max_attempts: int
    initial_delay: float
    max_delay: float
    multiplier: float
    jitter: bool


class Mutex(TypedDict):
    """The mutex of a job: at most one open job has a key."""

    key: str
    on_conflict: NotRequired[Literal["reject", "queue"]]


@dataclass(frozen=True)
class JobReference:
    """A created job. `existing` is True if an open job with the same `unique_key` was returned instead."""

    job_id: str
    job_type: str
    scheduled_at: datetime | None
    existing: bool = False

    def is_scheduled(self) -> bool:
        """Return whether the job starts later."""
        return self.scheduled_at is not None


@dataclass(frozen=True, kw_only=True)
class JobStatusInfo:
    """A job at the time of the request. `document` is the whole answer of the API."""

    job_id: str
    status: JobStatus
    job_type: str
    queue: str
    priority: Priority
    name: str | None
    job_stage: str
    job_health: str | None
    progress: float
    message: str | None
    attempt: int
    created_at: datetime
    scheduled_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    error_code: str | None
    error_message: str | None
    result: Any
    document: Json = field(repr=False)

    @classmethod
    def of(cls, job: Json) -> Self:
        """Build the info from the API's representation of a job."""
        error = job["error"] or {}
        return cls(
            job_id=job["job_id"],
            status=job["status"],
            job_type=job["job_type"],
            queue=job["queue"],
            priority=job["priority"],
            name=job["name"],
            job_stage=job["job_stage"],
            job_health=job["job_health"],
            progress=job["progress"],
            message=job["message"],
            attempt=job["attempt"],
            created_at=from_text(job["created_at"]),
            scheduled_at=parse_time(job["scheduled_at"]),
            started_at=parse_time(job["started_at"]),
            finished_at=parse_time(job["finished_at"]),
            error_code=error.get("code"),
            error_message=error.get("message"),
            result=job["result"],
            document=job,
        )

    def is_terminal(self) -> bool:
        """Return whether the job has ended: completed, failed, cancelled or skipped."""
        return self.status in TERMINAL

    def is_successful(self) -> bool:
        """Return whether the job completed."""
        return self.status == "completed"

    def is_failed(self) -> bool:
        """Return whether the job ended without completing."""
        return self.is_terminal() and not self.is_successful()

    def is_active(self) -> bool:
        """Return whether the job is open: scheduled, waiting, pending or running."""
        return not self.is_terminal()

    def is_scheduled(self) -> bool:
        """Return whether the job, or its next attempt, starts later."""
        return self.status == "scheduled"

    def legacy_status(self) -> LegacyStatus:
        """Return the closest of the six statuses that older job trackers use."""
        return legacy_status(self.status)


def parse_time(text: str | None) -> datetime | None:
    """Parse an optional timestamp of the API."""
    return None if text is None else from_text(text)
