"""The routes of schedules."""

from __future__ import annotations

from typing import Any

from vigil_core.api.routing import Call, ResponseSpec, RouteResponse, Routes
from vigil_core.api.schedules.models import ScheduleList, ScheduleView, parse_schedule
from vigil_core.domain.access import Scope
from vigil_core.domain.errors import RequestLimitExceeded, ScheduleNotFound
from vigil_core.schemas.base import NoContent, PageQuery, is_valid_name
from vigil_core.schemas.schedules import ScheduleBody
from vigil_core.services.schedules import manage as manage_schedules

ROUTES = Routes("schedules")


@ROUTES.route(
    "PUT",
    "/v1/schedules/{schedule}",
    scope=Scope.ADMIN,
    documented_body=ScheduleBody,
    responses={
        200: ResponseSpec(description="The replaced schedule", models=(ScheduleView,)),
        201: ResponseSpec(description="The new schedule", models=(ScheduleView,)),
    },
    problems=(RequestLimitExceeded,),
)
def put_schedule(call: Call, schedule: str, body: Any) -> RouteResponse:
    """Create or replace a schedule.

    Existing jobs and runs do not change.
    """
    ctx = call.context
    now = ctx.now()
    definition = parse_schedule(
        call.namespace, schedule, body, now=now, new_id=ctx.new_id, find_types=ctx.job_types.find_many
    )
    manage_schedules.require_creatable_now(ctx, definition)
    stored, is_new = manage_schedules.put_schedule(ctx, definition)
    return RouteResponse(status=201 if is_new else 200, body=ScheduleView.from_domain(stored, now))


@ROUTES.route(
    "GET",
    "/v1/schedules",
    scope=Scope.READ,
    responses={200: ResponseSpec(description="One page, sorted by name", models=(ScheduleList,))},
)
def list_schedules(call: Call, query: PageQuery) -> RouteResponse:
    """List schedules, sorted by name.

    A page may be short. Only a null token marks the end.
    """
    tokens, scope = call.services.page_tokens, ["list_schedules"]
    after = tokens.verify(call.namespace, query.page_token, list_identity=scope)
    page, cursor = call.context.schedules.page(call.namespace, after=after, limit=query.page_size)
    now = call.context.now()
    views = [ScheduleView.from_domain(schedule, now) for schedule in page]
    next_token = tokens.sign(call.namespace, cursor, list_identity=scope)
    return RouteResponse(status=200, body=ScheduleList(schedules=views, next_page_token=next_token))


@ROUTES.route(
    "GET",
    "/v1/schedules/{schedule}",
    scope=Scope.READ,
    responses={200: ResponseSpec(description="The schedule", models=(ScheduleView,))},
    problems=(ScheduleNotFound,),
)
def get_schedule(call: Call, schedule: str) -> RouteResponse:
    """Get a schedule with its last fire and its next planned times."""
    stored = manage_schedules.find_schedule(call.context, call.namespace, _require_valid_name(schedule))
    return RouteResponse(status=200, body=ScheduleView.from_domain(stored, call.context.now()))


@ROUTES.route(
    "DELETE",
    "/v1/schedules/{schedule}",
    scope=Scope.ADMIN,
    responses={204: ResponseSpec(description="The schedule is deleted")},
    problems=(ScheduleNotFound,),
)
def delete_schedule(call: Call, schedule: str) -> RouteResponse:
    """Delete a schedule.

    The jobs and runs that it created stay.
    """
    manage_schedules.delete_schedule(call.context, call.namespace, _require_valid_name(schedule))
    return RouteResponse(status=204)


@ROUTES.route(
    "POST",
    "/v1/schedules/{schedule}/pause",
    scope=Scope.ADMIN,
    body=NoContent,
    responses={200: ResponseSpec(description="The paused schedule", models=(ScheduleView,))},
    problems=(ScheduleNotFound,),
)
def pause_schedule(call: Call, schedule: str) -> RouteResponse:
    """Pause a schedule.

    It creates nothing until it is resumed. The planned times in between are dropped.
    """
    return _set_enabled(call, schedule, enabled=False)


@ROUTES.route(
    "POST",
    "/v1/schedules/{schedule}/resume",
    scope=Scope.ADMIN,
    body=NoContent,
    responses={200: ResponseSpec(description="The resumed schedule", models=(ScheduleView,))},
    problems=(ScheduleNotFound,),
)
def resume_schedule(call: Call, schedule: str) -> RouteResponse:
    """Resume a schedule at its next planned time."""
    return _set_enabled(call, schedule, enabled=True)


def _set_enabled(call: Call, name: str, *, enabled: bool) -> RouteResponse:
    stored = manage_schedules.set_schedule_enabled(
        call.context, call.namespace, _require_valid_name(name), enabled=enabled
    )
    return RouteResponse(status=200, body=ScheduleView.from_domain(stored, call.context.now()))


def _require_valid_name(name: str) -> str:
    """Return the name.

    Raises:
        ScheduleNotFound: No definition can have this name.
    """
    if not is_valid_name(name):
        raise ScheduleNotFound(name)
    return name
