"""What travels over HTTP for workflows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, create_model

from vigil_core.api.jobs.job_type_models import build_new_job
from vigil_core.api.jobs.models import (
    DEFAULT_PAGE_SIZE,
    JobErrorView,
    JobSummary,
    Name,
    NewJobBody,
    PageSize,
    PageToken,
    RequestModel,
    ResponseModel,
    RetryOptions,
    Seconds,
    Text,
    Timestamp,
    TimestampText,
    require_valid_expression,
)
from vigil_core.api.validation import MAX_PROBLEMS, parse_body, prefix_pointers
from vigil_core.domain.errors import FieldProblem, ValidationFailed, raise_if_any
from vigil_core.domain.exact_json import JsonValue, integral_to_int
from vigil_core.domain.jobs import job as job_rules
from vigil_core.domain.jobs.conditions import MAX_CHARS
from vigil_core.domain.jobs.job import Priority
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.domain.jobs.status import JobStatus
from vigil_core.domain.timestamps import to_text, truncate_to_ms
from vigil_core.domain.workflows.graph import Graph, Node
from vigil_core.domain.workflows.run import (
    DecisionAction,
    NewWorkflowRun,
    RunLogEntry,
    RunLogKind,
    RunStatus,
    WorkflowRun,
)
from vigil_core.domain.workflows.run_state import FailurePolicy
from vigil_core.domain.workflows.validation import MAX_JOBS, NodeSpec, condition_size_problems, graph_problems

EXCLUDED_JOB_MEMBERS = {"job_id", "payload_ref", "unique_key", "depends_on", "job_type", "name"}
"""Parts of a lone job that a job of a workflow has not, or has in another form."""
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
    """A job of a workflow: all that a job takes, with names in `depends_on`."""

    name: Name = Field(examples=["extract"])
    job_type: Name | None = Field(default=None, description="The job's name when absent")
    depends_on: list[Name] | None = Field(
        default=None,
        description="Names of jobs of this workflow: it waits until they have ended as `trigger_rule` wants it",
    )
    executor: Literal["join"] | None = Field(
        default=None,
        description="`join`: it runs nothing, and completes with what the jobs before it came to: the winner's result "
        "for `one_success`, else the result of each by its name",
    )
    cancel_losers: bool | None = Field(
        default=None, description="With `one_success`: once one has succeeded, the others before it are cancelled"
    )
    start_delay: Annotated[int, Field(ge=0, le=MAX_START_DELAY_S), BeforeValidator(integral_to_int)] | None = Field(
        default=None, description="Seconds after the run's creation, or planned time, before which it does not start"
    )


class WorkflowBody(RequestModel):
    """A workflow to run."""

    nested_models: ClassVar[frozenset[type[RequestModel]]] = frozenset({WorkflowJob})

    version: Literal["1"] | None = Field(default=None, description="Of this format; `1`, also when absent")
    name: Name = Field(examples=["data_pipeline"])
    description: Text | None = None
    failure_policy: FailurePolicy | None = Field(
        default=None,
        description="What a job does that fails for good. `fail_fast`, also when absent: all else is cancelled. "
        "`continue_on_failure`: what depends on it is skipped, all else goes on. `manual`: the run is paused until an "
        "operator decides",
    )
    priority: Priority | None = Field(default=None, description="Of jobs that say nothing else; `normal` when absent")
    retry: RetryOptions | None = Field(default=None, description="Of jobs that say nothing else")
    timeout: Seconds | None = Field(default=None, description="Seconds for the whole run, pauses included")
    max_concurrency: Annotated[int, Field(ge=1, le=MAX_JOBS), BeforeValidator(integral_to_int)] | None = Field(
        default=None, description="Jobs that may be pending or running at once"
    )
    health_check_interval: Seconds | None = Field(
        default=None, description="Seconds without a change of any job after which the run is announced as stalled"
    )
    output: (
        Annotated[str, Field(min_length=1, max_length=MAX_CHARS), AfterValidator(require_valid_expression)] | None
    ) = Field(
        default=None,
        description="JMESPath over the results of its jobs, which is its result; when absent, the result of its only "
        "job on which no other depends",
        examples=["{rows: extract.result.rows}"],
    )
    trace_id: Text | None = None
    correlation_id: Text | None = Field(default=None, examples=["daily-report-001"])
    jobs: Annotated[list[Any], Field(min_length=1, max_length=MAX_JOBS)] = Field(
        json_schema_extra={"items": {"$ref": "#/components/schemas/WorkflowJob"}}
    )


class RetryWorkflowBody(RequestModel):
    """What of an ended run is to run again."""

    from_: Name | None = Field(
        default=None,
        alias="from",
        description="A job that runs again with all after it, whatever became of them, besides what failed",
    )


class DecisionBody(RequestModel):
    """What is to become of a failed job of a paused run."""

    job: Name
    action: DecisionAction = Field(
        description="`retry`: another attempt. `skip`: the run goes on as if it had succeeded, without a result. "
        "`abort`: the run fails"
    )
    note: Text | None = None


class CancelWorkflowsBody(RequestModel):
    """Which runs to cancel; at least one filter. Filters are ANDed."""

    status: Literal["pending", "running", "paused"] | None = None
    name: Name | None = None
    correlation_id: Text | None = None
    created_before: Annotated[Timestamp, WithJsonSchema({"type": "string", "format": "date-time"})] | None = None
    page_token: PageToken | None = None


class WorkflowQuery(RequestModel):
    """Filters are ANDed."""

    status: list[RunStatus] | None = Field(default=None, description="May be repeated: any of them")
    name: Name | None = None
    correlation_id: Text | None = None
    trace_id: Text | None = None
    created_after: Timestamp | None = Field(default=None, description="At or after this time")
    created_before: Timestamp | None = Field(default=None, description="Before this time")
    page_size: PageSize = DEFAULT_PAGE_SIZE
    page_token: PageToken | None = None


class GraphQuery(RequestModel):
    """How the graph is to be drawn."""

    format: Literal["mermaid", "dot", "json", "svg"] | None = Field(default=None, description="`json` when absent")


class WorkflowStatistics(ResponseModel):
    """How many jobs of a run stand how. They add up to `total`."""

    total: int
    completed: int
    failed: int
    skipped: int
    cancelled: int
    waiting: int
    scheduled: int
    pending: int
    running: int
    completion_percentage: Annotated[Decimal, WithJsonSchema({"type": "number", "minimum": 0, "maximum": 100})]

    @classmethod
    def from_counts(cls, counts: Mapping[JobStatus, int]) -> WorkflowStatistics:
        """With the share of those that have ended, to one decimal."""
        total = sum(counts.values())
        ended = sum(counts[status] for status in ("completed", "failed", "skipped", "cancelled"))
        ended_percentage = (Decimal(ended) * 100 / total).quantize(Decimal("0.1"))
        return cls(
            total=total,
            completion_percentage=ended_percentage,
            **{str(status): count for status, count in counts.items()},
        )


class WorkflowRunEvent(ResponseModel):
    """A line of a run's history."""

    version: int
    at: TimestampText
    event: RunLogKind
    by: str
    status: RunStatus
    why: str | None

    @classmethod
    def from_log(cls, entry: RunLogEntry) -> WorkflowRunEvent:
        """The line."""
        return cls(
            version=entry.version,
            at=to_text(entry.occurred_at),
            event=entry.kind,
            by=entry.actor,
            status=entry.status,
            why=entry.reason,
        )


class WorkflowRunSummary(ResponseModel):
    """A run of a workflow, without its jobs."""

    workflow_id: str
    name: str
    description: str | None
    status: RunStatus
    failure_policy: FailurePolicy
    priority: Priority
    timeout: int | None
    max_concurrency: int | None
    health_check_interval: int | None
    total: int = Field(description="How many jobs it has")
    generation: int = Field(description="How often it was begun: retries begin it anew")
    error: JobErrorView | None
    cancel_requested: bool
    trace_id: str | None
    correlation_id: str | None
    created_at: TimestampText
    updated_at: TimestampText
    started_at: TimestampText | None
    finished_at: TimestampText | None
    deadline_at: TimestampText

    @classmethod
    def from_run(cls, run: WorkflowRun) -> WorkflowRunSummary:
        """The run, short."""
        return cls(**_summary_members(run))


class WorkflowRunView(WorkflowRunSummary):
    """A run of a workflow, with a page of its jobs in the order of its definition."""

    result: Any
    result_url: str | None = Field(description="Where the result can be read for an hour, when it is too large")
    undecided: list[str] = Field(description="Failed jobs that wait for a decision, up to 100")
    events: list[WorkflowRunEvent] = Field(description="Its history, oldest first: the last 50 lines")
    jobs: list[JobSummary]
    next_page_token: str | None

    @classmethod
    def with_jobs(
        cls,
        run: WorkflowRun,
        *,
        result: JsonValue,
        result_url: str | None,
        undecided: Sequence[str],
        jobs: Sequence[JobSummary],
        next_page_token: str | None,
    ) -> WorkflowRunView:
        """The run."""
        return cls(
            **_summary_members(run),
            result=result,
            result_url=result_url,
            undecided=list(undecided),
            events=[WorkflowRunEvent.from_log(line) for line in run.log],
            jobs=list(jobs),
            next_page_token=next_page_token,
        )


class WorkflowRunList(ResponseModel):
    """One page of runs, newest first. It may be short; only an absent token is the end."""

    workflows: list[WorkflowRunSummary]
    next_page_token: str | None


class WorkflowValidation(ResponseModel):
    """A workflow that could be run as it is."""

    valid: Literal[True]
    jobs: int
    edges: int


class CancelledWorkflowRuns(ResponseModel):
    """The runs that were asked to cancel. Only an absent token is the end."""

    cancelled: list[str]
    next_page_token: str | None


class GraphJob(ResponseModel):
    """A job in the graph, and how it stands."""

    name: str
    job_id: str
    job_type: str
    status: JobStatus
    depends_on: list[str]
    trigger_rule: str
    condition: str | None
    reason: str | None


class GraphView(ResponseModel):
    """The graph of a run."""

    workflow_id: str
    name: str
    status: RunStatus
    jobs: list[GraphJob]


FindTypes = Callable[[str, Iterable[str]], Mapping[str, JobType]]


def parse_workflow(
    namespace: str,
    body: JsonValue,
    workflow_id: str,
    *,
    now: datetime,
    find_types: FindTypes,
    schedule: str | None = None,
) -> NewWorkflowRun:
    """The run that a body describes, with what the types of its jobs add. Raises ValidationFailed: every problem."""
    parsed = parse_body(WorkflowBody, body)
    raise_if_any(condition_size_problems([raw.get("condition") for raw in parsed.jobs if isinstance(raw, Mapping)]))
    job_bodies, found_problems = _parse_jobs(parsed.jobs)
    node_specs = [_node_spec(job_body, raw) for job_body, raw in zip(job_bodies, parsed.jobs, strict=True)]
    # What a job's own model finds wrong with its condition is not said twice.
    reported_pointers = {found.pointer for found in found_problems}
    found_problems += [found for found in graph_problems(node_specs) if found.pointer not in reported_pointers]
    raise_if_any(found_problems[:MAX_PROBLEMS])
    valid_bodies = [each for each in job_bodies if each is not None]
    types = find_types(namespace, {each.job_type or each.name for each in valid_bodies})
    new_jobs: list[job_rules.NewJob] = []
    for index, each in enumerate(valid_bodies):
        try:
            new_jobs.append(_new_job(each, parsed, types.get(each.job_type or each.name), now=now))
        except ValidationFailed as error:
            located = prefix_pointers(f"/jobs/{index}", error)
            assert isinstance(located, ValidationFailed)
            found_problems += located.problems
    raise_if_any(found_problems[:MAX_PROBLEMS])
    return NewWorkflowRun(
        workflow_id=workflow_id,
        name=parsed.name,
        jobs=tuple(new_jobs),
        graph=_build_graph(valid_bodies, new_jobs),
        description=parsed.description,
        failure_policy=parsed.failure_policy or "fail_fast",
        priority=parsed.priority or "normal",
        timeout_s=parsed.timeout,
        max_concurrency=parsed.max_concurrency,
        health_check_interval_s=parsed.health_check_interval,
        output=parsed.output,
        trace_id=parsed.trace_id,
        correlation_id=parsed.correlation_id,
        schedule=schedule,
    )


def _parse_jobs(raw_jobs: Sequence[Any]) -> tuple[list[WorkflowJob | None], list[FieldProblem]]:
    job_bodies: list[WorkflowJob | None] = []
    found_problems: list[FieldProblem] = []
    for index, raw_job in enumerate(raw_jobs):
        try:
            job_bodies.append(parse_body(WorkflowJob, raw_job))
        except ValidationFailed as error:
            located = prefix_pointers(f"/jobs/{index}", error)
            assert isinstance(located, ValidationFailed)
            found_problems += located.problems
            job_bodies.append(None)
    return job_bodies, found_problems


def _node_spec(job: WorkflowJob | None, raw: Any) -> NodeSpec:
    """What is looked at of a job for the graph's sake, as far as it can be understood."""
    if job is not None:
        return NodeSpec(
            name=job.name,
            depends_on=tuple(job.depends_on or ()),
            cancel_losers=job.cancel_losers or False,
            trigger_rule=_inherited_member(job, "trigger_rule") or "all_success",
        )
    members = raw if isinstance(raw, Mapping) else {}
    name, depends_on = members.get("name"), members.get("depends_on")
    names = [each for each in depends_on if isinstance(each, str)] if isinstance(depends_on, Sequence) else []
    # Of a job whose name cannot be understood no other can be said to have the same.
    return NodeSpec(name=name if isinstance(name, str) else f"\0{id(raw)}", depends_on=tuple(names))


def _new_job(body: WorkflowJob, run: WorkflowBody, job_type: JobType | None, *, now: datetime) -> job_rules.NewJob:
    if body.executor is not None and any(_inherited_member(body, name) is not None for name in ("payload", "batch")):
        raise ValidationFailed.at("/executor", "a join runs nothing: it has neither payload nor batch")
    members = {name: getattr(body, name) for name in NewJobBody.model_fields if name in type(body).model_fields}
    standalone_body = NewJobBody.model_construct(
        **{**members, "job_type": body.job_type or body.name, "depends_on": None}
    )
    new = build_new_job(standalone_body, job_type, "")
    delayed_until = None if body.start_delay is None else truncate_to_ms(now + timedelta(seconds=body.start_delay))
    start_times = [moment for moment in (new.scheduled_at, delayed_until) if moment is not None and moment > now]
    return replace(
        new,
        has_waits=False,
        unique_key=None,
        executor=body.executor or new.executor,
        priority=new.priority
        if _inherited_member(body, "priority") or _has_default(job_type, "priority")
        else run.priority or new.priority,
        retry=new.retry or (None if run.retry is None else run.retry.to_domain()),
        trace_id=new.trace_id or run.trace_id,
        correlation_id=new.correlation_id or run.correlation_id,
        scheduled_at=max(start_times, default=None),
    )


def _inherited_member(job: WorkflowJob, name: str) -> Any:
    """What it has in common with a lone job."""
    return getattr(job, name)


def _has_default(job_type: JobType | None, name: str) -> bool:
    return job_type is not None and name in job_type.defaults


def _build_graph(bodies: Sequence[WorkflowJob], new_jobs: Sequence[job_rules.NewJob]) -> Graph:
    index_by_name = {each.name: place for place, each in enumerate(bodies)}
    return Graph(
        nodes=[
            Node(
                name=each.name,
                job_type=job.job_type,
                depends_on=tuple(index_by_name[name] for name in each.depends_on or ()),
                trigger_rule=job.trigger_rule,
                cancel_losers=each.cancel_losers or False,
                condition=job.condition,
                has_start_delay=job.scheduled_at is not None,
            )
            for each, job in zip(bodies, new_jobs, strict=True)
        ]
    )


def _summary_members(run: WorkflowRun) -> dict[str, Any]:
    return {
        "workflow_id": run.workflow_id,
        "name": run.name,
        "description": run.description,
        "status": run.status,
        "failure_policy": run.failure_policy,
        "priority": run.priority,
        "timeout": run.timeout_s,
        "max_concurrency": run.max_concurrency,
        "health_check_interval": run.health_check_interval_s,
        "total": run.total,
        "generation": run.generation,
        "error": run.error and JobErrorView(code=run.error.code, message=run.error.message),
        "cancel_requested": run.cancel_requested_by is not None,
        "trace_id": run.trace_id,
        "correlation_id": run.correlation_id,
        "created_at": to_text(run.created_at),
        "updated_at": to_text(run.updated_at),
        "started_at": run.started_at and to_text(run.started_at),
        "finished_at": run.finished_at and to_text(run.finished_at),
        "deadline_at": to_text(run.deadline_at),
    }
