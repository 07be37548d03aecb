"""The routes of jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, cast

from vigil_core.api.jobs.models import (
    BulkFailure,
    BulkItem,
    BulkResponse,
    BulkSuccess,
    Dependencies,
    DependencyJob,
    DependencyResultList,
    HeartbeatResponse,
    JobEvents,
    JobList,
    JobResult,
    JobStatusView,
    JobSummary,
    JobView,
    NamedDependencyResult,
    VerdictView,
)
from vigil_core.api.jobs.new_job import build_new_job
from vigil_core.api.routing import Call, ResponseSpec, RouteResponse, Routes
from vigil_core.domain.access import Scope
from vigil_core.domain.errors import (
    IdempotencyInProgress,
    IdempotencyKeyReused,
    InvalidTransition,
    JobCreationFailed,
    JobNotCompleted,
    JobNotFound,
    LeaseLost,
    MissingDependency,
    PayloadTooLarge,
    RequestLimitExceeded,
    ValidationFailed,
)
from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.ids import derive_id
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.domain.limits import check_jobs_per_request, count_jobs
from vigil_core.domain.timestamps import to_text
from vigil_core.schemas.base import NoContent, PageQuery, RequestModel, is_valid_name
from vigil_core.schemas.jobs import (
    CompletionBody,
    FailureBody,
    HeartbeatBody,
    JobQuery,
    NewJobBody,
    NewJobsBody,
    ReleaseBody,
    ReportBody,
    StartBody,
)
from vigil_core.schemas.validation import parse_body, prefix_pointers
from vigil_core.services.cpu_limits import SchemaCpu
from vigil_core.services.idempotency import HttpResponse, run_idempotent
from vigil_core.services.jobs import transitions
from vigil_core.services.jobs.dependencies import related_jobs
from vigil_core.services.jobs.dependency_results import load_results_page
from vigil_core.services.jobs.listing import JobFilter
from vigil_core.services.jobs.listing import list_jobs as list_stored_jobs
from vigil_core.services.jobs.long_poll import long_poll_job
from vigil_core.services.jobs.open_dependencies import open_dependencies
from vigil_core.services.jobs.submit import Submission, find_earlier_submission, submit
from vigil_core.services.jobs.transitions import find_job
from vigil_core.services.limits.admission import JobReservation, require_queues, require_room_for_jobs, reserve_jobs
from vigil_core.services.workflows.commands import require_may_start

ROUTES = Routes("jobs")
_JOB_RESPONSES = {200: ResponseSpec(description="The job after the change", models=(JobView,))}
_IDEMPOTENCY_ERRORS = (IdempotencyKeyReused, IdempotencyInProgress)


@ROUTES.route(
    "POST",
    "/v1/jobs",
    scope=Scope.SUBMIT,
    headers=("Idempotency-Key", "Prefer"),
    responses={
        200: ResponseSpec(
            description="The job: it ended during the long poll, or an open job already has the `unique_key`",
            models=(JobView,),
            headers=("Location", "Preference-Applied", "Retry-After"),
        ),
        202: ResponseSpec(
            description="The new job", models=(JobView,), headers=("Location", "Preference-Applied", "Retry-After")
        ),
    },
    problems=(JobCreationFailed, MissingDependency, PayloadTooLarge, RequestLimitExceeded, *_IDEMPOTENCY_ERRORS),
)
def create_job(call: Call, body: NewJobBody) -> RouteResponse:
    """Create a job.

    With `Prefer: wait=N` the answer arrives when the job has ended, or after N seconds.
    """

    def execute(reserved_id: str, resumed: bool) -> HttpResponse:
        submitted = _submit_or_resume(call, body, reserved_id, resumed, call.context.job_types.find)
        job = submitted.job
        if call.request.preferred_wait_s:
            job = long_poll_job(
                call.context, call.namespace, job.job_id, until=call.request.long_poll_deadline(0), slot=call.slot
            )
        if submitted.existing:
            return 200, JobView.from_existing_job(job, call.context.jobs.payloads(job), call.context.now()).to_json()
        if job.ended and call.request.preferred_wait_s:
            return 200, _job_view(call, job).to_json()
        return 202, JobView.from_new_job(job, submitted.payload, submitted.payload_url).to_json()

    status, document = _run_idempotent(call, body, execute)
    headers = {"location": f"/v1/jobs/{document['job_id']}", **call.preference_applied}
    return RouteResponse(status=status, body=document, headers=headers)


@ROUTES.route(
    "POST",
    "/v1/jobs/bulk",
    scope=Scope.SUBMIT,
    headers=("Idempotency-Key",),
    responses={
        200: ResponseSpec(description="The outcome for each job, in the order of the request", models=(BulkResponse,))
    },
    problems=(RequestLimitExceeded, *_IDEMPOTENCY_ERRORS),
)
def create_jobs(call: Call, body: NewJobsBody) -> RouteResponse:
    """Create up to 100 jobs.

    A job that cannot be created has a problem in its place. It does not affect the others. A request that exceeds a
    limit of the namespace is refused as a whole.
    """
    limit = call.context.limits.namespaces.limit(call.namespace, "jobs_per_request")
    total = count_jobs(body.jobs)
    check_jobs_per_request(total, limit)

    def execute(reserved_id: str, resumed: bool) -> HttpResponse:
        types = call.context.job_types.find_many(call.namespace, set(_job_type_names(body.jobs)))
        require_queues(call.context, call.namespace, set(_queue_names(body.jobs, types)))
        schema_cpu = SchemaCpu(len(body.jobs))

        def create(numbered_body: tuple[int, JsonValue]) -> BulkItem:
            number, raw_body = numbered_body
            try:
                body, new_id = parse_body(NewJobBody, raw_body), derive_id(reserved_id, str(number))
                submitted = _submit_or_resume(
                    call, body, new_id, resumed, lambda _, name: types.get(name), schema_cpu, reserved=True
                )
            except Exception as error:
                return BulkFailure(problem=call.problem(prefix_pointers(f"/jobs/{number}", error)))
            job = JobSummary.from_job(submitted.job)
            if submitted.existing:
                return BulkSuccess(job_id=job.job_id, job=job, existing=True)
            return BulkSuccess(job_id=job.job_id, job=job)

        # If an earlier try of the request crashed, its jobs are still counted.
        counted = nullcontext(JobReservation()) if resumed else reserve_jobs(call.context, call.namespace, total)
        with counted as reservation:
            results = call.context.in_parallel(create, enumerate(body.jobs))
            not_new = [raw for raw, item in zip(body.jobs, results, strict=True) if not _is_new(item)]
            reservation.unused = count_jobs(not_new)
        return 200, BulkResponse(results=results).to_json()

    status, document = _run_idempotent(call, body, execute)
    return RouteResponse(status=status, body=document)


@ROUTES.route(
    "GET",
    "/v1/jobs",
    scope=Scope.READ,
    responses={200: ResponseSpec(description="One page of jobs, newest first", models=(JobList,))},
)
def list_jobs(call: Call, query: JobQuery) -> RouteResponse:
    """List jobs, newest first, without payload and result.

    A page may be short. Only a null token marks the end.
    """
    filters = query.model_dump(exclude={"page_size", "page_token"}, exclude_none=True)
    scope: JsonValue = ["list_jobs", {name: str(value) for name, value in filters.items()}]
    tokens = call.services.page_tokens
    statuses = filters.pop("status", None)
    page, cursor = list_stored_jobs(
        call.context,
        call.namespace,
        JobFilter(**filters, statuses=statuses and tuple(statuses)),
        before_cursor=tokens.verify(call.namespace, query.page_token, list_identity=scope),
        page_size=query.page_size,
    )
    next_token = tokens.sign(call.namespace, cursor, list_identity=scope)
    open_by_job = open_dependencies(call.context, page)
    return RouteResponse(
        status=200,
        body=JobList(jobs=[JobSummary.from_job(job, open_by_job) for job in page], next_page_token=next_token),
    )


@ROUTES.route(
    "GET",
    "/v1/jobs/{job_id}",
    scope=Scope.READ,
    headers=("Prefer", "If-None-Match"),
    responses={
        200: ResponseSpec(
            description="The job", models=(JobView,), headers=("ETag", "Preference-Applied", "Retry-After")
        ),
        304: ResponseSpec(
            description="The job still has this ETag", headers=("ETag", "Preference-Applied", "Retry-After")
        ),
    },
    problems=(JobNotFound,),
)
def get_job(call: Call, job_id: str) -> RouteResponse:
    """Get a job with its payload and result.

    With `Prefer: wait=N` the answer arrives when the job has ended, or after N seconds.
    """
    job = long_poll_job(call.context, call.namespace, job_id, until=call.request.long_poll_deadline(0), slot=call.slot)
    etag = f'"{job.version}.{job.live_version}"'
    headers = {"etag": etag, **call.preference_applied}
    if call.request.matches_etag(etag):
        return RouteResponse(status=304, headers=headers)
    return RouteResponse(status=200, body=_job_view(call, job), headers=headers)


@ROUTES.route(
    "GET",
    "/v1/jobs/{job_id}/status",
    scope=Scope.READ,
    responses={200: ResponseSpec(description="The status of the job", models=(JobStatusView,))},
    problems=(JobNotFound,),
)
def get_job_status(call: Call, job_id: str) -> RouteResponse:
    """Get the members of a job that change most often.

    It is one small read.
    """
    job = find_job(call.context, call.namespace, job_id)
    view = JobStatusView(
        job_id=job.job_id,
        status=job.status,
        job_stage=job.stage,
        job_health=job.health,
        progress=job.progress,
        message=job.message,
    )
    return RouteResponse(status=200, body=view)


@ROUTES.route(
    "GET",
    "/v1/jobs/{job_id}/result",
    scope=Scope.READ,
    responses={200: ResponseSpec(description="The result or the error", models=(JobResult,))},
    problems=(JobNotFound, JobNotCompleted),
)
def get_job_result(call: Call, job_id: str) -> RouteResponse:
    """Get the result or the error of an ended job."""
    job = find_job(call.context, call.namespace, job_id)
    if not job.ended:
        raise JobNotCompleted(job_id)
    return RouteResponse(status=200, body=JobResult.from_job(job, call.context.jobs.payloads(job, payload=False)))


@ROUTES.route(
    "GET",
    "/v1/jobs/{job_id}/events",
    scope=Scope.READ,
    responses={200: ResponseSpec(description="One page of the history, oldest change first", models=(JobEvents,))},
    problems=(JobNotFound,),
)
def get_job_events(call: Call, job_id: str, query: PageQuery) -> RouteResponse:
    """Get the history of a job.

    Each change has its time, its actor, and the status and stage before and after.
    """
    scope = ["get_job_events", job_id]
    tokens = call.services.page_tokens
    last_version = int(tokens.verify(call.namespace, query.page_token, list_identity=scope) or 0)
    job = find_job(call.context, call.namespace, job_id)
    # One line before the page, for the position at which its first change starts, and one after it.
    lines = call.context.jobs.history(job, from_version=max(last_version, 1), limit=query.page_size + 2)
    previous = lines.pop(0) if last_version else None
    page = lines[: query.page_size]
    cursor = str(page[-1].version) if len(lines) > len(page) else None
    next_token = tokens.sign(call.namespace, cursor, list_identity=scope)
    return RouteResponse(status=200, body=JobEvents.from_log(job_id, previous, page, next_token))


@ROUTES.route(
    "GET",
    "/v1/jobs/{job_id}/dependencies",
    scope=Scope.READ,
    responses={
        200: ResponseSpec(
            description="The dependencies and dependents with their current states", models=(Dependencies,)
        )
    },
    problems=(JobNotFound,),
)
def get_job_dependencies(call: Call, job_id: str) -> RouteResponse:
    """Get the dependencies and the dependents of a job."""
    job = find_job(call.context, call.namespace, job_id)
    related = related_jobs(call.context, job)
    view = Dependencies(
        job_id=job_id,
        dependency_status=job.dependencies.status,
        trigger_rule=job.dependencies.trigger_rule,
        condition=job.dependencies.condition,
        verdict=None if job.dependencies.verdict is None else VerdictView.from_domain(job.dependencies.verdict),
        depends_on=list(map(DependencyJob.from_job, related.upstream)),
        dependents=list(map(DependencyJob.from_job, related.downstream)),
        truncated=related.truncated,
    )
    return RouteResponse(status=200, body=view)


@ROUTES.route(
    "GET",
    "/v1/jobs/{job_id}/dependencies/results",
    scope=Scope.READ,
    responses={200: ResponseSpec(description="One page of dependencies", models=(DependencyResultList,))},
    problems=(JobNotFound,),
)
def list_dependency_results(call: Call, job_id: str, query: PageQuery) -> RouteResponse:
    """List the dependencies of a job with their results, in the job's order.

    A page may be short. Only a null token marks the end.
    """
    job = find_job(call.context, call.namespace, job_id)
    tokens = call.services.page_tokens
    scope = ["list_dependency_results", job_id]
    cursor = tokens.verify(call.namespace, query.page_token, list_identity=scope)
    page, next_start = load_results_page(call.context, job, start=int(cursor or 0), page_size=query.page_size)
    next_token = tokens.sign(call.namespace, None if next_start is None else str(next_start), list_identity=scope)
    return RouteResponse(
        status=200,
        body=DependencyResultList(
            job_id=job_id,
            dependencies=list(map(NamedDependencyResult.from_domain, page)),
            next_page_token=next_token,
        ),
    )


@ROUTES.route(
    "PATCH",
    "/v1/jobs/{job_id}",
    scope=Scope.WORK,
    responses=_JOB_RESPONSES,
    problems=(JobNotFound, InvalidTransition, LeaseLost),
)
def report_job(call: Call, job_id: str, body: ReportBody) -> RouteResponse:
    """Report stage, milestones, fields, progress or message of a job.

    Vigil applies the whole report or nothing. A lower progress than the current one is ignored.
    """
    report = body.to_domain()
    return _job_response(
        call,
        transitions.report(
            call.context, call.namespace, job_id, report, actor=call.actor, lease_token=body.lease_token
        ),
    )


@ROUTES.route(
    "DELETE",
    "/v1/jobs/{job_id}",
    scope=Scope.SUBMIT,
    responses={204: ResponseSpec(description="The job is deleted")},
    problems=(JobNotFound, InvalidTransition),
)
def delete_job(call: Call, job_id: str) -> RouteResponse:
    """Delete an ended job.

    Its id stays taken.
    """
    transitions.delete(call.context, call.namespace, job_id, actor=call.actor)
    return RouteResponse(status=204)


@ROUTES.route(
    "POST",
    "/v1/jobs/{job_id}/start",
    scope=Scope.WORK,
    responses=_JOB_RESPONSES,
    problems=(JobNotFound, InvalidTransition, LeaseLost),
)
def start_job(call: Call, job_id: str, body: StartBody) -> RouteResponse:
    """Start a pending job without a lease.

    Queues no longer hand it out.
    """
    require_may_start(call.context, find_job(call.context, call.namespace, job_id))
    job = transitions.start(call.context, call.namespace, job_id, actor=call.actor, lease_token=body.lease_token)
    return _job_response(call, job)


@ROUTES.route(
    "POST",
    "/v1/jobs/{job_id}/complete",
    scope=Scope.WORK,
    responses=_JOB_RESPONSES,
    problems=(JobNotFound, InvalidTransition, LeaseLost, PayloadTooLarge),
)
def complete_job(call: Call, job_id: str, body: CompletionBody) -> RouteResponse:
    """Complete a running job with its result."""
    if body.result is not None and body.result_ref is not None:
        raise ValidationFailed.at("/result_ref", "replaces result: send only one of them")
    job = transitions.complete(
        call.context,
        call.namespace,
        job_id,
        actor=call.actor,
        result=body.result,
        result_upload=body.result_ref,
        health=body.job_health or "success",
        fields=body.fields,
        lease_token=body.lease_token,
    )
    return _job_response(call, job)


@ROUTES.route(
    "POST",
    "/v1/jobs/{job_id}/fail",
    scope=Scope.WORK,
    responses=_JOB_RESPONSES,
    problems=(JobNotFound, InvalidTransition, LeaseLost),
)
def fail_job(call: Call, job_id: str, body: FailureBody) -> RouteResponse:
    """Fail the attempt of a running job.

    If the retry policy allows it, another attempt follows. Otherwise the job is `failed`, or `completed` with its
    `fallback`. A job with a requested cancel is `cancelled`.
    """
    job = transitions.fail(
        call.context,
        call.namespace,
        job_id,
        JobError(**body.error.model_dump()),
        actor=call.actor,
        retryable=body.retryable is not False,
        lease_token=body.lease_token,
    )
    return _job_response(call, job)


@ROUTES.route(
    "POST",
    "/v1/jobs/{job_id}/heartbeat",
    scope=Scope.WORK,
    responses={
        200: ResponseSpec(
            description="Whether the job must stop, and the end of its lease", models=(HeartbeatResponse,)
        )
    },
    problems=(JobNotFound, InvalidTransition, LeaseLost),
)
def heartbeat_job(call: Call, job_id: str, body: HeartbeatBody) -> RouteResponse:
    """Send a heartbeat of a running job.

    It extends the lease and stores progress. The answer reports whether the job must stop.
    """
    job = transitions.heartbeat(
        call.context,
        call.namespace,
        job_id,
        lease_token=body.lease_token,
        lease_s=body.lease,
        progress=body.progress,
        message=body.message,
        first=body.first is True,
    )
    response = HeartbeatResponse(
        job_id=job.job_id,
        status=job.status,
        cancel_requested=job.cancel_requested_at is not None,
        lease_expires_at=to_text(job.lease.expires_at) if job.lease else None,
    )
    return RouteResponse(status=200, body=response)


@ROUTES.route(
    "POST",
    "/v1/jobs/{job_id}/release",
    scope=Scope.WORK,
    responses=_JOB_RESPONSES,
    problems=(JobNotFound, InvalidTransition, LeaseLost),
)
def release_job(call: Call, job_id: str, body: ReleaseBody) -> RouteResponse:
    """Release a claimed job.

    The job is pending again, and the attempt does not count.
    """
    job = transitions.release(call.context, call.namespace, job_id, actor=call.actor, lease_token=body.lease_token)
    return _job_response(call, job)


@ROUTES.route(
    "POST",
    "/v1/jobs/{job_id}/cancel",
    scope=Scope.SUBMIT,
    body=NoContent,
    responses={
        200: ResponseSpec(description="The cancelled job", models=(JobView,)),
        202: ResponseSpec(
            description="The running job. Vigil cancels it after one minute unless it stops before",
            models=(JobView,),
        ),
    },
    problems=(JobNotFound, InvalidTransition),
)
def cancel_job(call: Call, job_id: str) -> RouteResponse:
    """Cancel a job.

    A running job receives a cancel request. Any other open job is cancelled at once.
    """
    job = transitions.cancel(call.context, call.namespace, job_id, actor=call.actor)
    return RouteResponse(status=200 if job.ended else 202, body=_job_view(call, job))


@ROUTES.route(
    "POST",
    "/v1/jobs/{job_id}/retry",
    scope=Scope.SUBMIT,
    body=NoContent,
    responses=_JOB_RESPONSES,
    problems=(JobNotFound, InvalidTransition, JobCreationFailed),
)
def retry_job(call: Call, job_id: str) -> RouteResponse:
    """Retry a failed, cancelled or skipped job under the same id."""
    require_room_for_jobs(call.context, call.namespace)
    return _job_response(call, transitions.retry(call.context, call.namespace, job_id, actor=call.actor))


def _submit_or_resume(
    call: Call,
    body: NewJobBody,
    reserved_id: str,
    resumed: bool,
    find_type: Callable[[str, str], JobType | None],
    schema_cpu: SchemaCpu | None = None,
    *,
    reserved: bool = False,
) -> Submission:
    previous = find_earlier_submission(call.context, call.namespace, body.job_id or reserved_id) if resumed else None
    if previous is not None:
        return previous
    new = build_new_job(body, find_type(call.namespace, body.job_type), reserved_id, schema_cpu)
    return submit(call.context, call.namespace, new, actor=call.actor, resumed=resumed, reserved=reserved)


def _job_type_names(bodies: Iterable[JsonValue]) -> Iterator[str]:
    for raw_body in bodies:
        name = raw_body.get("job_type") if isinstance(raw_body, Mapping) else None
        if isinstance(name, str) and is_valid_name(name):
            yield name


def _queue_names(bodies: Iterable[JsonValue], types: Mapping[str, JobType]) -> Iterator[str]:
    """Yield the queues of job bodies: their own, or those of their job types."""
    for raw_body in bodies:
        if isinstance(raw_body, Mapping):
            job_type = types.get(str(raw_body.get("job_type")))
            default = "default" if job_type is None else job_type.defaults.get("queue") or job_type.queue
            queue = raw_body.get("queue") or default
            if is_valid_name(queue):
                yield str(queue)


def _is_new(item: BulkItem) -> bool:
    """Return whether an item of a bulk request is a new job."""
    return isinstance(item, BulkSuccess) and "existing" not in item.model_fields_set


def _run_idempotent(
    call: Call, body: RequestModel, execute: Callable[[str, bool], HttpResponse]
) -> tuple[int, dict[str, Any]]:
    route = f"{call.operation.method} {call.operation.path}"
    key = call.request.idempotency_key
    status, document = run_idempotent(
        call.context, call.namespace, route=route, key=key, request=body.model_dump(), action=execute
    )
    return status, cast(dict[str, Any], document)


def _job_response(call: Call, job: Job) -> RouteResponse:
    return RouteResponse(status=200, body=_job_view(call, job))


def _job_view(call: Call, job: Job) -> JobView:
    return JobView.with_payloads(job, call.context.jobs.payloads(job), open_dependencies(call.context, [job]))
