"""The two events that API Gateway asks an authorizer with, and the two answers that it takes.

https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-lambda-authorizer.html (payload 2.0, simple
responses) and https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-websocket-api-lambda-auth.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vigil_core.domain.access import Access
from vigil_core.services.auth.authenticate import AuthenticateContext, authenticate_header, authenticate_ticket


def authenticate_event(ctx: AuthenticateContext, event: Mapping[str, Any]) -> Access | None:
    """Who is asking; None for whoever proves nothing. A ticket opens a WebSocket and nothing else."""
    if is_websocket(event) and (ticket := _get_ignoring_case(event.get("queryStringParameters"), "ticket")) is not None:
        return authenticate_ticket(ctx, ticket)
    return authenticate_header(ctx, _get_ignoring_case(event.get("headers"), "authorization"))


def authorizer_response(event: Mapping[str, Any], access: Access | None) -> dict[str, Any]:
    """A policy for a WebSocket, a yes or no for HTTP; either with what is known of the caller."""
    context = access.to_authorizer_context() if access else {}
    if not is_websocket(event):
        return {"isAuthorized": access is not None, "context": context}
    statement = {
        "Effect": "Allow" if access else "Deny",
        "Action": "execute-api:Invoke",
        "Resource": event["methodArn"],
    }
    return {
        "principalId": access.key_id if access else "nobody",
        "policyDocument": {"Version": "2012-10-17", "Statement": [statement]},
        "context": context,
    }


def is_websocket(event: Mapping[str, Any]) -> bool:
    """Only the WebSocket API names a method's ARN; the HTTP API names a route's."""
    return "methodArn" in event


def _get_ignoring_case(values: object, name: str) -> object:
    """The value under a name in whatever case: the WebSocket API and `sam local` keep the client's."""
    if not isinstance(values, Mapping):
        return None
    return next((value for key, value in values.items() if str(key).lower() == name), None)
