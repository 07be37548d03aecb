"""Response models of jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, cast

from pydantic import Field

from vigil_core.api.problems import Problem
from vigil_core.domain.exact_json import JsonValue, loads_stored
from vigil_core.domain.jobs.conditions import DependencyResult
from vigil_core.domain.jobs.dependencies import DependencyStatus
from vigil_core.domain.jobs.job import Executor, Job, JobError, JobLogEntry, JobLogKind, Priority
from vigil_core.domain.jobs.status import JobStatus
from vigil_core.domain.jobs.trigger_rules import TriggerRule, Verdict
from vigil_core.domain.timestamps import to_text
from vigil_core.schemas.base import Fraction, Number, ResponseModel, TimestampText
from vigil_core.store.jobs.payloads import JobPayloads

OpenDependencies: TypeAlias = Mapping[str, Sequence[str]]
"""The open dependencies of waiting jobs, by job id. A job without an entry shows all its dependencies."""

_URL = (
    "A URL from which the {0} can be read for an hour, if it is too large for the answer or was uploaded. `{0}` is null"
)


class WaitingFor(ResponseModel):
    """The reason why a `waiting` job does not start yet."""

    mutex: str | None = Field(description="Key of the mutex in whose mutex queue the job is")
    jobs: list[str] | None = Field(
        description="Dependencies that are still open, up to 100: ids, or names in a workflow"
    )
    workflow: str | None = Field(
        description="Id of the run that parks the job, because it is paused or has reached `max_concurrency`"
    )

    @classmethod
    def from_job(cls, job: Job, open_dependencies: OpenDependencies) -> WaitingFor | None:
        """Return the reason, or None if nothing prevents the start."""
        if job.mutex.position is not None:
            return cls(mutex=job.mutex.key, jobs=None, workflow=None)
        if job.awaits_dependencies or job.awaits_run:
            names = job.workflow.upstream_names if job.awaits_run else _dependency_ids(job)
            return cls(mutex=None, jobs=list(open_dependencies.get(job.job_id, names)), workflow=None)
        if job.workflow.parked:
            return cls(mutex=None, jobs=None, workflow=job.workflow.workflow_id)
        return None


class VerdictView(ResponseModel):
    """The reason why a job was released or skipped.

    `inputs` counts its dependencies by end state. `failed` names the first failed or cancelled ones, and so does
    `reason`.
    """

    rule: TriggerRule
    inputs: dict[str, int]
    failed: list[str] = Field(description="Up to 3 of the failed or cancelled dependencies: names in a run, or ids")
    reason: str

    @classmethod
    def from_domain(cls, verdict: Verdict) -> VerdictView:
        """Return the verdict."""
        return cls(
            rule=verdict.rule,
            inputs=dict(verdict.inputs),
            failed=list(verdict.failures),
            reason=verdict.explanation,
        )


class ErrorView(ResponseModel):
    """The reason why a run failed or a creation was refused."""

    code: str
    message: str


class JobErrorView(ErrorView):
    """The reason of a failed attempt, with the exception of its worker if the worker reported one."""

    type: str | None = Field(description="Full name of the exception")
    traceback: str | None = Field(description="Last lines of the traceback")

    @classmethod
    def from_domain(cls, error: JobError | None) -> JobErrorView | None:
        """Return the reason of the failure, if there is one."""
        if error is None:
            return None
        return cls(code=error.code, message=error.message, type=error.type, traceback=error.traceback)


class MutexView(ResponseModel):
    """The mutex of a job."""

    key: str
    on_conflict: Literal["reject", "queue"]


class RetryPolicyView(ResponseModel):
    """The retry policy of a job. Delays are in seconds."""

    max_attempts: int
    initial_delay: Number
    max_delay: Number
    multiplier: Number
    jitter: bool


class JobSummary(ResponseModel):
    """A job without its payload and result."""

    job_id: str
    name: str | None
    job_type: str
    queue: str
    priority: Priority
    status: JobStatus
    dependency_status: DependencyStatus
    job_stage: str
    job_health: str | None
    progress: Fraction
    message: str | None
    milestones: list[str]
    fields: dict[str, Any]
    tags: list[str]
    error: JobErrorView | None
    attempt: int
    max_attempts: int
    executor: Executor
    retry: RetryPolicyView | None
    timeout: int | None
    heartbeat_timeout: int | None
    unique_key: str | None
    mutex: MutexView | None
    depends_on: list[str] = Field(description="Names in a workflow, up to 100, otherwise ids")
    depends_on_truncated: bool = Field(description="Whether `depends_on` leaves out names")
    trigger_rule: TriggerRule | None = Field(
        description="Null for a job without dependencies, and for a job of a run, whose graph contains it"
    )
    condition: str | None = Field(description="Null for a job of a run, whose graph contains it")
    waiting_for: WaitingFor | None
    verdict: VerdictView | None
    workflow_id: str | None
    batch_id: str | None
    trace_id: str | None
    correlation_id: str | None
    cancel_requested: bool
    created_at: TimestampText
    updated_at: TimestampText
    scheduled_at: TimestampText | None
    started_at: TimestampText | None
    finished_at: TimestampText | None

    @classmethod
    def from_job(cls, job: Job, open_dependencies: OpenDependencies = MappingProxyType({})) -> JobSummary:
        """Return the job without its payload and result."""
        return cls(**_summary_members(job, open_dependencies))


class JobView(JobSummary):
    """A job."""

    payload: Any
    result: Any
    payload_url: str | None = Field(default=None, description=_URL.format("payload"))
    result_url: str | None = Field(default=None, description=_URL.format("result"))
    existing: Literal[True] | None = Field(
        default=None,
        description="Only in the answer to a creation: an open job already had the `unique_key`, and this is that job",
    )
    timestamp: TimestampText | None = Field(
        default=None, description="Only in the answer to a creation: the time of the creation or of the answer"
    )

    @classmethod
    def with_payloads(
        cls, job: Job, payloads: JobPayloads, open_dependencies: OpenDependencies = MappingProxyType({})
    ) -> JobView:
        """Return the job with its payload and result."""
        return cls(**_summary_members(job, open_dependencies), **_payload_members(payloads))

    @classmethod
    def from_new_job(cls, job: Job, payload: JsonValue, payload_url: str | None) -> JobView:
        """Return the answer to the creation of a job. Its `message` announces the creation."""
        creation_members = {"message": f"{job.name or job.job_type} job created", "timestamp": to_text(job.created_at)}
        url = {} if payload_url is None else {"payload_url": payload_url}
        return cls(**_summary_members(job) | creation_members, payload=payload, result=None, **url)

    @classmethod
    def from_existing_job(cls, job: Job, payloads: JobPayloads, now: datetime) -> JobView:
        """Return the answer to a creation whose `unique_key` an open job has."""
        return cls(**_summary_members(job), **_payload_members(payloads), existing=True, timestamp=to_text(now))


class DependencyJob(ResponseModel):
    """A dependency or a dependent of a job, with its current state."""

    job_id: str
    name: str | None
    job_type: str
    status: JobStatus
    dependency_status: DependencyStatus
    job_stage: str
    job_health: str | None

    @classmethod
    def from_job(cls, job: Job) -> DependencyJob:
        """Return the job's name and state."""
        return cls(
            job_id=job.job_id,
            name=job.name,
            job_type=job.job_type,
            status=job.status,
            dependency_status=job.dependencies.status,
            job_stage=job.stage,
            job_health=job.health,
        )


class Dependencies(ResponseModel):
    """The dependencies and the dependents of a job."""

    job_id: str
    dependency_status: DependencyStatus
    trigger_rule: TriggerRule
    condition: str | None
    verdict: VerdictView | None
    depends_on: list[DependencyJob]
    dependents: list[DependencyJob] = Field(description="The jobs that wait for the end of this job, up to 1,000")
    truncated: bool = Field(
        description="Whether one of the lists leaves out jobs. `/dependencies/results` lists all dependencies"
    )


class DependencyResultView(ResponseModel):
    """The outcome of a dependency of a job."""

    job_id: str
    status: JobStatus
    job_health: str | None
    result: Any
    truncated: bool = Field(
        description="The result is left out because of its size, and `result` is null. Read it from the job's `/result`"
    )

    @classmethod
    def from_domain(cls, dependency: DependencyResult) -> DependencyResultView:
        """Return the outcome."""
        return cls(**_dependency_result_members(dependency))


class NamedDependencyResult(DependencyResultView):
    """The outcome of a dependency of a job, with the dependency's name: its id, or its name in a workflow."""

    name: str

    @classmethod
    def from_domain(cls, dependency: DependencyResult) -> NamedDependencyResult:
        """Return the outcome."""
        return cls(name=dependency.name, **_dependency_result_members(dependency))


class DependencyResultList(ResponseModel):
    """One page of the dependencies of a job, in the job's order. Only a null token marks the end."""

    job_id: str
    dependencies: list[NamedDependencyResult]
    next_page_token: str | None


class JobStatusView(ResponseModel):
    """The members of a job that change most often."""

    job_id: str
    status: JobStatus
    job_stage: str
    job_health: str | None
    progress: Fraction
    message: str | None


class JobResult(ResponseModel):
    """The result or the error of an ended job."""

    job_id: str
    status: JobStatus
    result: Any
    error: JobErrorView | None
    result_url: str | None = Field(default=None, description=_URL.format("result"))

    @classmethod
    def from_job(cls, job: Job, payloads: JobPayloads) -> JobResult:
        """Return the result or the error."""
        error = JobErrorView.from_domain(job.error)
        result_members = {
            name: value for name, value in _payload_members(payloads).items() if name.startswith("result")
        }
        return cls(job_id=job.job_id, status=job.status, error=error, **result_members)


class JobPosition(ResponseModel):
    """Status and stage of a job at one version."""

    status: JobStatus
    stage: str


class JobEvent(ResponseModel):
    """One change of a job. `by` is its actor: the id of an API key, or a function."""

    version: int
    at: TimestampText
    event: JobLogKind
    by: str
    from_: JobPosition | None = Field(serialization_alias="from")
    to: JobPosition
    why: str | None


class JobEvents(ResponseModel):
    """One page of the history of a job, oldest change first. Only a null token marks the end."""

    job_id: str
    events: list[JobEvent]
    next_page_token: str | None

    @classmethod
    def from_log(
        cls, job_id: str, previous: JobLogEntry | None, entries: Sequence[JobLogEntry], next_page_token: str | None
    ) -> JobEvents:
        """Return a page of the history. Each change starts at the position of the previous one."""
        positions = [JobPosition(status=entry.status, stage=entry.stage) for entry in entries]
        first = None if previous is None else JobPosition(status=previous.status, stage=previous.stage)
        return cls(
            job_id=job_id,
            next_page_token=next_page_token,
            events=[
                JobEvent(
                    version=entry.version,
                    at=to_text(entry.occurred_at),
                    event=entry.kind,
                    by=entry.actor,
                    from_=before,
                    to=after,
                    why=entry.reason,
                )
                for entry, before, after in zip(entries, [first, *positions], positions, strict=False)
            ],
        )


class HeartbeatResponse(ResponseModel):
    """The answer to a heartbeat: whether the job must stop, and the end of its lease (null without a lease)."""

    job_id: str
    status: JobStatus
    cancel_requested: bool
    lease_expires_at: TimestampText | None


class JobList(ResponseModel):
    """One page of jobs, newest first. A page may be short or empty. Only a null token marks the end."""

    jobs: list[JobSummary]
    next_page_token: str | None


class BulkSuccess(ResponseModel):
    """One created job of many. `existing` is present if an open job already had the `unique_key`."""

    job_id: str
    job: JobSummary
    existing: Literal[True] = True


class BulkFailure(ResponseModel):
    """The reason why one job of many was not created."""

    problem: Problem


BulkItem = BulkSuccess | BulkFailure


class BulkResponse(ResponseModel):
    """The outcome for each job, in the order of the request."""

    results: list[BulkItem]


def parse_stored_json(text: str | None) -> JsonValue:
    """Parse stored JSON text. None is null."""
    return None if text is None else loads_stored(text)


def _summary_members(job: Job, open_dependencies: OpenDependencies = MappingProxyType({})) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "name": job.name,
        "job_type": job.job_type,
        "queue": job.queue,
        "priority": job.priority,
        "status": job.status,
        "dependency_status": job.dependencies.status,
        "job_stage": job.stage,
        "job_health": job.health,
        "progress": job.progress,
        "message": job.message,
        "milestones": list(job.milestones),
        "fields": dict(job.fields),
        "tags": list(job.tags),
        "error": JobErrorView.from_domain(job.error),
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        **_option_members(job),
        "depends_on": list(job.workflow.upstream_names) if job.workflow.in_run else _dependency_ids(job),
        "depends_on_truncated": job.workflow.upstream_truncated,
        "waiting_for": WaitingFor.from_job(job, open_dependencies),
        "verdict": None if job.dependencies.verdict is None else VerdictView.from_domain(job.dependencies.verdict),
        "workflow_id": job.workflow.workflow_id,
        "batch_id": job.batch.batch_id,
        "trace_id": job.trace_id,
        "correlation_id": job.correlation_id,
        "cancel_requested": job.cancel_requested_at is not None,
        "created_at": to_text(job.created_at),
        "updated_at": to_text(job.updated_at),
        "scheduled_at": to_text(job.scheduled_at) if job.scheduled_at else None,
        "started_at": to_text(job.started_at) if job.started_at else None,
        "finished_at": to_text(job.finished_at) if job.finished_at else None,
    }


def _option_members(job: Job) -> dict[str, Any]:
    """Return the options that the creation of the job set."""
    mutex, dependencies = job.mutex, job.dependencies
    on_conflict = "queue" if mutex.queue_on_conflict else "reject"
    return {
        "executor": job.executor,
        "retry": None if job.retry is None else RetryPolicyView(**asdict(job.retry)),
        "timeout": job.timeouts.attempt_s,
        "heartbeat_timeout": job.timeouts.heartbeat_s,
        "unique_key": job.unique_key,
        "mutex": None if mutex.key is None else MutexView(key=mutex.key, on_conflict=on_conflict),
        "trigger_rule": dependencies.trigger_rule if dependencies.depends_on else None,
        "condition": dependencies.condition,
    }


def _dependency_result_members(dependency: DependencyResult) -> dict[str, Any]:
    return {
        "job_id": dependency.job_id,
        "status": cast(JobStatus, dependency.status),
        "job_health": dependency.health,
        "result": parse_stored_json(dependency.result),
        "truncated": dependency.truncated,
    }


def _dependency_ids(job: Job) -> list[str]:
    return [dependency.job_id for dependency in job.dependencies.depends_on]


def _payload_members(payloads: JobPayloads) -> dict[str, Any]:
    """Return payload and result. The member of a URL is present only if there is a URL."""
    members = {"payload": parse_stored_json(payloads.payload), "result": parse_stored_json(payloads.result)}
    urls = {"payload_url": payloads.payload_url, "result_url": payloads.result_url}
    return members | {name: url for name, url in urls.items() if url is not None}
