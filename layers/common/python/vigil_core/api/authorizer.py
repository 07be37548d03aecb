"""The events and responses of an authorizer, for the HTTP API and for the WebSocket API.

https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-lambda-authorizer.html (payload 2.0, simple
responses) and https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-websocket-api-lambda-auth.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vigil_core.domain.access import Access
from vigil_core.services.auth.authenticate import AuthenticateContext, authenticate_header, authenticate_ticket


def authenticate_event(ctx: AuthenticateContext, event: Mapping[str, Any]) -> Access | None:
    """Return the access of the request's API key or ticket, or None if neither is valid.

    A ticket is valid only for a WebSocket.
    """
    if is_websocket(event) and (ticket := _get_ignoring_case(event.get("queryStringParameters"), "ticket")) is not None:
        return authenticate_ticket(ctx, ticket)
    return authenticate_header(ctx, _get_ignoring_case(event.get("headers"), "authorization"))


def authorizer_response(event: Mapping[str, Any], access: Access | None) -> dict[str, Any]:
    """Return a policy (WebSocket API) or a simple response (HTTP API), with the context of the access."""
    context = access.to_authorizer_context() if access else {}
    if not is_websocket(event):
        return {"isAuthorized": access is not None, "context": context}
    statement = {
        "Effect": "Allow" if access else "Deny",
        "Action": "execute-api:Invoke",
        "Resource": event["methodArn"],
    }
    return {
        "principalId": access.key_id if access else "anonymous",
        "policyDocument": {"Version": "2012-10-17", "Statement": [statement]},
        "context": context,
    }


def is_websocket(event: Mapping[str, Any]) -> bool:
    """Return whether the event is from the WebSocket API, which sends `methodArn`. The HTTP API sends `routeArn`."""
    return "methodArn" in event


def _get_ignoring_case(values: object, name: str) -> object:
    """Return the value of a name in any case. The WebSocket API and `sam local` keep the client's spelling."""
    if not isinstance(values, Mapping):
        return None
    return next((value for key, value in values.items() if str(key).lower() == name), None)
