"""What travels over HTTP: the bodies that clients send, and the answers. Mapped to the domain here, explicitly."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)

from vigil_core.domain.exact_json import JsonValue, dumps, integral_to_int, loads
from vigil_core.domain.ids import is_uuid7
from vigil_core.domain.jobs import job as jobs
from vigil_core.domain.jobs.batch import MAX_ITEMS, OnItemFailure
from vigil_core.domain.jobs.conditions import MAX_CHARS, ConditionError, DependencyResult, check_expression
from vigil_core.domain.jobs.dependencies import MAX_DEPENDENCIES, DependencyStatus, TriggerRule, Verdict
from vigil_core.domain.jobs.job import (
    MAX_FIELDS_BYTES,
    MAX_MILESTONES,
    RESERVED_FIELD_NAMES,
    Job,
    JobLogEntry,
    JobLogKind,
    Priority,
)
from vigil_core.domain.jobs.lease import Lease
from vigil_core.domain.jobs.retry import MAX_ATTEMPTS, MAX_DELAY_S, RetryPolicy
from vigil_core.domain.jobs.status import JobStatus
from vigil_core.domain.timestamps import from_text, to_text, truncate_to_ms
from vigil_core.domain.waits.wait import WaitStatus
from vigil_core.services.jobs.uploads import MAX_UPLOAD_BYTES
from vigil_core.store.jobs.jobs import JobPayloads

MAX_BULK_JOBS = 100
MAX_CLAIM_SIZE = 10
MAX_LEASE_S = 43_200
MAX_TAGS = 20
DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 200

UUID7_PATTERN = "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
NAME_PATTERN = r"^[^\x00-\x1f\x7f-\x9f]+$"
QUEUE_PATTERN = r"^[^\x00-\x1f\x7f-\x9f/%]+$"
EXAMPLE_ID = "01980c4e-5a00-7c3b-9e21-3f6b0a1d2c4e"


def _uuid7(value: str) -> str:
    if not is_uuid7(value):
        raise ValueError("must be a UUIDv7, in lower case")
    return value


def _field_name(value: str) -> str:
    if value in RESERVED_FIELD_NAMES:
        raise ValueError("is the name of a built-in, which no field may have")
    return value


def _fields(value: dict[str, Any]) -> dict[str, Any]:
    non_null_fields = {name: item for name, item in value.items() if item is not None}
    if len(dumps(non_null_fields).encode()) > MAX_FIELDS_BYTES:
        raise ValueError(f"must take at most {MAX_FIELDS_BYTES} bytes as JSON")
    return value


def _progress(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or not 0 <= value <= 1:
        raise ValueError("must be a number from 0 to 1")
    # DynamoDB keeps 38 digits; 18 decimals are more than a double's in all but the tiniest numbers.
    return abs(round(Decimal(value), 18)).normalize()


def _number_up_to(limit: int) -> Callable[[Any], Decimal]:
    """A number of seconds, whole or not."""

    def check(value: Any) -> Decimal:
        if isinstance(value, bool) or not isinstance(value, int | Decimal) or not 0 <= value <= limit:
            raise ValueError(f"must be a number from 0 to {limit}")
        return round(Decimal(value), 3).normalize()

    return check


def require_valid_expression(text: str) -> str:
    """A JMESPath expression. Raises ValueError."""
    try:
        check_expression(text)
    except ConditionError as error:
        raise ValueError(f"is no JMESPath expression: {error}") from error
    return text


def _page_size(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,3}", value, re.ASCII) and 1 <= int(value) <= MAX_PAGE_SIZE:
        return int(value)
    raise ValueError(f"must be a whole number from 1 to {MAX_PAGE_SIZE}")


def _timestamp(value: Any) -> datetime:
    try:
        return from_text(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("must be an ISO 8601 time with a zone, such as Z") from error


Name: TypeAlias = Annotated[str, Field(min_length=1, max_length=128, pattern=NAME_PATTERN)]
"""Names, types, queues, stages, milestones, keys."""
QueueName: TypeAlias = Annotated[str, Field(min_length=1, max_length=128, pattern=QUEUE_PATTERN)]
"""Names of queues stand in paths, where some gateways take `/` and `%` apart and others do not."""
Text: TypeAlias = Annotated[str, Field(max_length=1024, pattern=r"^[^\x00]*$")]
Id: TypeAlias = Annotated[
    str,
    AfterValidator(_uuid7),
    WithJsonSchema({"type": "string", "pattern": UUID7_PATTERN, "examples": [EXAMPLE_ID]}),
]
Fields: TypeAlias = Annotated[
    dict[Annotated[Name, AfterValidator(_field_name)], Any],
    AfterValidator(_fields),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {
                "minLength": 1,
                "maxLength": 128,
                "pattern": NAME_PATTERN,
                "not": {"enum": sorted(RESERVED_FIELD_NAMES)},
            },
            "additionalProperties": True,
            "examples": [{"boot_seconds": 45}],
        }
    ),
]
Progress: TypeAlias = Annotated[
    Decimal, PlainValidator(_progress), WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})
]
Delay: TypeAlias = Annotated[
    Decimal,
    PlainValidator(_number_up_to(MAX_DELAY_S)),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": MAX_DELAY_S}),
]
Multiplier: TypeAlias = Annotated[
    Decimal, PlainValidator(_number_up_to(100)), WithJsonSchema({"type": "number", "minimum": 0, "maximum": 100})
]
Timestamp: TypeAlias = Annotated[
    datetime, PlainValidator(_timestamp), WithJsonSchema({"type": "string", "format": "date-time"})
]
PageSize: TypeAlias = Annotated[
    int,
    PlainValidator(_page_size),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE, "default": DEFAULT_PAGE_SIZE}),
]
PageToken: TypeAlias = Annotated[str, Field(max_length=1024, description="`next_page_token` of the page before")]
LeaseToken: TypeAlias = Annotated[
    Text | None,
    Field(description="Of the claim. A report without the token of the lease that stands is 409 `LEASE_LOST`"),
]
Seconds: TypeAlias = Annotated[int, Field(ge=1, le=MAX_DELAY_S), BeforeValidator(integral_to_int)]
LeaseSeconds: TypeAlias = Annotated[int, Field(ge=1, le=MAX_LEASE_S), BeforeValidator(integral_to_int)]
TimestampText: TypeAlias = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Fraction: TypeAlias = Annotated[Decimal, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1})]


class RequestModel(BaseModel):
    """What a client sends: no field that is not known, no type that is not meant. Null means absent."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class ResponseModel(BaseModel):
    """What a client is shown."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return self.model_dump(by_alias=True, exclude_unset=True)


# What clients send: jobs


class MutexOptions(RequestModel):
    """At most one job that has not ended has each key."""

    key: Name
    on_conflict: Literal["reject", "queue"] | None = Field(
        default=None,
        description="`reject`, also when absent: 409 while another job has the key. `queue`: the job waits in line",
    )


class RetryOptions(RequestModel):
    """What follows a failed attempt: the next one after min(`max_delay`, `initial_delay` × `multiplier` ^ (n - 1))
    seconds, n counting failures; with `jitter` after any time up to that."""

    max_attempts: Annotated[int, Field(ge=1, le=MAX_ATTEMPTS), BeforeValidator(integral_to_int)] | None = Field(
        default=None, description="The first try included; 3 when absent"
    )
    initial_delay: Delay | None = Field(default=None, description="Seconds; 1 when absent")
    max_delay: Delay | None = Field(default=None, description="Seconds; 300 when absent")
    multiplier: Multiplier | None = Field(default=None, description="2 when absent")
    jitter: bool | None = Field(default=None, description="True when absent")

    def to_domain(self) -> RetryPolicy:
        """The policy."""
        return RetryPolicy(**self.model_dump(exclude_none=True))


class NewJobBody(RequestModel):
    """A job to create."""

    reserved_names: ClassVar[frozenset[str]] = frozenset()
    """What jobs will take one day: refused by name."""

    job_type: Name = Field(examples=["boot_test"])
    job_id: Id | None = Field(default=None, description="Chosen by the client; otherwise by Vigil")
    name: Name | None = None
    queue: QueueName | None = Field(default=None, description="`default` when absent")
    priority: Priority | None = Field(default=None, description="`normal` when absent")
    payload: Any = Field(default=None, description="Any JSON; it comes back as it was, number for number")
    payload_ref: Id | None = Field(
        default=None, description="Of an upload, in place of a `payload` over 2 MB: it is not read, only handed on"
    )
    fields: Fields | None = None
    tags: Annotated[list[Annotated[Text, Field(min_length=1)]], Field(max_length=MAX_TAGS)] | None = None
    unique_key: Name | None = Field(
        default=None, description="While a job with this key has not ended, creating another answers with that one"
    )
    mutex: MutexOptions | None = None
    depends_on: Annotated[list[Text], Field(max_length=MAX_DEPENDENCIES)] | None = Field(
        default=None, description="Ids of jobs that exist: it waits until they have ended as `trigger_rule` wants it"
    )
    trigger_rule: TriggerRule | None = Field(default=None, description="`all_success` when absent")
    condition: (
        Annotated[str, Field(min_length=1, max_length=MAX_CHARS), AfterValidator(require_valid_expression)] | None
    ) = Field(
        default=None,
        description="JMESPath over the results of those jobs; where it is false, the job is skipped",
        examples=["validation_status == 'valid'"],
    )
    trace_id: Text | None = None
    correlation_id: Text | None = None
    scheduled_at: Annotated[Timestamp, PlainSerializer(to_text)] | None = Field(
        default=None, description="Not before this time"
    )
    retry: RetryOptions | None = Field(default=None, description="One attempt when absent")
    timeout: Seconds | None = Field(default=None, description="Seconds that an attempt may take")
    heartbeat_timeout: Seconds | None = Field(
        default=None, description="Seconds that a job which runs without a lease may be silent"
    )
    fallback: Any = Field(
        default=None, description="The result of a job that fails for good: it completes all the same"
    )

    batch: Annotated[list[Any], Field(min_length=1, max_length=MAX_ITEMS)] | None = Field(
        default=None,
        description="In place of `payload`: one payload for each item, which is a job. This one ends with the last",
    )
    on_item_failure: OnItemFailure | None = Field(
        default=None,
        description="Of a batch. `continue`, also when absent: all items run, and it fails if any did. `fail_fast`: "
        "the first failure has the others cancelled. `collect`: all run, and it completes",
    )

    def to_domain(self, job_id: str) -> jobs.NewJob:
        """The job to create, under its own id or this one."""
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
    """Jobs to create. Each is checked on its own: one bad job does not spoil the others."""

    jobs: Annotated[list[Any], Field(min_length=1, max_length=MAX_BULK_JOBS)] = Field(
        json_schema_extra={"items": {"anyOf": [{"$ref": "#/components/schemas/NewJobBody"}, {}]}}
    )


class StartBody(RequestModel):
    """Somebody outside begins to run a job."""

    lease_token: LeaseToken = None


class ReportBody(RequestModel):
    """How a job goes. What is absent is not said."""

    job_stage: Name | None = Field(
        default=None, examples=["boot"], description="One of the job's stages, not before the one it has reached"
    )
    milestones: Annotated[list[Name], Field(max_length=MAX_MILESTONES)] | None = Field(
        default=None, description="Added to those that the job has"
    )
    progress: Progress | None = None
    message: Text | None = None
    fields: Fields | None = Field(default=None, description="Merged into the job's; a null removes a field")
    lease_token: LeaseToken = None

    def to_domain(self) -> jobs.Report:
        """The report."""
        return jobs.Report(
            stage=self.job_stage,
            milestones=self.milestones or (),
            progress=self.progress,
            message=self.message,
            fields=self.fields or {},
        )


class CompletionBody(RequestModel):
    """The job did what it was for."""

    result: Any = Field(default=None, description="Any JSON; it comes back as it was, number for number")
    result_ref: Id | None = Field(
        default=None, description="Of an upload, in place of a `result` over 2 MB: it is not read, only handed on"
    )
    job_health: Name | None = Field(default=None, description="`success` when absent")
    fields: Fields | None = None
    lease_token: LeaseToken = None


class JobErrorBody(RequestModel):
    """Why a job failed."""

    code: Name = Field(examples=["OUT_OF_DISK"])
    message: Text


class FailureBody(RequestModel):
    """The attempt failed."""

    error: JobErrorBody
    retryable: bool | None = Field(default=None, description="Whether another attempt makes sense; true when absent")
    lease_token: LeaseToken = None


class HeartbeatBody(RequestModel):
    """A sign of life of whoever runs a job."""

    lease_token: LeaseToken = None
    lease: LeaseSeconds | None = Field(default=None, description="Seconds from now; the lease's own length when absent")
    progress: Progress | None = None
    message: Text | None = None
    first: bool | None = Field(
        default=None,
        description="Refused (409 `LEASE_LOST`) unless it is the first under this lease: for whoever may be handed the "
        "same job twice and is to begin once",
    )


class ReleaseBody(RequestModel):
    """A worker gives a job back."""

    lease_token: LeaseToken = None


class ClaimBody(RequestModel):
    """A worker asks for jobs."""

    max: Annotated[int, Field(ge=1, le=MAX_CLAIM_SIZE), BeforeValidator(integral_to_int)] | None = Field(
        default=None, description="1 when absent"
    )
    lease: LeaseSeconds | None = Field(default=None, description="Seconds; 60 when absent")
    worker: Name | None = Field(default=None, description="The id of the key when absent")
    claim_id: Name | None = Field(
        default=None, description="Asked again with the same one, because an answer was lost, the same jobs are granted"
    )


class NewUploadBody(RequestModel):
    """Something to upload, of exactly this size."""

    size: Annotated[int, Field(ge=1, le=MAX_UPLOAD_BYTES), BeforeValidator(integral_to_int)] = Field(
        description="Bytes"
    )


class NoContent(RequestModel):
    """An empty body or an empty object."""


# What clients ask lists for


class NoQuery(RequestModel):
    """No query parameter at all: one that is not known is refused, here as everywhere."""


class JobQuery(RequestModel):
    """Filters are ANDed."""

    status: list[JobStatus] | None = Field(default=None, description="May be repeated: any of them")
    job_type: Name | None = None
    queue: Name | None = None
    tag: Text | None = None
    workflow_id: Text | None = None
    batch_id: Text | None = Field(default=None, description="The items of this batch")
    dependency_status: DependencyStatus | None = None
    correlation_id: Text | None = None
    trace_id: Text | None = None
    created_after: Timestamp | None = Field(default=None, description="At or after this time")
    created_before: Timestamp | None = Field(default=None, description="Before this time")
    page_size: PageSize = DEFAULT_PAGE_SIZE
    page_token: PageToken | None = None


class WaitQuery(RequestModel):
    """Which waits to list."""

    status: WaitStatus | None = None
    page_size: PageSize = DEFAULT_PAGE_SIZE
    page_token: PageToken | None = None


class PageQuery(RequestModel):
    """Which page."""

    page_size: PageSize = DEFAULT_PAGE_SIZE
    page_token: PageToken | None = None


# What clients are shown: jobs

_URL = (
    "There when the {0} is too large for the answer, or was uploaded: where it can be read for an hour. `{0}` is null"
)


class WaitingFor(ResponseModel):
    """What holds back a job that is `waiting`."""

    mutex: str | None = Field(description="The key of the mutex for which it stands in line")
    jobs: list[str] | None = Field(
        description="The jobs on which it depends, in a workflow by their names; `/dependencies` says how they are"
    )
    workflow: str | None = Field(
        description="The workflow that holds it back: it is paused, or as many of its jobs run as may"
    )

    @classmethod
    def from_job(cls, job: Job) -> WaitingFor | None:
        """None when nothing holds it back."""
        if job.mutex.position is not None:
            return cls(mutex=job.mutex.key, jobs=None, workflow=None)
        if job.awaits_dependencies:
            return cls(mutex=None, jobs=[each.job_id for each in job.dependencies.depends_on], workflow=None)
        if job.awaits_run:
            return cls(mutex=None, jobs=list(job.workflow.upstream_names), workflow=None)
        if job.workflow.parked:
            return cls(mutex=None, jobs=None, workflow=job.workflow.workflow_id)
        return None


class VerdictView(ResponseModel):
    """Why a job was released or skipped: how many of its dependencies had ended in which way then."""

    rule: TriggerRule
    inputs: dict[str, int]
    reason: str

    @classmethod
    def from_domain(cls, verdict: Verdict) -> VerdictView:
        """As it is stored."""
        return cls(rule=verdict.rule, inputs=dict(verdict.inputs), reason=verdict.reason)


class JobErrorView(ResponseModel):
    """Why a job failed."""

    code: str
    message: str


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
    depends_on: list[str]
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
    def from_job(cls, job: Job) -> JobSummary:
        """The job, short."""
        return cls(**_summary_members(job))


class JobView(JobSummary):
    """A job."""

    payload: Any
    result: Any
    payload_url: str | None = Field(default=None, description=_URL.format("payload"))
    result_url: str | None = Field(default=None, description=_URL.format("result"))

    @classmethod
    def with_payloads(cls, job: Job, bodies: JobPayloads) -> JobView:
        """The job with its payload and result."""
        return cls(**_summary_members(job), **_payload_members(bodies))


class JobCreated(JobView):
    """A job that was just created. `message` says so."""

    timestamp: TimestampText

    @classmethod
    def from_new_job(cls, job: Job, payload: JsonValue, payload_url: str | None) -> JobCreated:
        """The answer to its creation."""
        creation_members = {"message": f"{job.name or job.job_type} job created", "timestamp": to_text(job.created_at)}
        url = {} if payload_url is None else {"payload_url": payload_url}
        return cls(**_summary_members(job) | creation_members, payload=payload, result=None, **url)


class JobExisting(JobView):
    """The job that already has the `unique_key`."""

    existing: Literal[True]
    timestamp: TimestampText

    @classmethod
    def from_existing_job(cls, job: Job, bodies: JobPayloads, now: datetime) -> JobExisting:
        """The answer in place of a creation."""
        return cls(**_summary_members(job), **_payload_members(bodies), existing=True, timestamp=to_text(now))


class DependencyResultView(ResponseModel):
    """What came of a job on which a claimed one depends. `truncated`: its result is too large to come along, and is
    read from the job."""

    status: JobStatus
    job_health: str | None
    result: Any
    truncated: bool

    @classmethod
    def from_domain(cls, dependency: DependencyResult) -> DependencyResultView:
        """As a worker is told of it."""
        status = cast(JobStatus, dependency.status)
        return cls(
            status=status,
            job_health=dependency.health,
            result=_parse_json(dependency.result),
            truncated=dependency.truncated,
        )


class ClaimedJob(JobView):
    """A job that the claim has got, under a lease. `dependencies` are the results of the jobs that it depends on."""

    lease_token: str
    lease_expires_at: TimestampText
    dependencies: dict[str, DependencyResultView]

    @classmethod
    def from_claim(
        cls, job: Job, lease: Lease, bodies: JobPayloads, dependency_results: Sequence[DependencyResult]
    ) -> ClaimedJob:
        """The job for its worker."""
        lease_members = {"lease_token": lease.token, "lease_expires_at": to_text(lease.expires_at)}
        results = {each.name: DependencyResultView.from_domain(each) for each in dependency_results}
        return cls(**_summary_members(job), **_payload_members(bodies), **lease_members, dependencies=results)


class ClaimedJobs(ResponseModel):
    """The jobs that a claim has got; none when there was none."""

    jobs: list[ClaimedJob]


class HeartbeatResponse(ResponseModel):
    """What whoever runs a job has to know: whether it is to stop, and how long its lease is. Null without a lease."""

    job_id: str
    status: JobStatus
    cancel_requested: bool
    lease_expires_at: TimestampText | None


class QueueDepth(ResponseModel):
    """How many jobs of a queue have not ended. `running` counts those with a lease or a timeout."""

    pending: int
    scheduled: int
    waiting: int
    running: int


class WorkerView(ResponseModel):
    """Who has claimed jobs within a day, and how many of them it runs now."""

    worker: str
    running: int
    last_seen: TimestampText


class QueueSummary(ResponseModel):
    """A queue. Any name is one: jobs make it."""

    queue: str
    paused: bool


class QueueView(QueueSummary):
    """A queue, and what is in it."""

    depth: QueueDepth
    pending_by_priority: dict[Priority, int]
    oldest_age_s: Annotated[Decimal, WithJsonSchema({"type": "number", "minimum": 0})] | None
    last_claim_at: TimestampText | None
    workers: list[WorkerView]


class QueueList(ResponseModel):
    """One page of queues, by name. Only an absent token is the end."""

    queues: list[QueueSummary]
    next_page_token: str | None


class DependencyJob(ResponseModel):
    """A job at the other end of a dependency, and how it is."""

    job_id: str
    name: str | None
    job_type: str
    status: JobStatus
    dependency_status: DependencyStatus
    job_stage: str
    job_health: str | None

    @classmethod
    def from_job(cls, job: Job) -> DependencyJob:
        """The job, as far as its neighbours care."""
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
    """What a job waits for, and who waits for it."""

    job_id: str
    dependency_status: DependencyStatus
    trigger_rule: TriggerRule
    condition: str | None
    verdict: VerdictView | None
    depends_on: list[DependencyJob]
    dependents: list[DependencyJob] = Field(description="The jobs that wait for this one to end, up to 1,000")


class JobStatusView(ResponseModel):
    """The light form of a job."""

    job_id: str
    status: JobStatus
    job_stage: str
    job_health: str | None
    progress: Fraction
    message: str | None


class JobResult(ResponseModel):
    """What came of a job."""

    job_id: str
    status: JobStatus
    result: Any
    error: JobErrorView | None
    result_url: str | None = Field(default=None, description=_URL.format("result"))

    @classmethod
    def from_job(cls, job: Job, bodies: JobPayloads) -> JobResult:
        """The result or the error of a job that has ended."""
        error = job.error and JobErrorView(code=job.error.code, message=job.error.message)
        result_members = {name: value for name, value in _payload_members(bodies).items() if name.startswith("result")}
        return cls(job_id=job.job_id, status=job.status, error=error, **result_members)


class JobPosition(ResponseModel):
    """Where a job was."""

    status: JobStatus
    stage: str


class JobEvent(ResponseModel):
    """One line of a job's history. `by` is the id of the key that did it, or `sweeper`."""

    version: int
    at: TimestampText
    event: JobLogKind
    by: str
    from_: JobPosition | None = Field(serialization_alias="from")
    to: JobPosition
    why: str | None


class JobEvents(ResponseModel):
    """The history of a job, oldest first."""

    job_id: str
    events: list[JobEvent]

    @classmethod
    def from_log(cls, job_id: str, entries: Sequence[JobLogEntry]) -> JobEvents:
        """The history; each line begins where the one before ended."""
        positions = [JobPosition(status=line.status, stage=line.stage) for line in entries]
        return cls(
            job_id=job_id,
            events=[
                JobEvent(
                    version=line.version,
                    at=to_text(line.occurred_at),
                    event=line.kind,
                    by=line.actor,
                    from_=before,
                    to=after,
                    why=line.reason,
                )
                for line, before, after in zip(entries, [None, *positions], positions, strict=False)
            ],
        )


class JobList(ResponseModel):
    """One page of jobs, newest first. It may be short, even empty; only an absent token is the end."""

    jobs: list[JobSummary]
    next_page_token: str | None


def _summary_members(job: Job) -> dict[str, Any]:
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
        "error": None if job.error is None else JobErrorView(code=job.error.code, message=job.error.message),
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "depends_on": list(job.workflow.upstream_names)
        if job.workflow.in_run
        else [each.job_id for each in job.dependencies.depends_on],
        "waiting_for": WaitingFor.from_job(job),
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


def _payload_members(bodies: JobPayloads) -> dict[str, Any]:
    """Payload and result, or the URLs that stand in for them: those are left out where they do not."""
    members = {"payload": _parse_json(bodies.payload), "result": _parse_json(bodies.result)}
    urls = {"payload_url": bodies.payload_url, "result_url": bodies.result_url}
    return members | {name: url for name, url in urls.items() if url is not None}


def _parse_json(text: str | None) -> JsonValue:
    return None if text is None else loads(text)


# What clients are shown: the rest


class FieldProblemView(ResponseModel):
    """One thing that is wrong: `pointer` is a JSON pointer into the body, `?` and the name of a query parameter, or the
    name of a header."""

    pointer: str
    detail: str
    code: str


class Problem(ResponseModel):
    """What went wrong (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    error: str
    message: str
    timestamp: TimestampText
    request_id: str
    errors: list[FieldProblemView] = Field(default=[], description="There when the request was invalid")


class BulkSuccess(ResponseModel):
    """One job of many; `existing` when it already had the `unique_key`."""

    job_id: str
    job: JobSummary
    existing: Literal[True] = True


class BulkFailure(ResponseModel):
    """Why one job of many was not created."""

    problem: Problem


BulkItem: TypeAlias = BulkSuccess | BulkFailure


class BulkResponse(ResponseModel):
    """What became of each job, in the order of the request."""

    results: list[BulkItem]


class UploadView(ResponseModel):
    """Where to put an upload, by PUT and without a key, until `expires_at`; and the reference that stands for it in
    `payload_ref` or `result_ref`, for a day."""

    reference: str
    url: str
    size: int
    expires_at: TimestampText


class TicketView(ResponseModel):
    """A ticket for one WebSocket, to be used once and soon."""

    ticket: str
    expires_at: TimestampText


class OpenApiDocument(ResponseModel):
    """An OpenAPI document."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]
