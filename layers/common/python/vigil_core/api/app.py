"""The HTTP API: from an event of API Gateway to its answer."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response

from vigil_core.api.jobs.models import NoQuery, Nothing, Shown
from vigil_core.api.problems import CONTENT_TYPE, NothingHere, problem, retry_after, understood
from vigil_core.api.request import Request
from vigil_core.api.routing import Call, Operation, Services
from vigil_core.api.validation import parse_body, parse_query
from vigil_core.domain.exact_json import dumps
from vigil_core.runtime.lambda_context import LambdaContext
from vigil_core.runtime.logging import logger
from vigil_core.runtime.tracing import traced

LARGE_CHARS = 500_000
"""Longer answers travel to API Gateway as Base64, which clients do not see: Lambda's 6 MB are counted as JSON in ASCII,
where a character can take six bytes."""
LOGGED = ("job_id", "wait_id", "workflow_id", "trace_id", "correlation_id")
"""What of an answer stands in the log: ids alone."""


class HttpApi:
    """Serves operations. The resolver finds the route; what a request says is read and checked here, because the
    resolver's own validation reads numbers as floats and a body by its Content-Type."""

    def __init__(self, services: Services, operations: Iterable[Operation]) -> None:
        self._services = services
        self._resolver = APIGatewayHttpResolver()
        for operation in operations:
            rule = re.sub(r"{(\w+)}", r"<\1>", operation.path)
            self._resolver.route(rule, method=operation.method)(self._route(operation))
        self._resolver.not_found(self._nothing_here)
        self._resolver.exception_handler(Exception)(self._refused)

    def answer(self, event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
        """Answer one request, and say in the log that and how: one line, without payload or token."""
        request = Request.of(event, context, self._services.context.now())
        said: dict[str, Any] = {"action": "nothing_here"}
        self._resolver.context.update(request=request, said=said)
        with traced(said), logger.append_context_keys(request_id=request.request_id):
            # API Gateway has decoded the path, but for %25; the resolver finds no route for all that a name may have.
            path = quote(request.path, safe="/%", errors="replace")
            answered = self._resolver.resolve({**event, "rawPath": path}, context)  # type: ignore[arg-type]
            logger.info("answered", extra=said | {"status": answered["statusCode"]})
        return answered

    def _route(self, operation: Operation) -> Callable[..., Response[str]]:
        def serve(**quoted: str) -> Response[str]:
            ids = {name: unquote(value) for name, value in quoted.items()}
            request: Request = self._resolver.context["request"]
            said: dict[str, Any] = self._resolver.context["said"]
            said |= {"action": operation.name, **ids}
            call = Call(operation=operation, request=request, services=self._services)
            if operation.scope is not None:
                said |= {"namespace": call.namespace, "key_id": call.by}
                call.access.require(operation.scope)
            answer = operation.act(call, **ids, **_read(operation, request))
            body = answer.body.plain() if isinstance(answer.body, Shown) else answer.body
            if isinstance(body, Mapping):
                said |= {name: body[name] for name in LOGGED if body.get(name) is not None}
            if body is None:
                return Response(status_code=answer.status, body="", headers=answer.headers)
            text = body if isinstance(body, str) and answer.media != "application/json" else dumps(body)
            return _response(answer.status, answer.media, text, answer.headers)

        return serve

    def _nothing_here(self, _: Exception) -> Response[str]:
        request: Request = self._resolver.context["request"]
        return self._refused(NothingHere(f"Nothing is served at {request.method} {request.path}"))

    def _refused(self, error: Exception) -> Response[str]:
        request: Request = self._resolver.context["request"]
        now = self._services.context.now()
        known = understood(error)
        shown = problem(known, path=request.path, request_id=request.request_id, now=now)
        self._resolver.context["said"]["error"] = shown.error
        return _response(shown.status, CONTENT_TYPE, dumps(shown.plain()), retry_after(known, now))


def _response(status: int, content_type: str, text: str, headers: Mapping[str, str]) -> Response[str]:
    response = Response(status_code=status, content_type=content_type, body=text, headers=headers)
    if len(text) > LARGE_CHARS:
        response.body, response.base64_encoded = b64encode(text.encode()).decode(), True
    return response


def _read(operation: Operation, request: Request) -> dict[str, Any]:
    """The body and the query parameters, checked, as the operation takes them."""
    read: dict[str, Any] = {}
    query = parse_query(operation.query, request.query)
    if operation.query is not NoQuery:
        read["query"] = query
    if operation.takes_body:
        json = request.body(optional=operation.body_optional)
        body = parse_body(operation.body, json) if operation.body else json
        if not isinstance(body, Nothing):
            read["body"] = body
    return read
