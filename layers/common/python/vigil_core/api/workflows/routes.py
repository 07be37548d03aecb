"""The routes of workflows."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

from vigil_core.api.jobs.models import JobSummary, Nothing, PageQuery
from vigil_core.api.routing import Answer, Call, Routes, Shows
from vigil_core.api.workflows.models import (
    CancelledRuns,
    CancelQuery,
    DecisionBody,
    GraphJob,
    GraphQuery,
    GraphView,
    RetryBody,
    RunList,
    RunSummary,
    Statistics,
    Validated,
    WholeRun,
    WorkflowBody,
    WorkflowQuery,
    run_of_body,
)
from vigil_core.domain.access import Scope
from vigil_core.domain.diagrams import render as drawings
from vigil_core.domain.errors import (
    CircularDependency,
    IdempotencyInProgress,
    IdempotencyKeyReused,
    InvalidTransition,
    MissingDependency,
    PayloadTooLarge,
    ValidationFailed,
    WorkflowNotFound,
)
from vigil_core.domain.exact_json import JsonValue, loads
from vigil_core.domain.workflows.run import Run
from vigil_core.services.idempotency import Outcome, once
from vigil_core.services.workflows import commands as runs
from vigil_core.services.workflows.commands import find_run, hold_run, id_at
from vigil_core.services.workflows.create import create_run, prepare
from vigil_core.services.workflows.queries import (
    RunFilter,
    drawn,
    jobs_of,
    list_runs,
    statistics_of,
    undecided_names,
)

ROUTES = Routes()
PREPARED_WITHIN_S = 20
"""A run is answered for once all its jobs are there, or after so long."""
DECIDED_WITHIN_S = 10
CANCELLED_WITHIN_S = 3
PICTURES = {
    "mermaid": (drawings.mermaid, "text/plain; charset=utf-8"),
    "dot": (drawings.dot, "text/plain; charset=utf-8"),
    "svg": (drawings.svg, "image/svg+xml"),
}
_CHANGED = {200: Shows(what="The run as it is now", models=(RunSummary,))}


@ROUTES.route(
    "POST",
    "/v1/workflows",
    scope=Scope.SUBMIT,
    documented_body=WorkflowBody,
    headers=("Idempotency-Key", "Prefer"),
    answers={
        200: Shows(
            what="The run, which has ended within the preferred wait",
            models=(WholeRun,),
            headers=("Location", "Preference-Applied"),
        ),
        202: Shows(what="The new run", models=(RunSummary,), headers=("Location", "Preference-Applied")),
    },
    problems=(MissingDependency, CircularDependency, PayloadTooLarge, IdempotencyKeyReused, IdempotencyInProgress),
)
def create_workflow(call: Call, body: Any) -> Answer:
    """Run a workflow. All its jobs exist when this is answered, but for very many, which may take some seconds longer.
    With `Prefer: wait=N` the answer is held until the run has ended, at most N seconds."""
    ctx = call.context

    def act(reserved_id: str, resumed: bool) -> Outcome:
        new = run_of_body(call.namespace, body, reserved_id, now=ctx.now(), find_types=ctx.job_types.find_many)
        run = create_run(ctx, call.namespace, new, by=call.by, resumed=resumed)
        run = _hold(call, run, PREPARED_WITHIN_S, lambda now: now.sealed)
        if call.request.wait_s:
            run = _until_ended(call, run)
            if run.ended:
                return 200, _whole(call, run, PageQuery()).plain()
        return 202, RunSummary.of(run).plain()

    status, shown = once(
        ctx,
        call.namespace,
        route="POST /v1/workflows",
        key=call.request.idempotency_key,
        request=body,
        act=act,
    )
    told = cast(dict[str, Any], shown)
    headers = {"location": f"/v1/workflows/{told['workflow_id']}", **call.request.preference_applied}
    return Answer(status=status, body=told, headers=headers)


@ROUTES.route(
    "POST",
    "/v1/workflows/validate",
    scope=Scope.READ,
    documented_body=WorkflowBody,
    answers={200: Shows(what="It could be run as it is", models=(Validated,))},
    problems=(MissingDependency, CircularDependency),
)
def validate_workflow(call: Call, body: Any) -> Answer:
    """Check a workflow, and store nothing. Whatever is wrong with it is told at once."""
    ctx = call.context
    new = run_of_body(call.namespace, body, ctx.new_id(), now=ctx.now(), find_types=ctx.job_types.find_many)
    return Answer(status=200, body=Validated(valid=True, jobs=len(new.jobs), edges=new.graph.edges))


@ROUTES.route(
    "GET",
    "/v1/workflows",
    scope=Scope.READ,
    answers={200: Shows(what="One page, newest first", models=(RunList,))},
)
def list_workflows(call: Call, query: WorkflowQuery) -> Answer:
    """List runs, newest first. A page may be short; only an absent token is the end."""
    filters = query.model_dump(exclude={"page_size", "page_token"}, exclude_none=True)
    of: JsonValue = ["list_workflows", {name: str(value) for name, value in filters.items()}]
    tokens = call.services.page_tokens
    statuses = filters.pop("status", None)
    found, place = list_runs(
        call.context,
        call.namespace,
        RunFilter(**filters, statuses=statuses and tuple(statuses)),
        before_place=tokens.place(call.namespace, query.page_token, of=of),
        page_size=query.page_size,
    )
    next_token = tokens.sign(call.namespace, place, of=of)
    return Answer(status=200, body=RunList(workflows=[RunSummary.of(run) for run in found], next_page_token=next_token))


@ROUTES.route(
    "POST",
    "/v1/workflows/cancel",
    scope=Scope.SUBMIT,
    answers={200: Shows(what="The runs that were asked to cancel, a page of them", models=(CancelledRuns,))},
)
def cancel_workflows(call: Call, body: CancelQuery) -> Answer:
    """Cancel all runs that pass the filters, page by page: ask again with the token until there is none."""
    filters = body.model_dump(exclude={"page_token"}, exclude_none=True)
    if not filters:
        raise ValidationFailed.at("", "must have at least one of status, name, correlation_id and created_before")
    of: JsonValue = ["cancel_workflows", {name: str(value) for name, value in filters.items()}]
    tokens = call.services.page_tokens
    status = filters.pop("status", None)
    found, place = list_runs(
        call.context,
        call.namespace,
        RunFilter(**filters, statuses=(status,) if status else ("pending", "running", "paused")),
        before_place=tokens.place(call.namespace, body.page_token, of=of),
        page_size=50,
    )

    def cancel(run: Run) -> str | None:
        try:
            return runs.request_cancel(call.context, call.namespace, run.workflow_id, by=call.by).workflow_id
        except InvalidTransition:
            return None  # It has just ended.

    cancelled = [workflow_id for workflow_id in call.context.in_parallel(cancel, found) if workflow_id is not None]
    next_token = tokens.sign(call.namespace, place, of=of)
    return Answer(status=200, body=CancelledRuns(cancelled=cancelled, next_page_token=next_token))


@ROUTES.route(
    "GET",
    "/v1/workflows/{workflow_id}",
    scope=Scope.READ,
    headers=("Prefer",),
    answers={200: Shows(what="The run, and a page of its jobs", models=(WholeRun,), headers=("Preference-Applied",))},
    problems=(WorkflowNotFound,),
)
def get_workflow(call: Call, workflow_id: str, query: PageQuery) -> Answer:
    """Get a run, with a page of its jobs in the order of its definition. With `Prefer: wait=N` the answer is held until
    the run has ended."""
    run = _until_ended(call, find_run(call.context, call.namespace, workflow_id))
    return Answer(status=200, body=_whole(call, run, query), headers=call.request.preference_applied)


@ROUTES.route(
    "GET",
    "/v1/workflows/{workflow_id}/stats",
    scope=Scope.READ,
    answers={200: Shows(what="How many jobs stand how", models=(Statistics,))},
    problems=(WorkflowNotFound,),
)
def get_workflow_stats(call: Call, workflow_id: str) -> Answer:
    """Count the jobs of a run by how they stand."""
    run = find_run(call.context, call.namespace, workflow_id)
    return Answer(status=200, body=Statistics.of(statistics_of(call.context, run)))


@ROUTES.route(
    "GET",
    "/v1/workflows/{workflow_id}/graph",
    scope=Scope.READ,
    answers={
        200: Shows(what="The graph, as it was asked for", models=(GraphView,), media=("text/plain", "image/svg+xml"))
    },
    problems=(WorkflowNotFound,),
)
def get_workflow_graph(call: Call, workflow_id: str, query: GraphQuery) -> Answer:
    """Draw the graph of a run, with how each job stands and why it was skipped or failed."""
    run = find_run(call.context, call.namespace, workflow_id)
    jobs = drawn(call.context, run)
    if query.format in PICTURES:
        draw, media = PICTURES[query.format]
        return Answer(status=200, body=draw(run.name, jobs), media=media)
    view = GraphView(
        workflow_id=run.workflow_id,
        name=run.name,
        status=run.status,
        jobs=[
            GraphJob(
                name=job.name,
                job_id=id_at(call.context, run, place),
                job_type=job.job_type,
                status=job.status,
                depends_on=[jobs[before].name for before in job.depends_on],
                trigger_rule=job.trigger_rule,
                condition=job.condition,
                reason=job.reason,
            )
            for place, job in enumerate(jobs)
        ],
    )
    return Answer(status=200, body=view)


@ROUTES.route(
    "POST",
    "/v1/workflows/{workflow_id}/cancel",
    scope=Scope.SUBMIT,
    body=Nothing,
    answers={
        200: Shows(what="The run, which has ended", models=(RunSummary,)),
        202: Shows(what="The run, whose jobs are being cancelled", models=(RunSummary,)),
    },
    problems=(WorkflowNotFound, InvalidTransition),
)
def cancel_workflow(call: Call, workflow_id: str) -> Answer:
    """Cancel a run: every job that has not ended. Jobs that run are asked to stop, and are given time to."""
    run = runs.request_cancel(call.context, call.namespace, workflow_id, by=call.by)
    run = _hold(call, run, CANCELLED_WITHIN_S, lambda now: now.ended)
    return Answer(status=200 if run.ended else 202, body=RunSummary.of(run))


@ROUTES.route(
    "POST",
    "/v1/workflows/{workflow_id}/pause",
    scope=Scope.SUBMIT,
    body=Nothing,
    answers=_CHANGED,
    problems=(WorkflowNotFound, InvalidTransition),
)
def pause_workflow(call: Call, workflow_id: str) -> Answer:
    """Pause a run: nothing new starts. Jobs that run go on, and so does the run's timeout."""
    return _changed(runs.pause(call.context, call.namespace, workflow_id, by=call.by))


@ROUTES.route(
    "POST",
    "/v1/workflows/{workflow_id}/resume",
    scope=Scope.SUBMIT,
    body=Nothing,
    answers=_CHANGED,
    problems=(WorkflowNotFound, InvalidTransition),
)
def resume_workflow(call: Call, workflow_id: str) -> Answer:
    """Resume a paused run. While a failed job waits for a decision, that is refused."""
    return _changed(runs.resume(call.context, call.namespace, workflow_id, by=call.by))


@ROUTES.route(
    "POST",
    "/v1/workflows/{workflow_id}/retry",
    scope=Scope.SUBMIT,
    answers=_CHANGED,
    problems=(WorkflowNotFound, InvalidTransition),
)
def retry_workflow(call: Call, workflow_id: str, body: RetryBody) -> Answer:
    """Begin an ended run anew: what failed, and what came after it. What has succeeded is kept, but for what comes
    after the job that is named in `from`."""
    run = runs.retry(call.context, call.namespace, workflow_id, start=body.from_, by=call.by)
    return _changed(_hold(call, prepare(call.context, run), PREPARED_WITHIN_S, lambda now: now.sealed))


@ROUTES.route(
    "POST",
    "/v1/workflows/{workflow_id}/decisions",
    scope=Scope.SUBMIT,
    answers=_CHANGED,
    problems=(WorkflowNotFound, InvalidTransition),
)
def decide_workflow(call: Call, workflow_id: str, body: DecisionBody) -> Answer:
    """Decide what becomes of a failed job of a run under the policy `manual`. Each of them needs a decision."""
    run = runs.put_decision(
        call.context, call.namespace, workflow_id, body.job, body.action, by=call.by, note=body.note
    )
    return _changed(_hold(call, run, DECIDED_WITHIN_S, lambda now: not now.decisions_open or now.ended))


def _changed(run: Run) -> Answer:
    return Answer(status=200, body=RunSummary.of(run))


def _until_ended(call: Call, run: Run) -> Run:
    return hold_run(call.context, run, enough=lambda now: now.ended, until=call.request.hold_until(0))


def _hold(call: Call, run: Run, longest_s: int, enough: Callable[[Run], bool]) -> Run:
    until = min(call.context.now() + timedelta(seconds=longest_s), call.request.answer_by)
    return hold_run(call.context, run, enough=enough, until=until)


def _whole(call: Call, run: Run, query: PageQuery) -> WholeRun:
    tokens, of = call.services.page_tokens, ["get_workflow", run.workflow_id]
    start = int(tokens.place(call.namespace, query.page_token, of=of) or 0)
    jobs, after = jobs_of(call.context, run, start=start, page_size=query.page_size)
    text, url = call.context.runs.result(run)
    return WholeRun.whole(
        run,
        result=None if text is None else loads(text),
        result_url=url,
        undecided=undecided_names(call.context, run),
        jobs=[JobSummary.of(job) for job in jobs],
        next_page_token=tokens.sign(call.namespace, None if after is None else str(after), of=of),
    )
