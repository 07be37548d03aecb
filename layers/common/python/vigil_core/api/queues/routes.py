"""The routes of queues."""

from __future__ import annotations

import re
from decimal import Decimal
from itertools import islice

from vigil_core.api.jobs.models import (
    QUEUE_PATTERN,
    ClaimBody,
    ClaimedJob,
    ClaimedJobs,
    NoContent,
    PageQuery,
    QueueDepth,
    QueueList,
    QueueSummary,
    QueueView,
    WorkerView,
)
from vigil_core.api.routing import Call, ResponseSpec, RouteResponse, Routes
from vigil_core.domain.access import Scope
from vigil_core.domain.errors import ValidationFailed
from vigil_core.domain.timestamps import to_text
from vigil_core.services.jobs.dependencies import load_dependency_results
from vigil_core.services.jobs.payloads import bodies_of_jobs
from vigil_core.services.queues.claim import ClaimRequest, claim_jobs
from vigil_core.services.queues.stats import queue_state
from vigil_core.services.timers import request_queue_sweep

ROUTES = Routes()
DEFAULT_LEASE_S = 60
_QUEUE_RESPONSES = {200: ResponseSpec(description="The queue as it stands", models=(QueueView,))}


@ROUTES.route(
    "POST",
    "/v1/queues/{queue}/claim",
    scope=Scope.WORK,
    headers=("Prefer",),
    responses={
        200: ResponseSpec(
            description="The jobs, each under a lease", models=(ClaimedJobs,), headers=("Preference-Applied",)
        ),
    },
)
def claim(call: Call, queue: str, body: ClaimBody) -> RouteResponse:
    """Claim jobs of a queue: the highest priority first, then the oldest. Each comes under a lease, which heartbeats
    extend. With `Prefer: wait=N` the answer is held until there is a job."""
    request = ClaimRequest(
        queue=_require_queue_name(queue),
        worker=body.worker or call.actor,
        limit=body.max or 1,
        lease_s=body.lease or DEFAULT_LEASE_S,
        claim_id=body.claim_id,
    )
    granted = claim_jobs(
        call.context, call.namespace, request, actor=call.actor, until=call.request.long_poll_deadline(0)
    )
    bodies = bodies_of_jobs(call.context, granted)
    dependency_results = [load_dependency_results(call.context, job) for job in granted]
    claimed_jobs = [
        ClaimedJob.from_claim(job, job.lease, its, from_others)
        for job, its, from_others in zip(granted, bodies, dependency_results, strict=True)
        if job.lease
    ]
    return RouteResponse(status=200, body=ClaimedJobs(jobs=claimed_jobs), headers=call.request.preference_applied)


@ROUTES.route(
    "GET",
    "/v1/queues",
    scope=Scope.READ,
    responses={200: ResponseSpec(description="One page, by name", models=(QueueList,))},
)
def list_queues(call: Call, query: PageQuery) -> RouteResponse:
    """List the queues that ever had a job or were paused."""
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
    """Get what is in a queue and who works on it. Any name is a queue: one without jobs is empty."""
    return _queue_response(call, _require_queue_name(queue))


@ROUTES.route("POST", "/v1/queues/{queue}/pause", scope=Scope.ADMIN, body=NoContent, responses=_QUEUE_RESPONSES)
def pause_queue(call: Call, queue: str) -> RouteResponse:
    """Have a queue hand nothing out. What runs goes on."""
    call.context.job_queues.set_paused(call.namespace, _require_queue_name(queue), True)
    return _queue_response(call, _require_queue_name(queue))


@ROUTES.route("POST", "/v1/queues/{queue}/resume", scope=Scope.ADMIN, body=NoContent, responses=_QUEUE_RESPONSES)
def resume_queue(call: Call, queue: str) -> RouteResponse:
    """Have a paused queue hand out jobs again."""
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
    """The queue's name. Raises ValidationFailed for what is no name."""
    if len(queue) > 128 or not re.fullmatch(QUEUE_PATTERN, queue):
        detail = "a queue's name has 1 to 128 characters: no control characters, no / and no %"
        raise ValidationFailed.at("{queue}", detail)
    return queue
