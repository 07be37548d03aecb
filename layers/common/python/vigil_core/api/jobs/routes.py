"""The routes of jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

from vigil_core.api.jobs.job_type_models import is_name, job_of_type
from vigil_core.api.jobs.models import (
    BulkAnswer,
    BulkFailure,
    BulkItem,
    BulkSuccess,
    Completion,
    CreatedJob,
    Dependencies,
    ExistingJob,
    Failure,
    Heartbeat,
    HeartbeatAnswer,
    JobEvents,
    JobList,
    JobQuery,
    JobResult,
    JobStatusView,
    JobSummary,
    Neighbour,
    NewJob,
    NewJobs,
    Nothing,
    Release,
    Report,
    ShownVerdict,
    Start,
    WholeJob,
    Wire,
)
from vigil_core.api.routing import Answer, Call, Routes, Shows
from vigil_core.api.validation import below, parse_body
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
    ValidationFailed,
)
from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.ids import derived
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.domain.timestamps import to_text
from vigil_core.services.idempotency import Outcome, once
from vigil_core.services.jobs import transitions as change_job
from vigil_core.services.jobs.dependencies import neighbours
from vigil_core.services.jobs.listing import JobFilter
from vigil_core.services.jobs.listing import list_jobs as list_stored_jobs
from vigil_core.services.jobs.long_poll import hold_job
from vigil_core.services.jobs.submit import Submitted, submit, submitted_before
from vigil_core.services.jobs.transitions import find_job
from vigil_core.services.workflows.commands import require_may_begin

ROUTES = Routes()
_CHANGED = {200: Shows(what="The job as it is now", models=(WholeJob,))}
_IDEMPOTENCY = (IdempotencyKeyReused, IdempotencyInProgress)


@ROUTES.route(
    "POST",
    "/v1/jobs",
    scope=Scope.SUBMIT,
    headers=("Idempotency-Key", "Prefer"),
    answers={
        200: Shows(
            what="The whole job: ended within the preferred wait, or existing under the same unique_key",
            models=(ExistingJob, WholeJob),
            headers=("Location", "Preference-Applied"),
        ),
        202: Shows(what="The new job", models=(CreatedJob,), headers=("Location", "Preference-Applied")),
    },
    problems=(JobCreationFailed, MissingDependency, PayloadTooLarge, *_IDEMPOTENCY),
)
def create_job(call: Call, body: NewJob) -> Answer:
    """Create a job. With `Prefer: wait=N` the answer is held until the job has ended, at most N seconds."""

    def act(reserved_id: str, resumed: bool) -> Outcome:
        submitted = _submitted(call, body, reserved_id, resumed, call.context.job_types.find)
        job = submitted.job
        if call.request.wait_s:
            job = hold_job(call.context, call.namespace, job.job_id, until=call.request.hold_until(0))
        if submitted.existing:
            return 200, ExistingJob.found(job, call.context.jobs.bodies(job), call.context.now()).plain()
        if job.ended and call.request.wait_s:
            return 200, _whole(call, job).plain()
        return 202, CreatedJob.created(job, submitted.payload, submitted.payload_url).plain()

    status, shown = _once(call, body, act)
    headers = {"location": f"/v1/jobs/{shown['job_id']}", **call.request.preference_applied}
    return Answer(status=status, body=shown, headers=headers)


@ROUTES.route(
    "POST",
    "/v1/jobs/bulk",
    scope=Scope.SUBMIT,
    headers=("Idempotency-Key",),
    answers={200: Shows(what="What became of each, in the order of the request", models=(BulkAnswer,))},
    problems=_IDEMPOTENCY,
)
def create_jobs(call: Call, body: NewJobs) -> Answer:
    """Create up to 100 jobs. One that cannot be created gives a problem in its place and spoils no other."""

    def act(reserved_id: str, resumed: bool) -> Outcome:
        types = call.context.job_types.find_many(call.namespace, set(_types_named(body.jobs)))

        def create(numbered: tuple[int, JsonValue]) -> BulkItem:
            number, wanted = numbered
            try:
                new, new_id = parse_body(NewJob, wanted), derived(reserved_id, str(number))
                submitted = _submitted(call, new, new_id, resumed, lambda _, name: types.get(name))
            except Exception as error:
                return BulkFailure(problem=call.problem(below(f"/jobs/{number}", error)))
            job = JobSummary.of(submitted.job)
            if submitted.existing:
                return BulkSuccess(job_id=job.job_id, job=job, existing=True)
            return BulkSuccess(job_id=job.job_id, job=job)

        return 200, BulkAnswer(results=call.context.in_parallel(create, enumerate(body.jobs))).plain()

    status, shown = _once(call, body, act)
    return Answer(status=status, body=shown)


@ROUTES.route(
    "GET",
    "/v1/jobs",
    scope=Scope.READ,
    answers={200: Shows(what="One page, newest first", models=(JobList,))},
)
def list_jobs(call: Call, query: JobQuery) -> Answer:
    """List jobs, newest first, without payload and result. A page may be short; only an absent token is the end."""
    filters = query.model_dump(exclude={"page_size", "page_token"}, exclude_none=True)
    of: JsonValue = ["list_jobs", {name: str(value) for name, value in filters.items()}]
    tokens = call.services.page_tokens
    statuses = filters.pop("status", None)
    found, place = list_stored_jobs(
        call.context,
        call.namespace,
        JobFilter(**filters, statuses=statuses and tuple(statuses)),
        before_place=tokens.place(call.namespace, query.page_token, of=of),
        page_size=query.page_size,
    )
    next_token = tokens.sign(call.namespace, place, of=of)
    return Answer(status=200, body=JobList(jobs=[JobSummary.of(job) for job in found], next_page_token=next_token))


@ROUTES.route(
    "GET",
    "/v1/jobs/{job_id}",
    scope=Scope.READ,
    headers=("Prefer", "If-None-Match"),
    answers={
        200: Shows(what="The whole job", models=(WholeJob,), headers=("ETag", "Preference-Applied")),
        304: Shows(what="The job is as the ETag says", headers=("ETag", "Preference-Applied")),
    },
    problems=(JobNotFound,),
)
def get_job(call: Call, job_id: str) -> Answer:
    """Get a job, payload and result included. With `Prefer: wait=N` the answer is held until the job has ended."""
    job = hold_job(call.context, call.namespace, job_id, until=call.request.hold_until(0))
    etag = f'"{job.version}.{job.live_version}"'
    headers = {"etag": etag, **call.request.preference_applied}
    if call.request.has_seen(etag):
        return Answer(status=304, headers=headers)
    return Answer(status=200, body=_whole(call, job), headers=headers)


@ROUTES.route(
    "GET",
    "/v1/jobs/{job_id}/status",
    scope=Scope.READ,
    answers={200: Shows(what="The light form", models=(JobStatusView,))},
    problems=(JobNotFound,),
)
def get_job_status(call: Call, job_id: str) -> Answer:
    """Get what changes of a job, in one small read."""
    job = find_job(call.context, call.namespace, job_id)
    light = JobStatusView(
        job_id=job.job_id,
        status=job.status,
        job_stage=job.stage,
        job_health=job.health,
        progress=job.progress,
        message=job.message,
    )
    return Answer(status=200, body=light)


@ROUTES.route(
    "GET",
    "/v1/jobs/{job_id}/result",
    scope=Scope.READ,
    answers={200: Shows(what="What came of the job", models=(JobResult,))},
    problems=(JobNotFound, JobNotCompleted),
)
def get_job_result(call: Call, job_id: str) -> Answer:
    """Get the result or the error of a job that has ended."""
    job = find_job(call.context, call.namespace, job_id)
    if not job.ended:
        raise JobNotCompleted(job_id)
    return Answer(status=200, body=JobResult.of(job, call.context.jobs.bodies(job, payload=False)))


@ROUTES.route(
    "GET",
    "/v1/jobs/{job_id}/events",
    scope=Scope.READ,
    answers={200: Shows(what="The history, oldest first", models=(JobEvents,))},
    problems=(JobNotFound,),
)
def get_job_events(call: Call, job_id: str) -> Answer:
    """Get the history of a job: who did what when, and what it changed."""
    job = find_job(call.context, call.namespace, job_id)
    return Answer(status=200, body=JobEvents.of(job_id, call.context.jobs.history(job)))


@ROUTES.route(
    "GET",
    "/v1/jobs/{job_id}/dependencies",
    scope=Scope.READ,
    answers={200: Shows(what="The jobs at both ends, as they are now", models=(Dependencies,))},
    problems=(JobNotFound,),
)
def get_job_dependencies(call: Call, job_id: str) -> Answer:
    """Get what a job depends on and which jobs wait for it to end."""
    job = find_job(call.context, call.namespace, job_id)
    before, after = neighbours(call.context, job)
    shown = Dependencies(
        job_id=job_id,
        dependency_status=job.dependency_status,
        trigger_rule=job.trigger_rule,
        condition=job.condition,
        verdict=None if job.verdict is None else ShownVerdict.of(job.verdict),
        depends_on=list(map(Neighbour.of, before)),
        dependents=list(map(Neighbour.of, after)),
    )
    return Answer(status=200, body=shown)


@ROUTES.route(
    "PATCH",
    "/v1/jobs/{job_id}",
    scope=Scope.WORK,
    answers=_CHANGED,
    problems=(JobNotFound, InvalidTransition, LeaseLost),
)
def report_job(call: Call, job_id: str, body: Report) -> Answer:
    """Report how a job goes: applied whole, or refused and nothing changed. A lower progress is ignored."""
    said = body.to_domain()
    return _changed(
        call,
        change_job.report(call.context, call.namespace, job_id, said, by=call.by, lease_token=body.lease_token),
    )


@ROUTES.route(
    "DELETE",
    "/v1/jobs/{job_id}",
    scope=Scope.SUBMIT,
    answers={204: Shows(what="The job is gone")},
    problems=(JobNotFound, InvalidTransition),
)
def delete_job(call: Call, job_id: str) -> Answer:
    """Delete a job that has ended. Its id stays taken."""
    change_job.delete(call.context, call.namespace, job_id, by=call.by)
    return Answer(status=204)


@ROUTES.route(
    "POST",
    "/v1/jobs/{job_id}/start",
    scope=Scope.WORK,
    answers=_CHANGED,
    problems=(JobNotFound, InvalidTransition, LeaseLost),
)
def start_job(call: Call, job_id: str, body: Start) -> Answer:
    """Begin to run a job that is pending, without a lease: whoever does so is not given it by a queue."""
    require_may_begin(call.context, find_job(call.context, call.namespace, job_id))
    job = change_job.start(call.context, call.namespace, job_id, by=call.by, lease_token=body.lease_token)
    return _changed(call, job)


@ROUTES.route(
    "POST",
    "/v1/jobs/{job_id}/complete",
    scope=Scope.WORK,
    answers=_CHANGED,
    problems=(JobNotFound, InvalidTransition, LeaseLost, PayloadTooLarge),
)
def complete_job(call: Call, job_id: str, body: Completion) -> Answer:
    """End a running job well, with its result."""
    if body.result is not None and body.result_ref is not None:
        raise ValidationFailed.at("/result_ref", "stands in place of result, not beside it")
    job = change_job.complete(
        call.context,
        call.namespace,
        job_id,
        by=call.by,
        result=body.result,
        result_upload=body.result_ref,
        health=body.job_health or "success",
        fields=body.fields,
        lease_token=body.lease_token,
    )
    return _changed(call, job)


@ROUTES.route(
    "POST",
    "/v1/jobs/{job_id}/fail",
    scope=Scope.WORK,
    answers=_CHANGED,
    problems=(JobNotFound, InvalidTransition, LeaseLost),
)
def fail_job(call: Call, job_id: str, body: Failure) -> Answer:
    """End an attempt badly: another follows where `retry` allows it, else the job has failed, or completes with its
    `fallback`. One that was asked to cancel ends `cancelled`."""
    job = change_job.fail(
        call.context,
        call.namespace,
        job_id,
        JobError(code=body.error.code, message=body.error.message),
        by=call.by,
        retryable=body.retryable is not False,
        lease_token=body.lease_token,
    )
    return _changed(call, job)


@ROUTES.route(
    "POST",
    "/v1/jobs/{job_id}/heartbeat",
    scope=Scope.WORK,
    answers={200: Shows(what="Whether to go on, and until when", models=(HeartbeatAnswer,))},
    problems=(JobNotFound, InvalidTransition, LeaseLost),
)
def heartbeat_job(call: Call, job_id: str, body: Heartbeat) -> Answer:
    """Give a sign of life: it extends the lease, carries progress, and tells whether the job is to be cancelled."""
    job = change_job.heartbeat(
        call.context,
        call.namespace,
        job_id,
        lease_token=body.lease_token,
        length_s=body.lease,
        progress=body.progress,
        message=body.message,
        first=body.first is True,
    )
    answer = HeartbeatAnswer(
        job_id=job.job_id,
        status=job.status,
        cancel_requested=job.cancel_requested_at is not None,
        lease_expires_at=to_text(job.lease.until) if job.lease else None,
    )
    return Answer(status=200, body=answer)


@ROUTES.route(
    "POST",
    "/v1/jobs/{job_id}/release",
    scope=Scope.WORK,
    answers=_CHANGED,
    problems=(JobNotFound, InvalidTransition, LeaseLost),
)
def release_job(call: Call, job_id: str, body: Release) -> Answer:
    """Give a claimed job back unfinished: it is pending again, and the attempt does not count."""
    job = change_job.release(call.context, call.namespace, job_id, by=call.by, lease_token=body.lease_token)
    return _changed(call, job)


@ROUTES.route(
    "POST",
    "/v1/jobs/{job_id}/cancel",
    scope=Scope.SUBMIT,
    body=Nothing,
    answers={
        200: Shows(what="The cancelled job", models=(WholeJob,)),
        202: Shows(what="The running job, asked to end; it is ended a minute later otherwise", models=(WholeJob,)),
    },
    problems=(JobNotFound, InvalidTransition),
)
def cancel_job(call: Call, job_id: str) -> Answer:
    """Cancel a job: at once when it does not run, otherwise by asking."""
    job = change_job.cancel(call.context, call.namespace, job_id, by=call.by)
    return Answer(status=200 if job.ended else 202, body=_whole(call, job))


@ROUTES.route(
    "POST",
    "/v1/jobs/{job_id}/retry",
    scope=Scope.SUBMIT,
    body=Nothing,
    answers=_CHANGED,
    problems=(JobNotFound, InvalidTransition, JobCreationFailed),
)
def retry_job(call: Call, job_id: str) -> Answer:
    """Try a failed, cancelled or skipped job again, under the same id."""
    return _changed(call, change_job.retry(call.context, call.namespace, job_id, by=call.by))


def _submitted(
    call: Call,
    asked: NewJob,
    reserved_id: str,
    resumed: bool,
    find_type: Callable[[str, str], JobType | None],
) -> Submitted:
    before = submitted_before(call.context, call.namespace, asked.job_id or reserved_id) if resumed else None
    if before is not None:
        return before
    new = job_of_type(asked, find_type(call.namespace, asked.job_type), reserved_id)
    return submit(call.context, call.namespace, new, by=call.by, resumed=resumed)


def _types_named(wanted: Iterable[JsonValue]) -> Iterator[str]:
    for asked in wanted:
        name = asked.get("job_type") if isinstance(asked, Mapping) else None
        if isinstance(name, str) and is_name(name):
            yield name


def _once(call: Call, body: Wire, act: Callable[[str, bool], Outcome]) -> tuple[int, dict[str, Any]]:
    route = f"{call.operation.method} {call.operation.path}"
    key = call.request.idempotency_key
    status, shown = once(call.context, call.namespace, route=route, key=key, request=body.model_dump(), act=act)
    return status, cast(dict[str, Any], shown)


def _changed(call: Call, job: Job) -> Answer:
    return Answer(status=200, body=_whole(call, job))


def _whole(call: Call, job: Job) -> WholeJob:
    return WholeJob.whole(job, call.context.jobs.bodies(job))
