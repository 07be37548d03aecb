"""The routes of job types."""

from __future__ import annotations

from typing import Any

from vigil_core.api.jobs.job_type_models import JobTypeBody, JobTypeList, JobTypeView, is_name, job_type_of
from vigil_core.api.jobs.models import PageQuery
from vigil_core.api.routing import Answer, Call, Routes, Shows
from vigil_core.domain.access import Scope
from vigil_core.domain.errors import JobTypeNotFound
from vigil_core.services.jobs import job_types

ROUTES = Routes()


@ROUTES.route(
    "PUT",
    "/v1/job-types/{job_type}",
    scope=Scope.ADMIN,
    documented_body=JobTypeBody,
    answers={
        200: Shows(what="The type, which there was before", models=(JobTypeView,)),
        201: Shows(what="The new type", models=(JobTypeView,)),
    },
)
def put_job_type(call: Call, job_type: str, body: Any) -> Answer:
    """Define a job type, or define it anew: all of it. Jobs that are there already keep what they took from it."""
    wanted = job_type_of(call.namespace, job_type, body, call.context.now())
    stored, new = job_types.put_job_type(call.context, wanted)
    return Answer(status=201 if new else 200, body=JobTypeView.of(stored))


@ROUTES.route(
    "GET",
    "/v1/job-types",
    scope=Scope.READ,
    answers={200: Shows(what="One page, by name", models=(JobTypeList,))},
)
def list_job_types(call: Call, query: PageQuery) -> Answer:
    """List job types by name. A page may be short; only an absent token is the end."""
    tokens, of = call.services.page_tokens, ["list_job_types"]
    after = tokens.place(call.namespace, query.page_token, of=of)
    found, place = call.context.job_types.page(call.namespace, after=after, limit=query.page_size)
    next_token = tokens.sign(call.namespace, place, of=of)
    return Answer(status=200, body=JobTypeList(job_types=list(map(JobTypeView.of, found)), next_page_token=next_token))


@ROUTES.route(
    "GET",
    "/v1/job-types/{job_type}",
    scope=Scope.READ,
    answers={200: Shows(what="The type", models=(JobTypeView,))},
    problems=(JobTypeNotFound,),
)
def get_job_type(call: Call, job_type: str) -> Answer:
    """Get a job type."""
    found = job_types.find_job_type(call.context, call.namespace, _known(job_type))
    return Answer(status=200, body=JobTypeView.of(found))


@ROUTES.route(
    "DELETE",
    "/v1/job-types/{job_type}",
    scope=Scope.ADMIN,
    answers={204: Shows(what="The type is gone")},
    problems=(JobTypeNotFound,),
)
def delete_job_type(call: Call, job_type: str) -> Answer:
    """Delete a job type. Its jobs go on as they are, and new ones are created as if there had never been a type."""
    job_types.delete_job_type(call.context, call.namespace, _known(job_type))
    return Answer(status=204)


def _known(name: str) -> str:
    """The name, if it can be one. Raises JobTypeNotFound."""
    if not is_name(name):
        raise JobTypeNotFound(name)
    return name
