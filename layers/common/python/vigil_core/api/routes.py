"""Every route of the HTTP API."""

from __future__ import annotations

from functools import cache
from typing import Any

from vigil_core.api.jobs import job_type_routes
from vigil_core.api.jobs import routes as job_routes
from vigil_core.api.jobs.models import NewUploadBody, NoContent, OpenApiDocument, TicketView, UploadView
from vigil_core.api.openapi import build_document
from vigil_core.api.queues import routes as queue_routes
from vigil_core.api.routing import Call, Operation, ResponseSpec, RouteResponse, Routes
from vigil_core.api.schedules import routes as schedule_routes
from vigil_core.api.waits import routes as wait_routes
from vigil_core.api.webhooks import routes as webhook_routes
from vigil_core.api.workflows import routes as workflow_routes
from vigil_core.domain.access import Scope
from vigil_core.domain.errors import IdempotencyInProgress, IdempotencyKeyReused
from vigil_core.domain.timestamps import to_text
from vigil_core.services.auth.tickets import issue_ticket
from vigil_core.services.idempotency import run_idempotent
from vigil_core.services.jobs.uploads import create_upload_url

ROUTES = Routes()


@ROUTES.route(
    "POST",
    "/v1/tickets",
    scope=Scope.READ,
    body=NoContent,
    responses={201: ResponseSpec(description="The ticket, shown this once", models=(TicketView,))},
)
def create_ticket(call: Call) -> RouteResponse:
    """Get a ticket that opens one WebSocket within 60 seconds, for browsers, which cannot send a key there."""
    token, expires_at = issue_ticket(call.services.tickets, call.access)
    return RouteResponse(status=201, body=TicketView(ticket=token.to_text(), expires_at=to_text(expires_at)))


@ROUTES.route(
    "POST",
    "/v1/uploads",
    scope=Scope.READ,
    headers=("Idempotency-Key",),
    responses={201: ResponseSpec(description="Where to put it", models=(UploadView,))},
    problems=(IdempotencyKeyReused, IdempotencyInProgress),
)
def create_upload(call: Call, body: NewUploadBody) -> RouteResponse:
    """Get a place for a payload or result over 2 MB: put it there, then name it. Needs the scope `submit` or `work`."""
    if not call.access.allows(Scope.WORK):
        call.access.require(Scope.SUBMIT)
    status, reference = run_idempotent(
        call.context,
        call.namespace,
        route="POST /v1/uploads",
        key=call.request.idempotency_key,
        request=body.model_dump(),
        action=lambda reserved_id, _: (201, reserved_id),
    )
    # The reference is the same for all who repeat the request; a URL is signed for each.
    upload = create_upload_url(call.context, call.namespace, str(reference), body.size)
    view = UploadView(
        reference=upload.reference, url=upload.url, size=upload.size, expires_at=to_text(upload.expires_at)
    )
    return RouteResponse(status=status, body=view)


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
    *queue_routes.ROUTES.operations,
    *wait_routes.ROUTES.operations,
    *job_type_routes.ROUTES.operations,
    *webhook_routes.ROUTES.operations,
    *schedule_routes.ROUTES.operations,
    *workflow_routes.ROUTES.operations,
    *ROUTES.operations,
)


@cache
def openapi() -> dict[str, Any]:
    """The OpenAPI document of every route."""
    return build_document(OPERATIONS)
