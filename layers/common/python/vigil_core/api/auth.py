"""The route of tickets."""

from __future__ import annotations

from vigil_core.api.routing import Call, ResponseSpec, RouteResponse, Routes
from vigil_core.domain.access import Scope
from vigil_core.domain.timestamps import to_text
from vigil_core.schemas.base import NoContent, ResponseModel, TimestampText
from vigil_core.services.auth.tickets import issue_ticket

ROUTES = Routes("auth")


class TicketView(ResponseModel):
    """A ticket for one WebSocket connection. It is valid for 60 seconds and for one use."""

    ticket: str
    expires_at: TimestampText


@ROUTES.route(
    "POST",
    "/v1/tickets",
    scope=Scope.READ,
    body=NoContent,
    responses={201: ResponseSpec(description="The ticket, which is shown only here", models=(TicketView,))},
)
def create_ticket(call: Call) -> RouteResponse:
    """Create a ticket for one WebSocket connection.

    Browsers use it, because they cannot send an API key when they open a WebSocket. The ticket is valid for 60 seconds
    and for one use.
    """
    token, expires_at = issue_ticket(call.services.tickets, call.access)
    return RouteResponse(status=201, body=TicketView(ticket=token.to_text(), expires_at=to_text(expires_at)))
