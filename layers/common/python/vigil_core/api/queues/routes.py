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
    Depth,
    Nothing,
    PageQuery,
    QueueList,
    QueueSummary,
    QueueView,
    WorkerView,
)
from vigil_core.api.routing import Answer, Call, Routes, Shows
from vigil_core.domain.access import Scope
from vigil_core.domain.errors import ValidationFailed
from vigil_core.domain.timestamps import to_text
from vigil_core.services.jobs.dependencies import inputs_of
from vigil_core.services.jobs.payloads import bodies_of_many
from vigil_core.services.queues.claim import Claim, claim_jobs
from vigil_core.services.queues.stats import show_queue
from vigil_core.services.timers import wake_for_queue

ROUTES = Routes()
DEFAULT_LEASE_S = 60
_QUEUE = {200: Shows(what="The queue as it stands", models=(QueueView,))}


@ROUTES.route(
    "POST",
    "/v1/queues/{queue}/claim",
    scope=Scope.WORK,
    headers=("Prefer",),
    answers={
        200: Shows(what="The jobs, each under a lease", models=(ClaimedJobs,), headers=("Preference-Applied",)),
    },
)
def claim(call: Call, queue: str, body: ClaimBody) -> Answer:
    """Claim jobs of a queue: the highest priority first, then the oldest. Each comes under a lease, which heartbeats
    extend. With `Prefer: wait=N` the answer is held until there is a job."""
    wanted = Claim(
        queue=_name(queue),
        worker=body.worker or call.by,
        most=body.max or 1,
        lease_s=body.lease or DEFAULT_LEASE_S,
        claim_id=body.claim_id,
    )
    granted = claim_jobs(call.context, call.namespace, wanted, by=call.by, until=call.request.hold_until(0))
    bodies = bodies_of_many(call.context, granted)
    inputs = [inputs_of(call.context, job) for job in granted]
    shown = [
        ClaimedJob.claimed(job, job.lease, its, from_others)
        for job, its, from_others in zip(granted, bodies, inputs, strict=True)
        if job.lease
    ]
    return Answer(status=200, body=ClaimedJobs(jobs=shown), headers=call.request.preference_applied)


@ROUTES.route(
    "GET",
    "/v1/queues",
    scope=Scope.READ,
    answers={200: Shows(what="One page, by name", models=(QueueList,))},
)
def list_queues(call: Call, query: PageQuery) -> Answer:
    """List the queues that ever had a job or were paused."""
    tokens = call.services.page_tokens
    of = ["list_queues"]
    after = tokens.place(call.namespace, query.page_token, of=of)
    found = list(islice(call.context.job_queues.listed(call.namespace, after=after), query.page_size + 1))
    page = found[: query.page_size]
    place = page[-1][0] if len(found) > len(page) else None
    shown = [QueueSummary(queue=name, paused=paused) for name, paused in page]
    return Answer(status=200, body=QueueList(queues=shown, next_page_token=tokens.sign(call.namespace, place, of=of)))


@ROUTES.route("GET", "/v1/queues/{queue}", scope=Scope.READ, answers=_QUEUE)
def get_queue(call: Call, queue: str) -> Answer:
    """Get what is in a queue and who works on it. Any name is a queue: one without jobs is empty."""
    return _shown(call, _name(queue))


@ROUTES.route("POST", "/v1/queues/{queue}/pause", scope=Scope.ADMIN, body=Nothing, answers=_QUEUE)
def pause_queue(call: Call, queue: str) -> Answer:
    """Have a queue hand nothing out. What runs goes on."""
    call.context.job_queues.set_paused(call.namespace, _name(queue), True)
    return _shown(call, _name(queue))


@ROUTES.route("POST", "/v1/queues/{queue}/resume", scope=Scope.ADMIN, body=Nothing, answers=_QUEUE)
def resume_queue(call: Call, queue: str) -> Answer:
    """Have a paused queue hand out jobs again."""
    call.context.job_queues.set_paused(call.namespace, _name(queue), False)
    wake_for_queue(call.context, call.namespace, queue)
    return _shown(call, _name(queue))


def _shown(call: Call, queue: str) -> Answer:
    state = show_queue(call.context, call.namespace, queue)
    now = call.context.now()
    claims = [worker.last_claim_at for worker in state.workers if worker.last_claim_at]
    age = None if state.oldest_ready is None else round(Decimal((now - state.oldest_ready).total_seconds()), 3)
    view = QueueView(
        queue=queue,
        paused=state.paused,
        depth=Depth(pending=sum(state.ready.values()), **state.watched),
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
    return Answer(status=200, body=view)


def _name(queue: str) -> str:
    """The queue's name. Raises ValidationFailed for what is no name."""
    if len(queue) > 128 or not re.fullmatch(QUEUE_PATTERN, queue):
        detail = "a queue's name has 1 to 128 characters: no control characters, no / and no %"
        raise ValidationFailed.at("{queue}", detail)
    return queue
