"""The routes of workflows."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

from vigil_core.api.jobs.models import JobSummary
from vigil_core.api.routing import Call, ResponseSpec, RouteResponse, Routes
from vigil_core.api.workflows.models import (
    CancelledWorkflowRuns,
    GraphJob,
    GraphView,
    WorkflowRunList,
    WorkflowRunSummary,
    WorkflowRunView,
    WorkflowStatistics,
    WorkflowValidation,
    parse_workflow,
)
from vigil_core.domain.access import Scope
from vigil_core.domain.diagrams import render
from vigil_core.domain.errors import (
    CircularDependency,
    IdempotencyInProgress,
    IdempotencyKeyReused,
    InvalidTransition,
    MissingDependency,
    PayloadTooLarge,
    RequestLimitExceeded,
    ValidationFailed,
    WorkflowNotFound,
)
from vigil_core.domain.exact_json import JsonValue, loads_stored
from vigil_core.domain.workflows.run import NewWorkflowRun, WorkflowRun
from vigil_core.schemas.base import NoContent, PageQuery
from vigil_core.schemas.workflows import (
    CancelWorkflowsBody,
    DecisionBody,
    GraphQuery,
    RetryWorkflowBody,
    WorkflowBody,
    WorkflowQuery,
)
from vigil_core.services.idempotency import HttpResponse, run_idempotent
from vigil_core.services.jobs.open_dependencies import open_dependencies
from vigil_core.services.long_poll import SlotRequest
from vigil_core.services.workflows import commands
from vigil_core.services.workflows.commands import find_run, job_id_at, long_poll_run
from vigil_core.services.workflows.create import create_run, prepare_jobs
from vigil_core.services.workflows.queries import (
    RunFilter,
    diagram_jobs,
    list_run_jobs,
    list_runs,
    names_awaiting_decision,
    run_statistics,
)

ROUTES = Routes("workflows")
PREPARE_TIMEOUT_S = 20
"""Longest time to wait for the creation of all jobs before the answer."""
DECISION_TIMEOUT_S = 10
CANCEL_TIMEOUT_S = 3
WAIT_WITHOUT_SLOT = timedelta(seconds=1)
"""The time that a command waits for its effect if there is no slot for a long poll."""
GRAPH_RENDERERS = {
    "mermaid": (render.mermaid, "text/plain; charset=utf-8"),
    "dot": (render.dot, "text/plain; charset=utf-8"),
    "svg": (render.svg, "image/svg+xml"),
}
_RUN_RESPONSES = {200: ResponseSpec(description="The run after the change", models=(WorkflowRunSummary,))}


@ROUTES.route(
    "POST",
    "/v1/workflows",
    scope=Scope.SUBMIT,
    documented_body=WorkflowBody,
    headers=("Idempotency-Key", "Prefer"),
    responses={
        200: ResponseSpec(
            description="The run, which ended during the long poll",
            models=(WorkflowRunView,),
            headers=("Location", "Preference-Applied", "Retry-After"),
        ),
        202: ResponseSpec(
            description="The new run",
            models=(WorkflowRunSummary,),
            headers=("Location", "Preference-Applied", "Retry-After"),
        ),
    },
    problems=(
        MissingDependency,
        CircularDependency,
        PayloadTooLarge,
        RequestLimitExceeded,
        IdempotencyKeyReused,
        IdempotencyInProgress,
    ),
)
def create_workflow(call: Call, body: Any) -> RouteResponse:
    """Start a workflow run.

    Usually all jobs exist when the answer arrives. The jobs of a very large run may need some more seconds. With
    `Prefer: wait=N` the answer arrives when the run has ended, or after N seconds.
    """
    ctx = call.context

    def execute(reserved_id: str, resumed: bool) -> HttpResponse:
        new = _parse_workflow(call, body, reserved_id)
        run = create_run(ctx, call.namespace, new, actor=call.actor, resumed=resumed)
        run = _long_poll(call, run, PREPARE_TIMEOUT_S, lambda current: current.registration_complete)
        if call.request.preferred_wait_s:
            run = _long_poll_until_ended(call, run)
            if run.ended:
                return 200, _run_view(call, run, PageQuery()).to_json()
        return 202, WorkflowRunSummary.from_run(run).to_json()

    status, stored_response = run_idempotent(
        ctx,
        call.namespace,
        route="POST /v1/workflows",
        key=call.request.idempotency_key,
        request=body,
        action=execute,
    )
    document = cast(dict[str, Any], stored_response)
    headers = {"location": f"/v1/workflows/{document['workflow_id']}", **call.preference_applied}
    return RouteResponse(status=status, body=document, headers=headers)


@ROUTES.route(
    "POST",
    "/v1/workflows/validate",
    scope=Scope.READ,
    documented_body=WorkflowBody,
    responses={200: ResponseSpec(description="The workflow is valid", models=(WorkflowValidation,))},
    problems=(MissingDependency, CircularDependency, RequestLimitExceeded),
)
def validate_workflow(call: Call, body: Any) -> RouteResponse:
    """Validate a workflow without storing it.

    The answer lists every problem.
    """
    new = _parse_workflow(call, body, call.context.new_id())
    return RouteResponse(
        status=200, body=WorkflowValidation(valid=True, jobs=len(new.jobs), edges=new.graph.edge_count)
    )


@ROUTES.route(
    "GET",
    "/v1/workflows",
    scope=Scope.READ,
    responses={200: ResponseSpec(description="One page of runs, newest first", models=(WorkflowRunList,))},
)
def list_workflows(call: Call, query: WorkflowQuery) -> RouteResponse:
    """List runs, newest first.

    A page may be short. Only a null token marks the end.
    """
    filters = query.model_dump(exclude={"page_size", "page_token"}, exclude_none=True)
    scope: JsonValue = ["list_workflows", {name: str(value) for name, value in filters.items()}]
    tokens = call.services.page_tokens
    statuses = filters.pop("status", None)
    runs_page, cursor = list_runs(
        call.context,
        call.namespace,
        RunFilter(**filters, statuses=statuses and tuple(statuses)),
        before_cursor=tokens.verify(call.namespace, query.page_token, list_identity=scope),
        page_size=query.page_size,
    )
    next_token = tokens.sign(call.namespace, cursor, list_identity=scope)
    return RouteResponse(
        status=200,
        body=WorkflowRunList(
            workflows=[WorkflowRunSummary.from_run(run) for run in runs_page], next_page_token=next_token
        ),
    )


@ROUTES.route(
    "POST",
    "/v1/workflows/cancel",
    scope=Scope.SUBMIT,
    responses={
        200: ResponseSpec(
            description="One page of runs for which Vigil accepted the cancel", models=(CancelledWorkflowRuns,)
        )
    },
)
def cancel_workflows(call: Call, body: CancelWorkflowsBody) -> RouteResponse:
    """Cancel all runs that pass the filters.

    Each request cancels one page. Repeat it with the token until the token is null.
    """
    filters = body.model_dump(exclude={"page_token"}, exclude_none=True)
    if not filters:
        raise ValidationFailed.at("", "must have at least one of status, name, correlation_id and created_before")
    scope: JsonValue = ["cancel_workflows", {name: str(value) for name, value in filters.items()}]
    tokens = call.services.page_tokens
    status = filters.pop("status", None)
    runs_page, cursor = list_runs(
        call.context,
        call.namespace,
        RunFilter(**filters, statuses=(status,) if status else ("pending", "running", "paused")),
        before_cursor=tokens.verify(call.namespace, body.page_token, list_identity=scope),
        page_size=50,
    )

    def cancel(run: WorkflowRun) -> str | None:
        try:
            return commands.request_cancel(call.context, call.namespace, run.workflow_id, actor=call.actor).workflow_id
        except InvalidTransition:
            return None  # The run ended after it was listed.

    cancelled = [workflow_id for workflow_id in call.context.in_parallel(cancel, runs_page) if workflow_id is not None]
    next_token = tokens.sign(call.namespace, cursor, list_identity=scope)
    return RouteResponse(status=200, body=CancelledWorkflowRuns(cancelled=cancelled, next_page_token=next_token))


@ROUTES.route(
    "GET",
    "/v1/workflows/{workflow_id}",
    scope=Scope.READ,
    headers=("Prefer",),
    responses={
        200: ResponseSpec(
            description="The run with a page of its jobs",
            models=(WorkflowRunView,),
            headers=("Preference-Applied", "Retry-After"),
        )
    },
    problems=(WorkflowNotFound,),
)
def get_workflow(call: Call, workflow_id: str, query: PageQuery) -> RouteResponse:
    """Get a run with a page of its jobs.

    The jobs are in the order of the definition. With `Prefer: wait=N` the answer arrives when the run has ended, or
    after N seconds.
    """
    run = _long_poll_until_ended(call, find_run(call.context, call.namespace, workflow_id))
    return RouteResponse(status=200, body=_run_view(call, run, query), headers=call.preference_applied)


@ROUTES.route(
    "GET",
    "/v1/workflows/{workflow_id}/stats",
    scope=Scope.READ,
    responses={200: ResponseSpec(description="The number of jobs by status", models=(WorkflowStatistics,))},
    problems=(WorkflowNotFound,),
)
def get_workflow_stats(call: Call, workflow_id: str) -> RouteResponse:
    """Get the number of jobs of a run by status."""
    run = find_run(call.context, call.namespace, workflow_id)
    return RouteResponse(status=200, body=WorkflowStatistics.from_counts(run_statistics(call.context, run)))


@ROUTES.route(
    "GET",
    "/v1/workflows/{workflow_id}/graph",
    scope=Scope.READ,
    responses={
        200: ResponseSpec(
            description="The graph in the requested format",
            models=(GraphView,),
            media_types=("text/plain", "image/svg+xml"),
        )
    },
    problems=(WorkflowNotFound,),
)
def get_workflow_graph(call: Call, workflow_id: str, query: GraphQuery) -> RouteResponse:
    """Draw the graph of a run.

    Each job has its status, and the reason if it was skipped or has failed.
    """
    run = find_run(call.context, call.namespace, workflow_id)
    jobs = diagram_jobs(call.context, run)
    if query.format in GRAPH_RENDERERS:
        render_graph, media_type = GRAPH_RENDERERS[query.format]
        return RouteResponse(status=200, body=render_graph(run.name, jobs), media_type=media_type)
    view = GraphView(
        workflow_id=run.workflow_id,
        name=run.name,
        status=run.status,
        jobs=[
            GraphJob(
                name=job.name,
                job_id=job_id_at(call.context, run, index),
                job_type=job.job_type,
                status=job.status,
                depends_on=[jobs[dependency].name for dependency in job.depends_on],
                trigger_rule=job.trigger_rule,
                condition=job.condition,
                reason=job.reason,
            )
            for index, job in enumerate(jobs)
        ],
    )
    return RouteResponse(status=200, body=view)


@ROUTES.route(
    "POST",
    "/v1/workflows/{workflow_id}/cancel",
    scope=Scope.SUBMIT,
    body=NoContent,
    responses={
        200: ResponseSpec(description="The cancelled run", models=(WorkflowRunSummary,)),
        202: ResponseSpec(description="The run, whose jobs are being cancelled", models=(WorkflowRunSummary,)),
    },
    problems=(WorkflowNotFound, InvalidTransition),
)
def cancel_workflow(call: Call, workflow_id: str) -> RouteResponse:
    """Cancel a run.

    Every open job is cancelled. Running jobs receive a cancel request first.
    """
    run = commands.request_cancel(call.context, call.namespace, workflow_id, actor=call.actor)
    run = _long_poll(call, run, CANCEL_TIMEOUT_S, lambda current: current.ended)
    return RouteResponse(status=200 if run.ended else 202, body=WorkflowRunSummary.from_run(run))


@ROUTES.route(
    "POST",
    "/v1/workflows/{workflow_id}/pause",
    scope=Scope.SUBMIT,
    body=NoContent,
    responses=_RUN_RESPONSES,
    problems=(WorkflowNotFound, InvalidTransition),
)
def pause_workflow(call: Call, workflow_id: str) -> RouteResponse:
    """Pause a run.

    No further job starts. Running jobs continue, and the timeout of the run counts on.
    """
    return _run_response(commands.pause(call.context, call.namespace, workflow_id, actor=call.actor))


@ROUTES.route(
    "POST",
    "/v1/workflows/{workflow_id}/resume",
    scope=Scope.SUBMIT,
    body=NoContent,
    responses=_RUN_RESPONSES,
    problems=(WorkflowNotFound, InvalidTransition),
)
def resume_workflow(call: Call, workflow_id: str) -> RouteResponse:
    """Resume a paused run.

    It is refused while a failed job needs a decision.
    """
    return _run_response(commands.resume(call.context, call.namespace, workflow_id, actor=call.actor))


@ROUTES.route(
    "POST",
    "/v1/workflows/{workflow_id}/retry",
    scope=Scope.SUBMIT,
    responses=_RUN_RESPONSES,
    problems=(WorkflowNotFound, InvalidTransition),
)
def retry_workflow(call: Call, workflow_id: str, body: RetryWorkflowBody) -> RouteResponse:
    """Retry an ended run.

    The failed jobs and their successors run again. Successful jobs keep their results, except the job in `from` and
    its successors.
    """
    run = commands.retry(call.context, call.namespace, workflow_id, from_job=body.from_, actor=call.actor)
    return _run_response(
        _long_poll(
            call, prepare_jobs(call.context, run), PREPARE_TIMEOUT_S, lambda current: current.registration_complete
        )
    )


@ROUTES.route(
    "POST",
    "/v1/workflows/{workflow_id}/decisions",
    scope=Scope.SUBMIT,
    responses=_RUN_RESPONSES,
    problems=(WorkflowNotFound, InvalidTransition, IdempotencyKeyReused, IdempotencyInProgress),
)
def decide_workflow(call: Call, workflow_id: str, body: DecisionBody) -> RouteResponse:
    """Decide on a failed job of a run with the policy `manual`.

    Each failed job needs one decision. The first one counts: every other is 409.
    """
    ctx = call.context

    def execute(reserved_id: str, resumed: bool) -> HttpResponse:
        del resumed  # A repeated decision under the same id is idempotent.
        run = commands.put_decision(
            ctx,
            call.namespace,
            workflow_id,
            body.job,
            body.action,
            decision_id=reserved_id,
            actor=call.actor,
            comment=body.note,
        )
        run = _long_poll(
            call, run, DECISION_TIMEOUT_S, lambda current: not current.has_pending_decisions or current.ended
        )
        return 200, WorkflowRunSummary.from_run(run).to_json()

    status, document = run_idempotent(
        ctx,
        call.namespace,
        route=f"POST /v1/workflows/{workflow_id}/decisions",
        key=call.request.idempotency_key,
        request=body.model_dump(),
        action=execute,
    )
    return RouteResponse(status=status, body=cast(dict[str, Any], document))


def _parse_workflow(call: Call, body: Any, workflow_id: str) -> NewWorkflowRun:
    return parse_workflow(
        call.namespace,
        body,
        workflow_id,
        now=call.context.now(),
        find_types=call.context.job_types.find_many,
        max_jobs=call.context.limits.namespaces.limit(call.namespace, "jobs_per_request"),
    )


def _run_response(run: WorkflowRun) -> RouteResponse:
    return RouteResponse(status=200, body=WorkflowRunSummary.from_run(run))


def _long_poll_until_ended(call: Call, run: WorkflowRun) -> WorkflowRun:
    return long_poll_run(
        call.context,
        run,
        is_done=lambda current: current.ended,
        until=call.request.long_poll_deadline(0),
        slot=call.slot,
    )


def _long_poll(call: Call, run: WorkflowRun, max_wait_s: int, is_done: Callable[[WorkflowRun], bool]) -> WorkflowRun:
    until = min(call.context.now() + timedelta(seconds=max_wait_s), call.request.respond_by)
    slot = SlotRequest(namespace=call.namespace, wait_without=WAIT_WITHOUT_SLOT)
    return long_poll_run(call.context, run, is_done=is_done, until=until, slot=slot)


def _run_view(call: Call, run: WorkflowRun, query: PageQuery) -> WorkflowRunView:
    tokens, scope = call.services.page_tokens, ["get_workflow", run.workflow_id]
    start = int(tokens.verify(call.namespace, query.page_token, list_identity=scope) or 0)
    jobs, next_index = list_run_jobs(call.context, run, start_index=start, page_size=query.page_size)
    open_by_job = open_dependencies(call.context, jobs)
    text, url = call.context.runs.result(run)
    return WorkflowRunView.with_jobs(
        run,
        result=None if text is None else loads_stored(text),
        result_url=url,
        undecided=names_awaiting_decision(call.context, run),
        jobs=[JobSummary.from_job(job, open_by_job) for job in jobs],
        next_page_token=tokens.sign(
            call.namespace, None if next_index is None else str(next_index), list_identity=scope
        ),
    )
