"""The routes of job types."""

from __future__ import annotations

from typing import Any

from vigil_core.api.jobs.job_type_models import JobTypeBody, JobTypeList, JobTypeView, is_valid_name, parse_job_type
from vigil_core.api.jobs.models import PageQuery
from vigil_core.api.routing import Call, ResponseSpec, RouteResponse, Routes
from vigil_core.domain.access import Scope
from vigil_core.domain.errors import JobTypeNotFound
from vigil_core.services.jobs import job_types

ROUTES = Routes()


@ROUTES.route(
    "PUT",
    "/v1/job-types/{job_type}",
    scope=Scope.ADMIN,
    documented_body=JobTypeBody,
    responses={
        200: ResponseSpec(description="The type, which there was before", models=(JobTypeView,)),
        201: ResponseSpec(description="The new type", models=(JobTypeView,)),
    },
)
def put_job_type(call: Call, job_type: str, body: Any) -> RouteResponse:
    """Define a job type, or define it anew: all of it. Jobs that are there already keep what they took from it."""
    definition = parse_job_type(call.namespace, job_type, body, call.context.now())
    stored, is_new = job_types.put_job_type(call.context, definition)
    return RouteResponse(status=201 if is_new else 200, body=JobTypeView.from_domain(stored))


@ROUTES.route(
    "GET",
    "/v1/job-types",
    scope=Scope.READ,
    responses={200: ResponseSpec(description="One page, by name", models=(JobTypeList,))},
)
def list_job_types(call: Call, query: PageQuery) -> RouteResponse:
    """List job types by name. A page may be short; only an absent token is the end."""
    tokens, scope = call.services.page_tokens, ["list_job_types"]
    after = tokens.verify(call.namespace, query.page_token, list_identity=scope)
    page, cursor = call.context.job_types.page(call.namespace, after=after, limit=query.page_size)
    next_token = tokens.sign(call.namespace, cursor, list_identity=scope)
    return RouteResponse(
        status=200, body=JobTypeList(job_types=list(map(JobTypeView.from_domain, page)), next_page_token=next_token)
    )


@ROUTES.route(
    "GET",
    "/v1/job-types/{job_type}",
    scope=Scope.READ,
    responses={200: ResponseSpec(description="The type", models=(JobTypeView,))},
    problems=(JobTypeNotFound,),
)
def get_job_type(call: Call, job_type: str) -> RouteResponse:
    """Get a job type."""
    found_type = job_types.find_job_type(call.context, call.namespace, _require_valid_name(job_type))
    return RouteResponse(status=200, body=JobTypeView.from_domain(found_type))


@ROUTES.route(
    "DELETE",
    "/v1/job-types/{job_type}",
    scope=Scope.ADMIN,
    responses={204: ResponseSpec(description="The type is gone")},
    problems=(JobTypeNotFound,),
)
def delete_job_type(call: Call, job_type: str) -> RouteResponse:
    """Delete a job type. Its jobs go on as they are, and new ones are created as if there had never been a type."""
    job_types.delete_job_type(call.context, call.namespace, _require_valid_name(job_type))
    return RouteResponse(status=204)


def _require_valid_name(name: str) -> str:
    """The name, if it can be one. Raises JobTypeNotFound."""
    if not is_valid_name(name):
        raise JobTypeNotFound(name)
    return name
