"""The routes of schedules."""

from __future__ import annotations

from typing import Any

from vigil_core.api.jobs.job_type_models import is_name
from vigil_core.api.jobs.models import Nothing, PageQuery
from vigil_core.api.routing import Answer, Call, Routes, Shows
from vigil_core.api.schedules.models import ScheduleBody, ScheduleList, ScheduleView, schedule_of
from vigil_core.domain.access import Scope
from vigil_core.domain.errors import ScheduleNotFound
from vigil_core.services.schedules import manage as schedules

ROUTES = Routes()


@ROUTES.route(
    "PUT",
    "/v1/schedules/{schedule}",
    scope=Scope.ADMIN,
    documented_body=ScheduleBody,
    answers={
        200: Shows(what="The schedule, which there was before", models=(ScheduleView,)),
        201: Shows(what="The new schedule", models=(ScheduleView,)),
    },
)
def put_schedule(call: Call, schedule: str, body: Any) -> Answer:
    """Define a schedule, or define it anew: all of it. What it has created stays as it is."""
    ctx = call.context
    now = ctx.now()
    wanted = schedule_of(call.namespace, schedule, body, now=now, new_id=ctx.new_id, find_types=ctx.job_types.find_many)
    stored, new = schedules.put_schedule(ctx, wanted)
    return Answer(status=201 if new else 200, body=ScheduleView.of(stored, now))


@ROUTES.route(
    "GET",
    "/v1/schedules",
    scope=Scope.READ,
    answers={200: Shows(what="One page, by name", models=(ScheduleList,))},
)
def list_schedules(call: Call, query: PageQuery) -> Answer:
    """List schedules by name. A page may be short; only an absent token is the end."""
    tokens, of = call.services.page_tokens, ["list_schedules"]
    after = tokens.place(call.namespace, query.page_token, of=of)
    found, place = call.context.schedules.page(call.namespace, after=after, limit=query.page_size)
    now = call.context.now()
    shown = [ScheduleView.of(schedule, now) for schedule in found]
    next_token = tokens.sign(call.namespace, place, of=of)
    return Answer(status=200, body=ScheduleList(schedules=shown, next_page_token=next_token))


@ROUTES.route(
    "GET",
    "/v1/schedules/{schedule}",
    scope=Scope.READ,
    answers={200: Shows(what="The schedule", models=(ScheduleView,))},
    problems=(ScheduleNotFound,),
)
def get_schedule(call: Call, schedule: str) -> Answer:
    """Get a schedule, what became of its last run, and when the next are."""
    found = schedules.find_schedule(call.context, call.namespace, _known(schedule))
    return Answer(status=200, body=ScheduleView.of(found, call.context.now()))


@ROUTES.route(
    "DELETE",
    "/v1/schedules/{schedule}",
    scope=Scope.ADMIN,
    answers={204: Shows(what="The schedule is gone")},
    problems=(ScheduleNotFound,),
)
def delete_schedule(call: Call, schedule: str) -> Answer:
    """Delete a schedule. What it has created stays."""
    schedules.delete_schedule(call.context, call.namespace, _known(schedule))
    return Answer(status=204)


@ROUTES.route(
    "POST",
    "/v1/schedules/{schedule}/pause",
    scope=Scope.ADMIN,
    body=Nothing,
    answers={200: Shows(what="The paused schedule", models=(ScheduleView,))},
    problems=(ScheduleNotFound,),
)
def pause_schedule(call: Call, schedule: str) -> Answer:
    """Pause a schedule: nothing is created until it is resumed, and what passes meanwhile is not made up for."""
    return _switched(call, schedule, enabled=False)


@ROUTES.route(
    "POST",
    "/v1/schedules/{schedule}/resume",
    scope=Scope.ADMIN,
    body=Nothing,
    answers={200: Shows(what="The schedule, which goes on", models=(ScheduleView,))},
    problems=(ScheduleNotFound,),
)
def resume_schedule(call: Call, schedule: str) -> Answer:
    """Resume a schedule, with the next time that is to come."""
    return _switched(call, schedule, enabled=True)


def _switched(call: Call, name: str, *, enabled: bool) -> Answer:
    stored = schedules.switch_schedule(call.context, call.namespace, _known(name), enabled=enabled)
    return Answer(status=200, body=ScheduleView.of(stored, call.context.now()))


def _known(name: str) -> str:
    """The name, if it can be one. Raises ScheduleNotFound."""
    if not is_name(name):
        raise ScheduleNotFound(name)
    return name
