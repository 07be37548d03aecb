"""The routes of waits."""

from __future__ import annotations

from typing import Any

from vigil_core.api.routing import Call, ResponseSpec, RouteResponse, Routes
from vigil_core.domain.access import Scope
from vigil_core.domain.errors import (
    IdempotencyInProgress,
    IdempotencyKeyReused,
    InvalidTransition,
    JobNotFound,
    WaitNotFound,
)
from vigil_core.domain.exact_json import JsonValue
from vigil_core.schemas.base import PageQuery
from vigil_core.schemas.waits import WaitBody, WaitJobs, WaitList, WaitQuery, WaitView
from vigil_core.services.idempotency import HttpResponse, run_idempotent
from vigil_core.services.waits import requests as wait_requests

ROUTES = Routes("waits")
DEFAULT_LONG_POLL_S = 20


def create_wait(call: Call, body: Any) -> RouteResponse:
    """Wait for jobs.

    Registers a wait, or continues the wait whose answer is posted back unchanged. The answer arrives when the wait
    is done, or after the N seconds of `Prefer: wait=N` (default 20, at most 25). Post the answer back as long as it
    has `wait_on`.
    """

    def execute(reserved_id: str, resumed: bool) -> HttpResponse:
        del resumed  # A repeated registration under the same id is idempotent.
        return 200, wait_requests.post_wait(
            call.context,
            call.namespace,
            body,
            actor=call.actor,
            poll_until=call.request.long_poll_deadline(DEFAULT_LONG_POLL_S),
            read_only=call.access.read_only,
            slot=call.slot,
            reserved_id=reserved_id,
        )

    status, document = run_idempotent(
        call.context,
        call.namespace,
        route="POST /v1/waits",
        key=call.request.idempotency_key,
        request=body,
        action=execute,
    )
    return RouteResponse(status=status, body=document, headers=call.preference_applied)


def wait_for_jobs(call: Call, body: Any) -> RouteResponse:
    """Wait for jobs (path of older clients).

    The same as `POST /v1/waits`.
    """
    return create_wait(call, body)


for _path, _handler in (("/v1/waits", create_wait), ("/scheduler/wait-jobs", wait_for_jobs)):
    ROUTES.route(
        "POST",
        _path,
        scope=Scope.READ,
        headers=("Idempotency-Key", "Prefer"),
        responses={
            200: ResponseSpec(description="The wait", models=(WaitView,), headers=("Preference-Applied", "Retry-After"))
        },
        problems=(JobNotFound, IdempotencyKeyReused, IdempotencyInProgress),
        documented_body=WaitBody,
    )(_handler)


@ROUTES.route(
    "GET",
    "/v1/waits",
    scope=Scope.READ,
    responses={200: ResponseSpec(description="One page of waits, newest first", models=(WaitList,))},
)
def list_waits(call: Call, query: WaitQuery) -> RouteResponse:
    """List waits, newest first, without their jobs.

    A page may be short. Only a null token marks the end.
    """
    scope: JsonValue = ["list_waits", query.status]
    tokens = call.services.page_tokens
    waits, cursor = wait_requests.list_waits(
        call.context,
        call.namespace,
        status=query.status,
        before_cursor=tokens.verify(call.namespace, query.page_token, list_identity=scope),
        page_size=query.page_size,
    )
    return RouteResponse(
        status=200, body={"waits": waits, "next_page_token": tokens.sign(call.namespace, cursor, list_identity=scope)}
    )


@ROUTES.route(
    "GET",
    "/v1/waits/{wait_id}",
    scope=Scope.READ,
    headers=("Prefer",),
    responses={
        200: ResponseSpec(description="The wait", models=(WaitView,), headers=("Preference-Applied", "Retry-After"))
    },
    problems=(WaitNotFound,),
)
def get_wait(call: Call, wait_id: str) -> RouteResponse:
    """Get a wait.

    With `Prefer: wait=N` the answer arrives when the wait is done, or after N seconds.
    """
    document = wait_requests.show_wait(
        call.context, call.namespace, wait_id, poll_until=call.request.long_poll_deadline(0), slot=call.slot
    )
    return RouteResponse(status=200, body=document, headers=call.preference_applied)


@ROUTES.route(
    "GET",
    "/v1/waits/{wait_id}/jobs",
    scope=Scope.READ,
    responses={200: ResponseSpec(description="One page, in the order of `wait_on`", models=(WaitJobs,))},
    problems=(WaitNotFound,),
)
def get_wait_jobs(call: Call, wait_id: str, query: PageQuery) -> RouteResponse:
    """List the decided jobs of a wait with their outcomes."""
    scope = ["get_wait_jobs", wait_id]
    tokens = call.services.page_tokens
    cursor = tokens.verify(call.namespace, query.page_token, list_identity=scope)
    jobs, next_index = wait_requests.list_wait_jobs(
        call.context,
        call.namespace,
        wait_id,
        after_index=-1 if cursor is None else int(cursor),
        page_size=query.page_size,
    )
    next_token = tokens.sign(call.namespace, None if next_index is None else str(next_index), list_identity=scope)
    return RouteResponse(status=200, body={"jobs": jobs, "next_page_token": next_token})


@ROUTES.route(
    "DELETE",
    "/v1/waits/{wait_id}",
    scope=Scope.READ,
    responses={200: ResponseSpec(description="The cancelled wait", models=(WaitView,))},
    problems=(WaitNotFound, InvalidTransition),
)
def cancel_wait(call: Call, wait_id: str) -> RouteResponse:
    """Cancel a wait.

    It stays readable. A repeated request changes nothing. A key of scope `read` or `work` cancels only the waits that
    it registered itself.
    """
    return RouteResponse(
        status=200, body=wait_requests.cancel_wait(call.context, call.namespace, wait_id, access=call.access)
    )
