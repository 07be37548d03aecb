"""The routes of queues."""

from __future__ import annotations

from decimal import Decimal
from itertools import islice

from vigil_core.api.queues.models import (
    ClaimedJob,
    ClaimedJobs,
    QueueDepth,
    QueueList,
    QueueSummary,
    QueueView,
    WorkerView,
)
from vigil_core.api.routing import Call, ResponseSpec, RouteResponse, Routes
from vigil_core.domain.access import Scope
from vigil_core.domain.errors import ValidationFailed
from vigil_core.domain.text_rule import MAX_NAME_CHARS, NAME_RULE, is_name
from vigil_core.domain.timestamps import to_text
from vigil_core.schemas.base import NoContent, PageQuery
from vigil_core.schemas.queues import ClaimBody
from vigil_core.services.jobs.dependency_results import load_claimed_results
from vigil_core.services.jobs.response_payloads import payloads_of_jobs
from vigil_core.services.queues.claim import ClaimRequest, claim_jobs
from vigil_core.services.queues.stats import queue_state
from vigil_core.services.timers import request_queue_sweep

ROUTES = Routes("queues")
DEFAULT_LEASE_S = 60
_QUEUE_RESPONSES = {200: ResponseSpec(description="The queue", models=(QueueView,))}


@ROUTES.route(
    "POST",
    "/v1/queues/{queue}/claim",
    scope=Scope.WORK,
    headers=("Prefer",),
    responses={
        200: ResponseSpec(
            description="The claimed jobs", models=(ClaimedJobs,), headers=("Preference-Applied", "Retry-After")
        ),
    },
)
def claim(call: Call, queue: str, body: ClaimBody) -> RouteResponse:
    """Claim jobs of a queue.

    The queue grants the highest priority first, then the oldest job. Each job has a lease, which heartbeats extend.
    With `Prefer: wait=N` the answer arrives when a job is granted, or after N seconds.
    """
    request = ClaimRequest(
        queue=_require_queue_name(queue),
        worker=body.worker or call.actor,
        limit=body.max or 1,
        lease_s=body.lease or DEFAULT_LEASE_S,
        claim_id=body.claim_id,
    )
    granted = claim_jobs(
        call.context,
        call.namespace,
        request,
        actor=call.actor,
        until=call.request.long_poll_deadline(0),
        slot=call.slot,
    )
    payloads_by_job = payloads_of_jobs(call.context, granted)
    inline_results_by_job = load_claimed_results(call.context, granted)
    claimed_jobs = [
        ClaimedJob.from_claim(job, job.lease, payloads, inline_results)
        for job, payloads, inline_results in zip(granted, payloads_by_job, inline_results_by_job, strict=True)
        if job.lease
    ]
    return RouteResponse(status=200, body=ClaimedJobs(jobs=claimed_jobs), headers=call.preference_applied)


@ROUTES.route(
    "GET",
    "/v1/queues",
    scope=Scope.READ,
    responses={200: ResponseSpec(description="One page of queues", models=(QueueList,))},
)
def list_queues(call: Call, query: PageQuery) -> RouteResponse:
    """List the queues that had a job or were paused."""
    tokens = call.services.page_tokens
    scope = ["list_queues"]
    after = tokens.verify(call.namespace, query.page_token, list_identity=scope)
    queues = list(islice(call.context.job_queues.list_queues(call.namespace, after=after), query.page_size + 1))
    page = queues[: query.page_size]
    cursor = page[-1][0] if len(queues) > len(page) else None
    summaries = [QueueSummary(queue=name, paused=paused) for name, paused in page]
    return RouteResponse(
        status=200,
        body=QueueList(queues=summaries, next_page_token=tokens.sign(call.namespace, cursor, list_identity=scope)),
    )


@ROUTES.route("GET", "/v1/queues/{queue}", scope=Scope.READ, responses=_QUEUE_RESPONSES)
def get_queue(call: Call, queue: str) -> RouteResponse:
    """Get the depth and the workers of a queue.

    Every valid name is a queue. A queue without jobs is empty.
    """
    return _queue_response(call, _require_queue_name(queue))


@ROUTES.route("POST", "/v1/queues/{queue}/pause", scope=Scope.ADMIN, body=NoContent, responses=_QUEUE_RESPONSES)
def pause_queue(call: Call, queue: str) -> RouteResponse:
    """Pause a queue.

    Vigil grants and dispatches none of its jobs. Running jobs continue.
    """
    call.context.job_queues.set_paused(call.namespace, _require_queue_name(queue), True)
    return _queue_response(call, _require_queue_name(queue))


@ROUTES.route("POST", "/v1/queues/{queue}/resume", scope=Scope.ADMIN, body=NoContent, responses=_QUEUE_RESPONSES)
def resume_queue(call: Call, queue: str) -> RouteResponse:
    """Resume a paused queue."""
    call.context.job_queues.set_paused(call.namespace, _require_queue_name(queue), False)
    request_queue_sweep(call.context, call.namespace, queue)
    return _queue_response(call, _require_queue_name(queue))


def _queue_response(call: Call, queue: str) -> RouteResponse:
    state = queue_state(call.context, call.namespace, queue)
    now = call.context.now()
    claims = [worker.last_claim_at for worker in state.workers if worker.last_claim_at]
    age = None if state.oldest_ready is None else round(Decimal((now - state.oldest_ready).total_seconds()), 3)
    view = QueueView(
        queue=queue,
        paused=state.paused,
        depth=QueueDepth(pending=sum(state.ready.values()), **state.timed),
        pending_by_priority=dict(state.ready),
        oldest_age_s=None if age is None else max(age, Decimal(0)),
        last_claim_at=to_text(max(claims)) if claims else None,
        workers=[
            WorkerView(
                worker=worker.worker, running=state.running.get(worker.worker, 0), last_seen=to_text(worker.last_seen)
            )
            for worker in state.workers
        ],
    )
    return RouteResponse(status=200, body=view)


def _require_queue_name(queue: str) -> str:
    """Return the name of the queue.

    Raises:
        ValidationFailed: No queue can have this name.
    """
    if not is_name(queue) or "/" in queue or "%" in queue:
        detail = f"must be 1 to {MAX_NAME_CHARS} characters, {NAME_RULE}, and neither / nor %"
        raise ValidationFailed.at("{queue}", detail)
    return queue
