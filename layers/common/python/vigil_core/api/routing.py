"""Declarations of routes. The resolver, the OpenAPI document and the tests all read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_type_hints

from pydantic import BaseModel

from vigil_core.api.problems import Problem, problem_document, to_client_error
from vigil_core.api.request import Request
from vigil_core.domain.access import Access, Scope
from vigil_core.domain.errors import VigilError
from vigil_core.schemas.base import NoQuery, RequestModel
from vigil_core.services.auth.tickets import TicketsContext
from vigil_core.services.context import Context
from vigil_core.services.long_poll import SlotRequest
from vigil_core.services.page_tokens import PageTokens

Method: TypeAlias = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
RequestHeader: TypeAlias = Literal["Idempotency-Key", "If-None-Match", "Prefer"]
ResponseHeader: TypeAlias = Literal["ETag", "Location", "Preference-Applied", "Retry-After"]

RETRY_AFTER_NO_SLOT_S = 2
"""The pause before a client polls again, if its long poll had no slot."""


@dataclass(frozen=True, kw_only=True)
class Services:
    """The collaborators of the routes."""

    context: Context
    page_tokens: PageTokens
    tickets: TicketsContext


@dataclass(frozen=True, kw_only=True)
class Call:
    """An authorised request to one operation."""

    operation: Operation
    request: Request
    services: Services

    @property
    def context(self) -> Context:
        """The context of the use cases."""
        return self.services.context

    @property
    def access(self) -> Access:
        """The identity and scopes of the API key."""
        return self.request.access

    @property
    def namespace(self) -> str:
        """The namespace of the API key."""
        return self.access.namespace

    @property
    def actor(self) -> str:
        """The actor that the history shows: the id of the API key."""
        return self.access.key_id

    @cached_property
    def slot(self) -> SlotRequest:
        """The request for the slot that a long poll needs."""
        return SlotRequest(namespace=self.namespace)

    @property
    def preference_applied(self) -> dict[str, str]:
        """The response headers that confirm the long poll, or report that it had no slot."""
        if self.slot.refused:
            return {"preference-applied": "wait=0", "retry-after": str(RETRY_AFTER_NO_SLOT_S)}
        return self.request.preference_applied

    def problem(self, error: Exception) -> Problem:
        """Return the problem document of an error of this request or of a part of it."""
        request, now = self.request, self.context.now()
        return problem_document(to_client_error(error), path=request.path, request_id=request.request_id, now=now)


@dataclass(frozen=True, kw_only=True)
class RouteResponse:
    """A status, a body (a model, JSON, or None for no body), and headers in lower case."""

    status: int
    body: object = None
    media_type: str = "application/json"
    """With any other media type the body is text and is sent unchanged."""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ResponseSpec:
    """A response in the OpenAPI document. `models` are alternatives; without models there is no body."""

    description: str
    models: tuple[type[BaseModel], ...] = ()
    media_types: tuple[str, ...] = ()
    """Media types of text that the body can have instead of JSON."""
    headers: tuple[ResponseHeader, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One route. `scope` is None if the route needs no API key.

    The handler is called as `handler(call, **path_parameters, body=…, query=…)`. Its annotations select the models of
    `body` and `query`, which are validated before the call. With `documented_body` the handler receives the JSON of the
    body and validates it itself.
    """

    tag: str

    method: Method
    path: str
    scope: Scope | None
    handler: Callable[..., RouteResponse]
    responses: Mapping[int, ResponseSpec]
    problems: tuple[type[VigilError], ...] = ()
    headers: tuple[RequestHeader, ...] = ()
    documented_body: type[BaseModel] | None = None
    body: type[RequestModel] | None = None
    query: type[RequestModel] = NoQuery

    @property
    def name(self) -> str:
        """The name of the operation in the OpenAPI document and in the log."""
        return self.handler.__name__

    @property
    def takes_body(self) -> bool:
        """Whether the operation reads a body."""
        return self.body is not None or self.documented_body is not None

    @property
    def body_optional(self) -> bool:
        """Whether an absent body is equivalent to an empty object."""
        return self.body is not None and not any(field.is_required() for field in self.body.model_fields.values())


@dataclass(frozen=True)
class Routes:
    """The operations of one tag of the OpenAPI document, each declared by a decorator of its handler."""

    tag: str

    operations: list[Operation] = field(default_factory=list)

    def route(
        self,
        method: Method,
        path: str,
        *,
        scope: Scope | None,
        responses: Mapping[int, ResponseSpec],
        problems: tuple[type[VigilError], ...] = (),
        headers: tuple[RequestHeader, ...] = (),
        body: type[RequestModel] | None = None,
        documented_body: type[BaseModel] | None = None,
    ) -> Callable[[Callable[..., RouteResponse]], Callable[..., RouteResponse]]:
        """Return a decorator that declares an operation. The handler's docstring becomes its description.

        `body` is the model of a body that is validated and not passed to the handler.
        """

        def declare(handler: Callable[..., RouteResponse]) -> Callable[..., RouteResponse]:
            hints: dict[str, Any] = get_type_hints(handler)
            self.operations.append(
                Operation(
                    tag=self.tag,
                    method=method,
                    path=path,
                    scope=scope,
                    handler=handler,
                    responses=responses,
                    problems=problems,
                    headers=headers,
                    documented_body=documented_body,
                    body=None if documented_body else hints.get("body", body),
                    query=hints.get("query", NoQuery),
                )
            )
            return handler

        return declare
