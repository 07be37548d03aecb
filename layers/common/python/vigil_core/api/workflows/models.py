"""Response models of workflows, and the parsing of a definition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from vigil_core.api.jobs.models import ErrorView, JobSummary
from vigil_core.api.jobs.new_job import merge_new_job
from vigil_core.domain.errors import FieldProblem, ValidationFailed, raise_if_any
from vigil_core.domain.exact_json import MAX_PROBLEMS, JsonValue
from vigil_core.domain.jobs import job as job_rules
from vigil_core.domain.jobs.job import Priority
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.domain.jobs.status import JobStatus
from vigil_core.domain.limits import check_jobs_per_request, count_jobs
from vigil_core.domain.timestamps import to_text, truncate_to_ms
from vigil_core.domain.workflows.graph import Graph, Node
from vigil_core.domain.workflows.run import NewWorkflowRun, RunLogEntry, RunLogKind, RunStatus, WorkflowRun
from vigil_core.domain.workflows.run_state import FailurePolicy
from vigil_core.domain.workflows.validation import MAX_JOBS, NodeSpec, condition_size_problems, graph_problems
from vigil_core.schemas.base import ResponseModel, TimestampText
from vigil_core.schemas.jobs import NewJobBody
from vigil_core.schemas.validation import parse_body, prefix_pointers
from vigil_core.schemas.workflows import WorkflowBody, WorkflowJob
from vigil_core.services.cpu_limits import SchemaCpu


class WorkflowStatistics(ResponseModel):
    """The number of jobs of a run by status. The numbers add up to `total`."""

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
        """Return the numbers and the percentage of ended jobs, to one decimal."""
        total = sum(counts.values())
        ended = sum(counts[status] for status in ("completed", "failed", "skipped", "cancelled"))
        ended_percentage = (Decimal(ended) * 100 / total).quantize(Decimal("0.1"))
        return cls(
            total=total,
            completion_percentage=ended_percentage,
            **{str(status): count for status, count in counts.items()},
        )


class WorkflowRunEvent(ResponseModel):
    """One change of a run."""

    version: int
    at: TimestampText
    event: RunLogKind
    by: str
    status: RunStatus
    why: str | None

    @classmethod
    def from_log(cls, entry: RunLogEntry) -> WorkflowRunEvent:
        """Return the change."""
        return cls(
            version=entry.version,
            at=to_text(entry.occurred_at),
            event=entry.kind,
            by=entry.actor,
            status=entry.status,
            why=entry.reason,
        )


class WorkflowRunSummary(ResponseModel):
    """A workflow run without its jobs."""

    workflow_id: str
    name: str
    description: str | None
    status: RunStatus
    failure_policy: FailurePolicy
    priority: Priority
    timeout: int | None
    max_concurrency: int | None
    health_check_interval: int | None
    total: int = Field(description="Number of jobs")
    generation: int = Field(description="1, and one more for each retry of the run")
    error: ErrorView | None
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
        """Return the run without its jobs."""
        return cls(**_summary_members(run))


class WorkflowRunView(WorkflowRunSummary):
    """A workflow run with a page of its jobs, in the order of the definition."""

    result: Any
    result_url: str | None = Field(
        description="A URL from which the result can be read for an hour, if it is too large for the answer"
    )
    undecided: list[str] = Field(description="Names of failed jobs that need a decision, up to 100")
    events: list[WorkflowRunEvent] = Field(description="The last 50 changes of the run, oldest first")
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
        """Return the run with a page of its jobs."""
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
    """One page of runs, newest first. A page may be short. Only a null token marks the end."""

    workflows: list[WorkflowRunSummary]
    next_page_token: str | None


class WorkflowValidation(ResponseModel):
    """The sizes of a valid workflow."""

    valid: Literal[True]
    jobs: int
    edges: int


class CancelledWorkflowRuns(ResponseModel):
    """One page of runs for which Vigil accepted the cancel. Only a null token marks the end."""

    cancelled: list[str]
    next_page_token: str | None


class GraphJob(ResponseModel):
    """A job in the graph, with its current status."""

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
    max_jobs: int = MAX_JOBS,
) -> NewWorkflowRun:
    """Parse a workflow and add the defaults of the job types.

    Raises:
        RequestLimitExceeded: The jobs and the items of their batches are more than `max_jobs`.
        ValidationFailed: With every problem, up to `MAX_PROBLEMS`.
    """
    parsed = parse_body(WorkflowBody, body)
    check_jobs_per_request(count_jobs(parsed.jobs), max_jobs)
    raise_if_any(condition_size_problems([raw.get("condition") for raw in parsed.jobs if isinstance(raw, Mapping)]))
    job_bodies, problems = _parse_jobs(parsed.jobs)
    node_specs = [_node_spec(job_body, raw) for job_body, raw in zip(job_bodies, parsed.jobs, strict=True)]
    # The model of a job and the graph can report the same condition. Report it once.
    reported_pointers = {problem.pointer for problem in problems}
    problems += [problem for problem in graph_problems(node_specs) if problem.pointer not in reported_pointers]
    raise_if_any(problems[:MAX_PROBLEMS])
    valid_bodies = [job_body for job_body in job_bodies if job_body is not None]
    types = find_types(namespace, {job_body.job_type or job_body.name for job_body in valid_bodies})
    new_jobs = _build_new_jobs(valid_bodies, parsed, types, now=now)
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


def _build_new_jobs(
    bodies: Sequence[WorkflowJob], run: WorkflowBody, types: Mapping[str, JobType], *, now: datetime
) -> list[job_rules.NewJob]:
    new_jobs: list[job_rules.NewJob] = []
    problems: list[FieldProblem] = []
    schema_cpu = SchemaCpu(len(bodies))
    for index, body in enumerate(bodies):
        try:
            new_jobs.append(_new_job(body, run, types.get(body.job_type or body.name), schema_cpu, now=now))
        except ValidationFailed as error:
            problems += _located_problems(index, error)
    raise_if_any(problems[:MAX_PROBLEMS])
    return new_jobs


def _located_problems(index: int, error: ValidationFailed) -> tuple[FieldProblem, ...]:
    located = prefix_pointers(f"/jobs/{index}", error)
    assert isinstance(located, ValidationFailed)
    return located.problems


def _parse_jobs(raw_jobs: Sequence[Any]) -> tuple[list[WorkflowJob | None], list[FieldProblem]]:
    job_bodies: list[WorkflowJob | None] = []
    problems: list[FieldProblem] = []
    for index, raw_job in enumerate(raw_jobs):
        try:
            job_bodies.append(parse_body(WorkflowJob, raw_job))
        except ValidationFailed as error:
            problems += _located_problems(index, error)
            job_bodies.append(None)
    return job_bodies, problems


def _node_spec(job: WorkflowJob | None, raw: Any) -> NodeSpec:
    """Return the parts of a job that the graph checks need, as far as an invalid job has them."""
    if job is not None:
        return NodeSpec(
            name=job.name,
            depends_on=tuple(job.depends_on or ()),
            condition=_inherited_member(job, "condition"),
            cancel_losers=job.cancel_losers or False,
            trigger_rule=_inherited_member(job, "trigger_rule") or "all_success",
        )
    members = raw if isinstance(raw, Mapping) else {}
    name, depends_on = members.get("name"), members.get("depends_on")
    names = [entry for entry in depends_on if isinstance(entry, str)] if isinstance(depends_on, Sequence) else []
    # A job with an invalid name gets a unique one, so that no other job counts as its duplicate.
    return NodeSpec(name=name if isinstance(name, str) else f"\0{id(raw)}", depends_on=tuple(names))


def _new_job(
    body: WorkflowJob, run: WorkflowBody, job_type: JobType | None, schema_cpu: SchemaCpu, *, now: datetime
) -> job_rules.NewJob:
    if body.executor is not None and any(_inherited_member(body, name) is not None for name in ("payload", "batch")):
        raise ValidationFailed.at("/executor", "must be absent with payload or batch: a join runs nothing")
    members = {name: getattr(body, name) for name in NewJobBody.model_fields if name in type(body).model_fields}
    standalone_body = NewJobBody.model_construct(
        **{**members, "job_type": body.job_type or body.name, "depends_on": None}
    )
    new = merge_new_job(standalone_body, job_type, "", schema_cpu)
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
    """Return a member that WorkflowJob takes over from NewJobBody."""
    return getattr(job, name)


def _has_default(job_type: JobType | None, name: str) -> bool:
    return job_type is not None and name in job_type.defaults


def _build_graph(bodies: Sequence[WorkflowJob], new_jobs: Sequence[job_rules.NewJob]) -> Graph:
    index_by_name = {body.name: index for index, body in enumerate(bodies)}
    return Graph(
        nodes=[
            Node(
                name=body.name,
                job_type=job.job_type,
                depends_on=tuple(index_by_name[name] for name in body.depends_on or ()),
                trigger_rule=job.trigger_rule,
                cancel_losers=body.cancel_losers or False,
                condition=job.condition,
                has_start_delay=job.scheduled_at is not None,
            )
            for body, job in zip(bodies, new_jobs, strict=True)
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
        "error": run.error and ErrorView(code=run.error.code, message=run.error.message),
        "cancel_requested": run.cancel_requested_by is not None,
        "trace_id": run.trace_id,
        "correlation_id": run.correlation_id,
        "created_at": to_text(run.created_at),
        "updated_at": to_text(run.updated_at),
        "started_at": run.started_at and to_text(run.started_at),
        "finished_at": run.finished_at and to_text(run.finished_at),
        "deadline_at": to_text(run.deadline_at),
    }
