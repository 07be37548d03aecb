"""Every route of the HTTP API, and the route of the OpenAPI document."""

from __future__ import annotations

from functools import cache
from typing import Any

from vigil_core.api import auth, uploads
from vigil_core.api.jobs import job_type_routes
from vigil_core.api.jobs import routes as job_routes
from vigil_core.api.limits import routes as limit_routes
from vigil_core.api.openapi import build_document
from vigil_core.api.queues import routes as queue_routes
from vigil_core.api.routing import Call, Operation, ResponseSpec, RouteResponse, Routes
from vigil_core.api.schedules import routes as schedule_routes
from vigil_core.api.waits import routes as wait_routes
from vigil_core.api.webhooks import routes as webhook_routes
from vigil_core.api.workflows import routes as workflow_routes
from vigil_core.schemas.base import ResponseModel

ROUTES = Routes("operations")


class OpenApiDocument(ResponseModel):
    """An OpenAPI document."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]


@ROUTES.route(
    "GET",
    "/openapi.json",
    scope=None,
    responses={200: ResponseSpec(description="This document", models=(OpenApiDocument,))},
)
def get_openapi(_: Call) -> RouteResponse:
    """Get this document."""
    return RouteResponse(status=200, body=openapi())


OPERATIONS: tuple[Operation, ...] = (
    *job_routes.ROUTES.operations,
    *uploads.ROUTES.operations,
    *job_type_routes.ROUTES.operations,
    *queue_routes.ROUTES.operations,
    *wait_routes.ROUTES.operations,
    *workflow_routes.ROUTES.operations,
    *schedule_routes.ROUTES.operations,
    *webhook_routes.ROUTES.operations,
    *limit_routes.ROUTES.operations,
    *auth.ROUTES.operations,
    *ROUTES.operations,
)


@cache
def openapi() -> dict[str, Any]:
    """Return the OpenAPI document of every route."""
    return build_document(OPERATIONS)
