"""The HTTP API: from an event of API Gateway to the response."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response

from vigil_core.api.problems import CONTENT_TYPE, RouteNotFound, problem_document, retry_after_headers, to_client_error
from vigil_core.api.request import Request
from vigil_core.api.routing import Call, Operation, Services
from vigil_core.domain.exact_json import dumps
from vigil_core.runtime.lambda_context import LambdaContext
from vigil_core.runtime.logging import logger
from vigil_core.runtime.tracing import traced
from vigil_core.schemas.base import NoContent, NoQuery, ResponseModel
from vigil_core.schemas.validation import message_pointers, parse_body, parse_query
from vigil_core.services.limits.admission import admit_request

BASE64_THRESHOLD_CHARS = 500_000
"""Longer responses are Base64 between Lambda and API Gateway, which clients do not see.

Lambda counts its limit of 6 MB in ASCII JSON, where a character can take six bytes.
"""
LOGGED_IDS = ("job_id", "wait_id", "workflow_id", "trace_id", "correlation_id")
"""The members of a response that the log line contains: only ids."""


class HttpApi:
    """Serve the operations.

    The resolver only finds the route. This class parses and validates requests, because the resolver's validation
    parses numbers as floats and depends on the Content-Type.
    """

    def __init__(self, services: Services, operations: Iterable[Operation]) -> None:
        self._services = services
        self._resolver = APIGatewayHttpResolver()
        for operation in operations:
            rule = re.sub(r"{(\w+)}", r"<\1>", operation.path)
            self._resolver.route(rule, method=operation.method)(self._handler_for(operation))
        self._resolver.not_found(self._route_not_found)
        self._resolver.exception_handler(Exception)(self._error_response)

    def handle(self, event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
        """Answer one request, and write one log line about it, without payload and token."""
        request = Request.from_event(event, context, self._services.context.now())
        log_fields: dict[str, Any] = {"action": "not_found"}
        self._resolver.context.update(request=request, log_fields=log_fields)
        with traced(log_fields), logger.append_context_keys(request_id=request.request_id):
            # API Gateway decodes the path except %25. The resolver rejects some characters of names: encode them.
            path = quote(request.path, safe="/%", errors="replace")
            response = self._resolver.resolve({**event, "rawPath": path}, context)  # type: ignore[arg-type]
            logger.info("answered", extra=log_fields | {"status": response["statusCode"]})
        return response

    def _handler_for(self, operation: Operation) -> Callable[..., Response[str]]:
        def serve(**path_parameters: str) -> Response[str]:
            ids = {name: unquote(value) for name, value in path_parameters.items()}
            request: Request = self._resolver.context["request"]
            log_fields: dict[str, Any] = self._resolver.context["log_fields"]
            log_fields |= {"action": operation.name, **ids}
            call = Call(operation=operation, request=request, services=self._services)
            if operation.scope is not None:
                log_fields |= {"namespace": call.namespace, "key_id": call.actor}
                admit_request(call.context, call.namespace)
                call.access.require(operation.scope)
            response = operation.handler(call, **ids, **_parse_inputs(operation, request))
            body = response.body.to_json() if isinstance(response.body, ResponseModel) else response.body
            if isinstance(body, Mapping):
                log_fields |= {name: body[name] for name in LOGGED_IDS if body.get(name) is not None}
            if body is None:
                return Response(status_code=response.status, body="", headers=response.headers)
            text = body if isinstance(body, str) and response.media_type != "application/json" else dumps(body)
            return _build_response(response.status, response.media_type, text, response.headers)

        return serve

    def _route_not_found(self, _: Exception) -> Response[str]:
        request: Request = self._resolver.context["request"]
        return self._error_response(RouteNotFound(f"There is no route {request.method} {request.path}"))

    def _error_response(self, error: Exception) -> Response[str]:
        request: Request = self._resolver.context["request"]
        now = self._services.context.now()
        client_error = to_client_error(error)
        problem = problem_document(client_error, path=request.path, request_id=request.request_id, now=now)
        log_fields: dict[str, Any] = self._resolver.context["log_fields"]
        log_fields["error"] = problem.error
        if problem.limit:
            log_fields["limit"] = problem.limit
        return _build_response(
            problem.status, CONTENT_TYPE, dumps(problem.to_json()), retry_after_headers(client_error, now)
        )


def _build_response(status: int, content_type: str, text: str, headers: Mapping[str, str]) -> Response[str]:
    response = Response(status_code=status, content_type=content_type, body=text, headers=headers)
    if len(text) > BASE64_THRESHOLD_CHARS:
        response.body, response.base64_encoded = b64encode(text.encode()).decode(), True
    return response


def _parse_inputs(operation: Operation, request: Request) -> dict[str, Any]:
    """Parse the body and the query parameters into the arguments of the handler."""
    inputs: dict[str, Any] = {}
    query = parse_query(operation.query, request.query)
    if operation.query is not NoQuery:
        inputs["query"] = query
    if operation.takes_body:
        messages = message_pointers(operation.body or operation.documented_body)
        json = request.body(optional=operation.body_optional, message_pointers=messages)
        body = parse_body(operation.body, json) if operation.body else json
        if not isinstance(body, NoContent):
            inputs["body"] = body
    return inputs
