"""Request models of jobs, and their mapping to the domain."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from vigil_core.domain.exact_json import integral_to_int
from vigil_core.domain.jobs import job as jobs
from vigil_core.domain.jobs.batch import MAX_ITEMS, OnItemFailure
from vigil_core.domain.jobs.conditions import MAX_CHARS
from vigil_core.domain.jobs.dependencies import MAX_DEPENDENCIES, DependencyStatus
from vigil_core.domain.jobs.job import MAX_MILESTONES, Priority
from vigil_core.domain.jobs.retry import MAX_ATTEMPTS, RetryPolicy
from vigil_core.domain.jobs.status import JobStatus
from vigil_core.domain.jobs.trigger_rules import TriggerRule
from vigil_core.domain.timestamps import to_text, truncate_to_ms
from vigil_core.schemas.base import (
    DEFAULT_PAGE_SIZE,
    Delay,
    Fields,
    Id,
    Label,
    LeaseSeconds,
    LeaseToken,
    Message,
    Multiplier,
    Name,
    PageSize,
    PageToken,
    Progress,
    QueueName,
    RequestModel,
    Seconds,
    Timestamp,
    require_valid_expression,
)

MAX_BULK_JOBS = 100
MAX_TAGS = 20


class MutexOptions(RequestModel):
    """A mutex: at most one open job has each key."""

    key: Name
    on_conflict: Literal["reject", "queue"] | None = Field(
        default=None,
        description="What happens while another open job has the key. `reject` (default): the creation is 409. "
        "`queue`: the job enters the mutex queue",
    )


class RetryOptions(RequestModel):
    """The retry policy.

    The delay after the n-th failure is min(`max_delay`, `initial_delay` × `multiplier` ^ (n - 1)) seconds. With
    `jitter` it is a random time up to this delay.
    """

    max_attempts: Annotated[int, Field(ge=1, le=MAX_ATTEMPTS), BeforeValidator(integral_to_int)] | None = Field(
        default=None, description="Number of attempts, including the first. 3 when absent"
    )
    initial_delay: Delay | None = Field(default=None, description="Seconds. 1 when absent")
    max_delay: Delay | None = Field(default=None, description="Seconds. 300 when absent")
    multiplier: Multiplier | None = Field(default=None, description="2 when absent")
    jitter: bool | None = Field(default=None, description="True when absent")

    def to_domain(self) -> RetryPolicy:
        """Return the policy, with defaults for absent members."""
        return RetryPolicy(**self.model_dump(exclude_none=True))


class NewJobBody(RequestModel):
    """A job to create."""

    job_type: Name = Field(examples=["boot_test"])
    job_id: Id | None = Field(default=None, description="An id that the client chooses. Vigil makes one when absent")
    name: Name | None = None
    queue: QueueName | None = Field(default=None, description="`default` when absent")
    priority: Priority | None = Field(default=None, description="`normal` when absent")
    payload: Any = Field(
        default=None, description="Any JSON. Vigil returns it unchanged, with every digit of its numbers"
    )
    payload_ref: Id | None = Field(
        default=None,
        description="The reference of an upload, instead of a `payload` over 2 MB. Vigil does not read the upload",
    )
    fields: Fields | None = None
    tags: Annotated[list[Annotated[Label, Field(min_length=1)]], Field(max_length=MAX_TAGS)] | None = None
    unique_key: Name | None = Field(
        default=None, description="While an open job has this key, a creation with the same key returns that job"
    )
    mutex: MutexOptions | None = None
    depends_on: Annotated[list[Label], Field(max_length=MAX_DEPENDENCIES)] | None = Field(
        default=None,
        description="Ids of existing jobs. The job waits until they have ended and `trigger_rule` is satisfied",
    )
    trigger_rule: TriggerRule | None = Field(default=None, description="`all_success` when absent")
    condition: (
        Annotated[str, Field(min_length=1, max_length=MAX_CHARS), AfterValidator(require_valid_expression)] | None
    ) = Field(
        default=None,
        description="JMESPath over the results of the dependencies. If it is false, the job is skipped",
        examples=["validation_status == 'valid'"],
    )
    trace_id: Label | None = None
    correlation_id: Label | None = None
    scheduled_at: Annotated[Timestamp, PlainSerializer(to_text)] | None = Field(
        default=None, description="The job does not start before this time, which is at most 9000-01-01T00:00:00Z"
    )
    retry: RetryOptions | None = Field(default=None, description="One attempt when absent")
    timeout: Seconds | None = Field(default=None, description="Longest time of one attempt, in seconds")
    heartbeat_timeout: Seconds | None = Field(
        default=None, description="Longest time between two reports of a job without a lease, in seconds"
    )
    fallback: Any = Field(
        default=None, description="The result of the job if its last attempt fails. The job is then `completed`"
    )

    batch: Annotated[list[Any], Field(min_length=1, max_length=MAX_ITEMS)] | None = Field(
        default=None,
        description="One payload for each item, instead of `payload`. Each item is a job. The batch ends with its last "
        "item",
    )
    on_item_failure: OnItemFailure | None = Field(
        default=None,
        description="For a batch. `continue` (default): all items run, and the batch fails if one of them failed. "
        "`fail_fast`: the first failure cancels the other items. `collect`: all items run, and the batch completes",
    )

    def to_domain(self, job_id: str) -> jobs.NewJob:
        """Return the job to create. It has the client's id, or `job_id` if the client chose none."""
        return jobs.NewJob(
            job_id=self.job_id or job_id,
            job_type=self.job_type,
            name=self.name,
            queue=self.queue or "default",
            priority=self.priority or "normal",
            fields=self.fields or {},
            tags=self.tags or (),
            payload=self.payload if self.batch is None else self.batch,
            payload_upload=self.payload_ref,
            trace_id=self.trace_id,
            correlation_id=self.correlation_id,
            unique_key=self.unique_key,
            mutex_key=self.mutex.key if self.mutex else None,
            depends_on=self.depends_on or (),
            trigger_rule=self.trigger_rule or "all_success",
            condition=self.condition,
            queue_on_conflict=self.mutex is not None and self.mutex.on_conflict == "queue",
            scheduled_at=self.scheduled_at and truncate_to_ms(self.scheduled_at),
            retry=None if self.retry is None else self.retry.to_domain(),
            timeout_s=self.timeout,
            heartbeat_timeout_s=self.heartbeat_timeout,
            fallback=self.fallback,
            has_waits=self.job_id is not None,
            batch_size=None if self.batch is None else len(self.batch),
            on_item_failure="continue" if self.batch is None else self.on_item_failure or "continue",
        )


class NewJobsBody(RequestModel):
    """Jobs to create. Each is checked separately: an invalid job does not affect the others."""

    jobs: Annotated[list[Any], Field(min_length=1, max_length=MAX_BULK_JOBS)] = Field(
        json_schema_extra={"items": {"anyOf": [{"$ref": "#/components/schemas/NewJobBody"}, {}]}}
    )


class StartBody(RequestModel):
    """The start of a job by an outside process."""

    lease_token: LeaseToken = None


class ReportBody(RequestModel):
    """A report about a running job. Absent members do not change."""

    job_stage: Name | None = Field(
        default=None, examples=["boot"], description="One of the job's stages, at or after the current stage"
    )
    milestones: Annotated[list[Name], Field(max_length=MAX_MILESTONES)] | None = Field(
        default=None, description="Milestones to add to those of the job"
    )
    progress: Progress | None = None
    message: Message | None = None
    fields: Fields | None = Field(
        default=None, description="Fields to merge into those of the job. A null removes a field"
    )
    lease_token: LeaseToken = None

    def to_domain(self) -> jobs.Report:
        """Return the report."""
        return jobs.Report(
            stage=self.job_stage,
            milestones=self.milestones or (),
            progress=self.progress,
            message=self.message,
            fields=self.fields or {},
        )


class CompletionBody(RequestModel):
    """The success of a job, with its result."""

    result: Any = Field(
        default=None, description="Any JSON. Vigil returns it unchanged, with every digit of its numbers"
    )
    result_ref: Id | None = Field(
        default=None,
        description="The reference of an upload, instead of a `result` over 2 MB. Vigil does not read the upload",
    )
    job_health: Name | None = Field(default=None, description="`success` when absent")
    fields: Fields | None = None
    lease_token: LeaseToken = None


class JobErrorBody(RequestModel):
    """The reason of a failure."""

    code: Name = Field(examples=["OUT_OF_DISK"])
    message: Message
    type: Message | None = Field(default=None, description="Full name of the exception", examples=["builtins.OSError"])
    traceback: Message | None = Field(default=None, description="Last lines of the traceback")


class FailureBody(RequestModel):
    """The failure of an attempt."""

    error: JobErrorBody
    retryable: bool | None = Field(default=None, description="Whether another attempt may follow. True when absent")
    lease_token: LeaseToken = None


class HeartbeatBody(RequestModel):
    """A heartbeat of the process that runs the job."""

    lease_token: LeaseToken = None
    lease: LeaseSeconds | None = Field(
        default=None, description="New length of the lease, in seconds from now. The previous length when absent"
    )
    progress: Progress | None = None
    message: Message | None = None
    first: bool | None = Field(
        default=None,
        description="If true, the heartbeat is 409 `LEASE_LOST` unless it is the first under this lease. A worker that "
        "may receive the same job twice uses it to run the job once",
    )


class ReleaseBody(RequestModel):
    """The release of a claimed job by its worker."""

    lease_token: LeaseToken = None


class JobQuery(RequestModel):
    """Filters of the list of jobs. A job must pass all of them."""

    status: list[JobStatus] | None = Field(default=None, description="May be repeated: any of these statuses")
    job_type: Name | None = None
    queue: Name | None = None
    tag: Label | None = None
    workflow_id: Label | None = None
    batch_id: Label | None = Field(default=None, description="The items of this batch")
    dependency_status: DependencyStatus | None = None
    correlation_id: Label | None = None
    unique_key: Name | None = Field(default=None, description="The open job that has this `unique_key`")
    trace_id: Label | None = None
    created_after: Timestamp | None = Field(default=None, description="Created at or after this time")
    created_before: Timestamp | None = Field(default=None, description="Created before this time")
    page_size: PageSize = DEFAULT_PAGE_SIZE
    page_token: PageToken | None = None
