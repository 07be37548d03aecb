"""Request models of workflows."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, create_model

from vigil_core.domain.exact_json import integral_to_int
from vigil_core.domain.jobs.conditions import MAX_CHARS
from vigil_core.domain.jobs.job import Priority
from vigil_core.domain.workflows.run import DecisionAction, RunStatus
from vigil_core.domain.workflows.run_state import FailurePolicy
from vigil_core.domain.workflows.validation import MAX_JOBS
from vigil_core.schemas.base import (
    DEFAULT_PAGE_SIZE,
    Label,
    Message,
    Name,
    PageSize,
    PageToken,
    RequestModel,
    Seconds,
    Timestamp,
    require_valid_expression,
)
from vigil_core.schemas.jobs import NewJobBody, RetryOptions

EXCLUDED_JOB_MEMBERS = {"job_id", "payload_ref", "unique_key", "depends_on", "job_type", "name"}
"""Members of a standalone job that a job of a workflow does not have, or has in another form."""
MAX_START_DELAY_S = 30 * 86_400

_JobParts: Any = create_model(
    "_JobParts",
    __base__=RequestModel,
    **{
        name: (field.annotation, field)
        for name, field in NewJobBody.model_fields.items()
        if name not in EXCLUDED_JOB_MEMBERS
    },  # type: ignore[call-overload]
)


class WorkflowJob(_JobParts):
    """A job of a workflow: the members of a job, with names instead of ids in `depends_on`."""

    name: Name = Field(examples=["extract"])
    job_type: Name | None = Field(default=None, description="The job's name when absent")
    depends_on: list[Name] | None = Field(
        default=None,
        description="Names of jobs of this workflow. The job waits for their end and for its `trigger_rule`",
    )
    executor: Literal["join"] | None = Field(
        default=None,
        description="`join`: the job runs nothing and completes with the results of its dependencies: with "
        "`one_success` the result of the winner, otherwise each result by the name of its job",
    )
    cancel_losers: bool | None = Field(
        default=None,
        description="With `one_success`: the first dependency that succeeds cancels the other dependencies",
    )
    start_delay: Annotated[int, Field(ge=0, le=MAX_START_DELAY_S), BeforeValidator(integral_to_int)] | None = Field(
        default=None,
        description="The job does not start before this many seconds after the run's creation or planned time",
    )


class WorkflowBody(RequestModel):
    """A workflow to run."""

    nested_models: ClassVar[frozenset[type[RequestModel]]] = frozenset({WorkflowJob})

    version: Literal["1"] | None = Field(default=None, description="Version of this format. `1` when absent")
    name: Name = Field(examples=["data_pipeline"])
    description: Message | None = None
    failure_policy: FailurePolicy | None = Field(
        default=None,
        description="What the failure of a job does to the run. `fail_fast` (default): all open jobs are cancelled. "
        "`continue_on_failure`: the jobs that depend on it are skipped, the others continue. `manual`: the run is "
        "paused until an operator decides",
    )
    priority: Priority | None = Field(
        default=None, description="Priority of the jobs that set none. `normal` when absent"
    )
    retry: RetryOptions | None = Field(default=None, description="Retry policy of the jobs that set none")
    timeout: Seconds | None = Field(default=None, description="Longest time of the run in seconds, including pauses")
    max_concurrency: Annotated[int, Field(ge=1, le=MAX_JOBS), BeforeValidator(integral_to_int)] | None = Field(
        default=None, description="Maximum number of jobs that are pending or running at the same time"
    )
    health_check_interval: Seconds | None = Field(
        default=None, description="Vigil announces the run as stalled when no job has changed for this many seconds"
    )
    output: (
        Annotated[str, Field(min_length=1, max_length=MAX_CHARS), AfterValidator(require_valid_expression)] | None
    ) = Field(
        default=None,
        description="JMESPath over the results of the jobs. Its value is the result of the run. When absent, the "
        "result is that of the only job without successors",
        examples=["{rows: extract.result.rows}"],
    )
    trace_id: Label | None = None
    correlation_id: Label | None = Field(default=None, examples=["daily-report-001"])
    jobs: Annotated[list[Any], Field(min_length=1, max_length=MAX_JOBS)] = Field(
        json_schema_extra={"items": {"$ref": "#/components/schemas/WorkflowJob"}}
    )


class RetryWorkflowBody(RequestModel):
    """The jobs of an ended run that run again."""

    from_: Name | None = Field(
        default=None,
        alias="from",
        description="A job that runs again with all its successors, whatever its status, besides the failed jobs",
    )


class DecisionBody(RequestModel):
    """A decision on a failed job of a paused run."""

    job: Name
    action: DecisionAction = Field(
        description="`retry`: start another attempt. `skip`: continue as if the job had succeeded, without a result. "
        "`abort`: fail the run"
    )
    note: Message | None = None


class CancelWorkflowsBody(RequestModel):
    """The runs to cancel: at least one filter. A run must pass all of them."""

    status: Literal["pending", "running", "paused"] | None = None
    name: Name | None = None
    correlation_id: Label | None = None
    created_before: Annotated[Timestamp, WithJsonSchema({"type": "string", "format": "date-time"})] | None = None
    page_token: PageToken | None = None


class WorkflowQuery(RequestModel):
    """Filters of the list of runs. A run must pass all of them."""

    status: list[RunStatus] | None = Field(default=None, description="May be repeated: any of these statuses")
    name: Name | None = None
    correlation_id: Label | None = None
    trace_id: Label | None = None
    created_after: Timestamp | None = Field(default=None, description="Created at or after this time")
    created_before: Timestamp | None = Field(default=None, description="Created before this time")
    page_size: PageSize = DEFAULT_PAGE_SIZE
    page_token: PageToken | None = None


class GraphQuery(RequestModel):
    """The format of a run's graph."""

    format: Literal["mermaid", "dot", "json", "svg"] | None = Field(default=None, description="`json` when absent")
