"""The routes of waits."""

from __future__ import annotations

from typing import Any

from vigil_core.api.jobs.models import PageQuery, WaitQuery
from vigil_core.api.routing import Answer, Call, Routes, Shows
from vigil_core.api.waits.models import WaitAnswer, WaitJobs, WaitList, WaitRequest
from vigil_core.domain.access import Scope
from vigil_core.domain.errors import (
    IdempotencyInProgress,
    IdempotencyKeyReused,
    InvalidTransition,
    JobNotFound,
    WaitNotFound,
)
from vigil_core.domain.exact_json import JsonValue
from vigil_core.services.idempotency import Outcome, once
from vigil_core.services.waits import requests as waits_api

ROUTES = Routes()
DEFAULT_HOLD_S = 20


def create_wait(call: Call, body: Any) -> Answer:
    """Wait for jobs. Registers a wait, or goes on with the one whose answer is posted back as it stands. The answer is
    held until the wait is done or `Prefer: wait=N` seconds (20, at most 25) have passed. While it has `wait_on`, post
    it again."""

    def act(reserved_id: str, resumed: bool) -> Outcome:
        del resumed  # Registration can be repeated under the same id.
        return 200, waits_api.post_wait(
            call.context,
            call.namespace,
            body,
            by=call.by,
            hold_until=call.request.hold_until(DEFAULT_HOLD_S),
            reserved_id=reserved_id,
        )

    status, shown = once(
        call.context,
        call.namespace,
        route="POST /v1/waits",
        key=call.request.idempotency_key,
        request=body,
        act=act,
    )
    return Answer(status=status, body=shown, headers=call.request.preference_applied)


def wait_for_jobs(call: Call, body: Any) -> Answer:
    """Wait for jobs. The same as `POST /v1/waits`, at the path that older clients know."""
    return create_wait(call, body)


for _path, _act in (("/v1/waits", create_wait), ("/scheduler/wait-jobs", wait_for_jobs)):
    ROUTES.route(
        "POST",
        _path,
        scope=Scope.READ,
        headers=("Idempotency-Key", "Prefer"),
        answers={200: Shows(what="The wait as it stands", models=(WaitAnswer,), headers=("Preference-Applied",))},
        problems=(JobNotFound, IdempotencyKeyReused, IdempotencyInProgress),
        documented_body=WaitRequest,
    )(_act)


@ROUTES.route(
    "GET",
    "/v1/waits",
    scope=Scope.READ,
    answers={200: Shows(what="One page, newest first", models=(WaitList,))},
)
def list_waits(call: Call, query: WaitQuery) -> Answer:
    """List waits, newest first, in short form. A page may be short; only an absent token is the end."""
    of: JsonValue = ["list_waits", query.status]
    tokens = call.services.page_tokens
    found, place = waits_api.list_waits(
        call.context,
        call.namespace,
        status=query.status,
        before_place=tokens.place(call.namespace, query.page_token, of=of),
        page_size=query.page_size,
    )
    return Answer(status=200, body={"waits": found, "next_page_token": tokens.sign(call.namespace, place, of=of)})


@ROUTES.route(
    "GET",
    "/v1/waits/{wait_id}",
    scope=Scope.READ,
    headers=("Prefer",),
    answers={200: Shows(what="The wait as it stands", models=(WaitAnswer,), headers=("Preference-Applied",))},
    problems=(WaitNotFound,),
)
def get_wait(call: Call, wait_id: str) -> Answer:
    """Get a wait. With `Prefer: wait=N` the answer is held until it is done."""
    shown = waits_api.show_wait(call.context, call.namespace, wait_id, hold_until=call.request.hold_until(0))
    return Answer(status=200, body=shown, headers=call.request.preference_applied)


@ROUTES.route(
    "GET",
    "/v1/waits/{wait_id}/jobs",
    scope=Scope.READ,
    answers={200: Shows(what="One page, in the order of `wait_on`", models=(WaitJobs,))},
    problems=(WaitNotFound,),
)
def get_wait_jobs(call: Call, wait_id: str, query: PageQuery) -> Answer:
    """Get what became of a wait's jobs, page by page."""
    of = ["get_wait_jobs", wait_id]
    tokens = call.services.page_tokens
    place = tokens.place(call.namespace, query.page_token, of=of)
    found, after = waits_api.wait_jobs(
        call.context,
        call.namespace,
        wait_id,
        after_index=-1 if place is None else int(place),
        page_size=query.page_size,
    )
    next_token = tokens.sign(call.namespace, None if after is None else str(after), of=of)
    return Answer(status=200, body={"jobs": found, "next_page_token": next_token})


@ROUTES.route(
    "DELETE",
    "/v1/waits/{wait_id}",
    scope=Scope.READ,
    answers={200: Shows(what="The cancelled wait", models=(WaitAnswer,))},
    problems=(WaitNotFound, InvalidTransition),
)
def cancel_wait(call: Call, wait_id: str) -> Answer:
    """Cancel a wait. It stays readable; cancelling it again changes nothing."""
    return Answer(status=200, body=waits_api.cancel_wait(call.context, call.namespace, wait_id, by=call.by))
