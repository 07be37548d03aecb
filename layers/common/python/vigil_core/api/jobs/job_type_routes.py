"""The routes of job types."""

from __future__ import annotations

from typing import Any

from vigil_core.api.jobs.job_type_models import JobTypeList, JobTypeView, parse_job_type
from vigil_core.api.routing import Call, ResponseSpec, RouteResponse, Routes
from vigil_core.domain.access import Scope
from vigil_core.domain.errors import JobTypeNotFound, RequestLimitExceeded
from vigil_core.schemas.base import PageQuery, is_valid_name
from vigil_core.schemas.job_types import JobTypeBody
from vigil_core.services.jobs import job_types

ROUTES = Routes("jobs")


@ROUTES.route(
    "PUT",
    "/v1/job-types/{job_type}",
    scope=Scope.ADMIN,
    documented_body=JobTypeBody,
    responses={
        200: ResponseSpec(description="The replaced job type", models=(JobTypeView,)),
        201: ResponseSpec(description="The new job type", models=(JobTypeView,)),
    },
    problems=(RequestLimitExceeded,),
)
def put_job_type(call: Call, job_type: str, body: Any) -> RouteResponse:
    """Create or replace a job type.

    Existing jobs keep the definition with which they were created.
    """
    definition = parse_job_type(call.namespace, job_type, body, call.context.now())
    stored, is_new = job_types.put_job_type(call.context, definition)
    return RouteResponse(status=201 if is_new else 200, body=JobTypeView.from_domain(stored))


@ROUTES.route(
    "GET",
    "/v1/job-types",
    scope=Scope.READ,
    responses={200: ResponseSpec(description="One page, sorted by name", models=(JobTypeList,))},
)
def list_job_types(call: Call, query: PageQuery) -> RouteResponse:
    """List job types, sorted by name.

    A page may be short. Only a null token marks the end.
    """
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
    responses={200: ResponseSpec(description="The job type", models=(JobTypeView,))},
    problems=(JobTypeNotFound,),
)
def get_job_type(call: Call, job_type: str) -> RouteResponse:
    """Get a job type."""
    definition = job_types.find_job_type(call.context, call.namespace, _require_valid_name(job_type))
    return RouteResponse(status=200, body=JobTypeView.from_domain(definition))


@ROUTES.route(
    "DELETE",
    "/v1/job-types/{job_type}",
    scope=Scope.ADMIN,
    responses={204: ResponseSpec(description="The job type is deleted")},
    problems=(JobTypeNotFound,),
)
def delete_job_type(call: Call, job_type: str) -> RouteResponse:
    """Delete a job type.

    Its jobs continue unchanged. New jobs of this name have no job type.
    """
    job_types.delete_job_type(call.context, call.namespace, _require_valid_name(job_type))
    return RouteResponse(status=204)


def _require_valid_name(name: str) -> str:
    """Return the name.

    Raises:
        JobTypeNotFound: No definition can have this name.
    """
    if not is_valid_name(name):
        raise JobTypeNotFound(name)
    return name
