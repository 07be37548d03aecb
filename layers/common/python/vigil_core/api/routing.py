"""What a route is: one declaration that the resolver, the OpenAPI document and the tests all read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_type_hints

from pydantic import BaseModel

from vigil_core.api.jobs.models import NoQuery, Problem, RequestModel
from vigil_core.api.problems import problem_document, to_client_error
from vigil_core.api.request import Request
from vigil_core.domain.access import Access, Scope
from vigil_core.domain.errors import VigilError
from vigil_core.services.auth.tickets import TicketsContext
from vigil_core.services.context import Context
from vigil_core.services.page_tokens import PageTokens

Method: TypeAlias = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
RequestHeader: TypeAlias = Literal["Idempotency-Key", "If-None-Match", "Prefer"]
ResponseHeader: TypeAlias = Literal["ETag", "Location", "Preference-Applied"]


@dataclass(frozen=True, kw_only=True)
class Services:
    """What the routes call."""

    context: Context
    page_tokens: PageTokens
    tickets: TicketsContext


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request that may do what it asks for."""

    operation: Operation
    request: Request
    services: Services

    @property
    def context(self) -> Context:
        """For the services."""
        return self.services.context

    @property
    def access(self) -> Access:
        """Who is asking."""
        return self.request.access

    @property
    def namespace(self) -> str:
        """The tenant."""
        return self.access.namespace

    @property
    def actor(self) -> str:
        """Who did it, for the history."""
        return self.access.key_id

    def problem(self, error: Exception) -> Problem:
        """What went wrong with this request, or a part of it."""
        request, now = self.request, self.context.now()
        return problem_document(to_client_error(error), path=request.path, request_id=request.request_id, now=now)


@dataclass(frozen=True, kw_only=True)
class RouteResponse:
    """A status, a body (a model or JSON; None for none), headers in lower case."""

    status: int
    body: object = None
    media_type: str = "application/json"
    """Of another kind the body is text, and sent as it is."""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ResponseSpec:
    """An answer as the OpenAPI document tells of it; `models` are alternatives, none means no body."""

    description: str
    models: tuple[type[BaseModel], ...] = ()
    media_types: tuple[str, ...] = ()
    """Kinds of text that it may be instead."""
    headers: tuple[ResponseHeader, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One route. `scope` is None where no key is needed.

    `act(call, **path parameters, body=…, query=…)` is given `body` and `query` as its annotations say: a `Wire` model
    is checked before; a body that is any JSON is left to `act`, and `documented_body` says what it takes.
    """

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
        """The operation's name: in the OpenAPI document, in the log."""
        return self.handler.__name__

    @property
    def takes_body(self) -> bool:
        """Whether it reads a body."""
        return self.body is not None or self.documented_body is not None

    @property
    def body_optional(self) -> bool:
        """Whether no body at all is as good as an empty object."""
        return self.body is not None and not any(field.is_required() for field in self.body.model_fields.values())


@dataclass(frozen=True)
class Routes:
    """Operations, declared one by one by decorating what they do."""

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
        """Declare an operation. Its docstring becomes its description. `body` is one that `act` need not see."""

        def declare(handler: Callable[..., RouteResponse]) -> Callable[..., RouteResponse]:
            hints: dict[str, Any] = get_type_hints(handler)
            self.operations.append(
                Operation(
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
