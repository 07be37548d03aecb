"""What travels over HTTP for workflows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, create_model

from vigil_core.api.jobs.job_type_models import job_of_type
from vigil_core.api.jobs.models import (
    DEFAULT_PAGE_SIZE,
    JobSummary,
    Moment,
    Name,
    NewJob,
    PageSize,
    PageToken,
    Retry,
    Seconds,
    Shown,
    ShownError,
    Text,
    TimeText,
    Wire,
    expression,
)
from vigil_core.api.validation import MAX_PROBLEMS, below, parse_body
from vigil_core.domain.errors import FieldProblem, ValidationFailed, raise_if_any
from vigil_core.domain.exact_json import JsonValue, whole
from vigil_core.domain.jobs import job as job_rules
from vigil_core.domain.jobs.conditions import MAX_CHARS
from vigil_core.domain.jobs.job import Priority
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.domain.jobs.status import JobStatus
from vigil_core.domain.timestamps import to_text, whole_ms
from vigil_core.domain.workflows.graph import Graph, Node
from vigil_core.domain.workflows.run import DecisionAction, NewRun, Run, RunKind, RunLine, RunStatus
from vigil_core.domain.workflows.run_state import FailurePolicy
from vigil_core.domain.workflows.validation import MAX_JOBS, Sketch, problems, too_much_to_read

NOT_OF_A_WORKFLOW = {"job_id", "payload_ref", "unique_key", "depends_on", "job_type", "name"}
"""Parts of a lone job that a job of a workflow has not, or has in another form."""
LONGEST_DELAY_S = 30 * 86_400

_JobParts: Any = create_model(
    "_JobParts",
    __base__=Wire,
    **{name: (field.annotation, field) for name, field in NewJob.model_fields.items() if name not in NOT_OF_A_WORKFLOW},  # type: ignore[call-overload]
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
    start_delay: Annotated[int, Field(ge=0, le=LONGEST_DELAY_S), BeforeValidator(whole)] | None = Field(
        default=None, description="Seconds after the run's creation, or planned time, before which it does not start"
    )


class WorkflowBody(Wire):
    """A workflow to run."""

    parts: ClassVar[frozenset[type[Wire]]] = frozenset({WorkflowJob})

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
    retry: Retry | None = Field(default=None, description="Of jobs that say nothing else")
    timeout: Seconds | None = Field(default=None, description="Seconds for the whole run, pauses included")
    max_concurrency: Annotated[int, Field(ge=1, le=MAX_JOBS), BeforeValidator(whole)] | None = Field(
        default=None, description="Jobs that may be pending or running at once"
    )
    health_check_interval: Seconds | None = Field(
        default=None, description="Seconds without a change of any job after which the run is announced as stalled"
    )
    output: Annotated[str, Field(min_length=1, max_length=MAX_CHARS), AfterValidator(expression)] | None = Field(
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


class RetryBody(Wire):
    """What of an ended run is to run again."""

    from_: Name | None = Field(
        default=None,
        alias="from",
        description="A job that runs again with all after it, whatever became of them, besides what failed",
    )


class DecisionBody(Wire):
    """What is to become of a failed job of a paused run."""

    job: Name
    action: DecisionAction = Field(
        description="`retry`: another attempt. `skip`: the run goes on as if it had succeeded, without a result. "
        "`abort`: the run fails"
    )
    note: Text | None = None


class CancelQuery(Wire):
    """Which runs to cancel; at least one filter. Filters are ANDed."""

    status: Literal["pending", "running", "paused"] | None = None
    name: Name | None = None
    correlation_id: Text | None = None
    created_before: Annotated[Moment, WithJsonSchema({"type": "string", "format": "date-time"})] | None = None
    page_token: PageToken | None = None


class WorkflowQuery(Wire):
    """Filters are ANDed."""

    status: list[RunStatus] | None = Field(default=None, description="May be repeated: any of them")
    name: Name | None = None
    correlation_id: Text | None = None
    trace_id: Text | None = None
    created_after: Moment | None = Field(default=None, description="At or after this time")
    created_before: Moment | None = Field(default=None, description="Before this time")
    page_size: PageSize = DEFAULT_PAGE_SIZE
    page_token: PageToken | None = None


class GraphQuery(Wire):
    """How the graph is to be drawn."""

    format: Literal["mermaid", "dot", "json", "svg"] | None = Field(default=None, description="`json` when absent")


class Statistics(Shown):
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
    def of(cls, counted: Mapping[JobStatus, int]) -> Statistics:
        """With the share of those that have ended, to one decimal."""
        total = sum(counted.values())
        ended = sum(counted[status] for status in ("completed", "failed", "skipped", "cancelled"))
        share = (Decimal(ended) * 100 / total).quantize(Decimal("0.1"))
        return cls(
            total=total, completion_percentage=share, **{str(status): count for status, count in counted.items()}
        )


class RunEvent(Shown):
    """A line of a run's history."""

    version: int
    at: TimeText
    event: RunKind
    by: str
    status: RunStatus
    why: str | None

    @classmethod
    def of(cls, line: RunLine) -> RunEvent:
        """The line."""
        return cls(
            version=line.version, at=to_text(line.at), event=line.kind, by=line.by, status=line.status, why=line.why
        )


class RunSummary(Shown):
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
    error: ShownError | None
    cancel_requested: bool
    trace_id: str | None
    correlation_id: str | None
    created_at: TimeText
    updated_at: TimeText
    started_at: TimeText | None
    finished_at: TimeText | None
    deadline_at: TimeText

    @classmethod
    def of(cls, run: Run) -> RunSummary:
        """The run, short."""
        return cls(**_summary(run))


class WholeRun(RunSummary):
    """A run of a workflow, with a page of its jobs in the order of its definition."""

    result: Any
    result_url: str | None = Field(description="Where the result can be read for an hour, when it is too large")
    undecided: list[str] = Field(description="Failed jobs that wait for a decision, up to 100")
    events: list[RunEvent] = Field(description="Its history, oldest first: the last 50 lines")
    jobs: list[JobSummary]
    next_page_token: str | None

    @classmethod
    def whole(
        cls,
        run: Run,
        *,
        result: JsonValue,
        result_url: str | None,
        undecided: Sequence[str],
        jobs: Sequence[JobSummary],
        next_page_token: str | None,
    ) -> WholeRun:
        """The run."""
        return cls(
            **_summary(run),
            result=result,
            result_url=result_url,
            undecided=list(undecided),
            events=[RunEvent.of(line) for line in run.log],
            jobs=list(jobs),
            next_page_token=next_page_token,
        )


class RunList(Shown):
    """One page of runs, newest first. It may be short; only an absent token is the end."""

    workflows: list[RunSummary]
    next_page_token: str | None


class Validated(Shown):
    """A workflow that could be run as it is."""

    valid: Literal[True]
    jobs: int
    edges: int


class CancelledRuns(Shown):
    """The runs that were asked to cancel. Only an absent token is the end."""

    cancelled: list[str]
    next_page_token: str | None


class GraphJob(Shown):
    """A job in the graph, and how it stands."""

    name: str
    job_id: str
    job_type: str
    status: JobStatus
    depends_on: list[str]
    trigger_rule: str
    condition: str | None
    reason: str | None


class GraphView(Shown):
    """The graph of a run."""

    workflow_id: str
    name: str
    status: RunStatus
    jobs: list[GraphJob]


FindTypes = Callable[[str, Iterable[str]], Mapping[str, JobType]]


def run_of_body(
    namespace: str,
    body: JsonValue,
    workflow_id: str,
    *,
    now: datetime,
    find_types: FindTypes,
    schedule: str | None = None,
) -> NewRun:
    """The run that a body describes, with what the types of its jobs add. Raises ValidationFailed: every problem."""
    said = parse_body(WorkflowBody, body)
    raise_if_any(too_much_to_read([raw.get("condition") for raw in said.jobs if isinstance(raw, Mapping)]))
    asked, wrong = _jobs_of(said.jobs)
    sketches = [_sketch(each, raw) for each, raw in zip(asked, said.jobs, strict=True)]
    # What a job's own model finds wrong with its condition is not said twice.
    told = {found.pointer for found in wrong}
    wrong += [found for found in problems(sketches) if found.pointer not in told]
    raise_if_any(wrong[:MAX_PROBLEMS])
    good = [each for each in asked if each is not None]
    types = find_types(namespace, {each.job_type or each.name for each in good})
    new: list[job_rules.NewJob] = []
    for place, each in enumerate(good):
        try:
            new.append(_new_job(each, said, types.get(each.job_type or each.name), now=now))
        except ValidationFailed as error:
            located = below(f"/jobs/{place}", error)
            assert isinstance(located, ValidationFailed)
            wrong += located.problems
    raise_if_any(wrong[:MAX_PROBLEMS])
    return NewRun(
        workflow_id=workflow_id,
        name=said.name,
        jobs=tuple(new),
        graph=_graph(good, new),
        description=said.description,
        failure_policy=said.failure_policy or "fail_fast",
        priority=said.priority or "normal",
        timeout_s=said.timeout,
        max_concurrency=said.max_concurrency,
        health_check_interval_s=said.health_check_interval,
        output=said.output,
        trace_id=said.trace_id,
        correlation_id=said.correlation_id,
        schedule=schedule,
    )


def _jobs_of(raw: Sequence[Any]) -> tuple[list[WorkflowJob | None], list[FieldProblem]]:
    asked: list[WorkflowJob | None] = []
    wrong: list[FieldProblem] = []
    for place, each in enumerate(raw):
        try:
            asked.append(parse_body(WorkflowJob, each))
        except ValidationFailed as error:
            located = below(f"/jobs/{place}", error)
            assert isinstance(located, ValidationFailed)
            wrong += located.problems
            asked.append(None)
    return asked, wrong


def _sketch(job: WorkflowJob | None, raw: Any) -> Sketch:
    """What is looked at of a job for the graph's sake, as far as it can be understood."""
    if job is not None:
        return Sketch(
            name=job.name,
            depends_on=tuple(job.depends_on or ()),
            cancel_losers=job.cancel_losers or False,
            trigger_rule=_part(job, "trigger_rule") or "all_success",
        )
    said = raw if isinstance(raw, Mapping) else {}
    name, after = said.get("name"), said.get("depends_on")
    names = [each for each in after if isinstance(each, str)] if isinstance(after, Sequence) else []
    # Of a job whose name cannot be understood no other can be said to have the same.
    return Sketch(name=name if isinstance(name, str) else f"\0{id(raw)}", depends_on=tuple(names))


def _new_job(asked: WorkflowJob, run: WorkflowBody, job_type: JobType | None, *, now: datetime) -> job_rules.NewJob:
    if asked.executor is not None and any(_part(asked, name) is not None for name in ("payload", "batch")):
        raise ValidationFailed.at("/executor", "a join runs nothing: it has neither payload nor batch")
    parts = {name: getattr(asked, name) for name in NewJob.model_fields if name in type(asked).model_fields}
    lone = NewJob.model_construct(**{**parts, "job_type": asked.job_type or asked.name, "depends_on": None})
    new = job_of_type(lone, job_type, "")
    delay = None if asked.start_delay is None else whole_ms(now + timedelta(seconds=asked.start_delay))
    moments = [moment for moment in (new.scheduled_at, delay) if moment is not None and moment > now]
    return replace(
        new,
        awaited=False,
        unique_key=None,
        executor=asked.executor or new.executor,
        priority=new.priority
        if _part(asked, "priority") or _has_default(job_type, "priority")
        else run.priority or new.priority,
        retry=new.retry or (None if run.retry is None else run.retry.to_domain()),
        trace_id=new.trace_id or run.trace_id,
        correlation_id=new.correlation_id or run.correlation_id,
        scheduled_at=max(moments, default=None),
    )


def _part(job: WorkflowJob, name: str) -> Any:
    """What it has in common with a lone job."""
    return getattr(job, name)


def _has_default(job_type: JobType | None, name: str) -> bool:
    return job_type is not None and name in job_type.defaults


def _graph(asked: Sequence[WorkflowJob], new: Sequence[job_rules.NewJob]) -> Graph:
    places = {each.name: place for place, each in enumerate(asked)}
    return Graph(
        nodes=[
            Node(
                name=each.name,
                job_type=job.job_type,
                depends_on=tuple(places[name] for name in each.depends_on or ()),
                trigger_rule=job.trigger_rule,
                cancel_losers=each.cancel_losers or False,
                condition=job.condition,
                delayed=job.scheduled_at is not None,
            )
            for each, job in zip(asked, new, strict=True)
        ]
    )


def _summary(run: Run) -> dict[str, Any]:
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
        "error": run.error and ShownError(code=run.error.code, message=run.error.message),
        "cancel_requested": run.cancel_requested_by is not None,
        "trace_id": run.trace_id,
        "correlation_id": run.correlation_id,
        "created_at": to_text(run.created_at),
        "updated_at": to_text(run.updated_at),
        "started_at": run.started_at and to_text(run.started_at),
        "finished_at": run.finished_at and to_text(run.finished_at),
        "deadline_at": to_text(run.deadline_at),
    }
