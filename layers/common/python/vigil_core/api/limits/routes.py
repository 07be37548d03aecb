"""The route of usage."""

from __future__ import annotations

from pydantic import Field

from vigil_core.api.routing import Call, ResponseSpec, RouteResponse, Routes
from vigil_core.domain.access import Scope
from vigil_core.domain.limits import LIMITS
from vigil_core.schemas.base import ResponseModel
from vigil_core.services.limits.usage import usage_of

ROUTES = Routes("limits")


class LimitUsage(ResponseModel):
    """One limit of the namespace, and what the namespace uses of it."""

    name: str
    limit: int
    used: int | None = Field(description="Null if the limit is of a single request")
    unit: str
    counts: str
    overridden: bool = Field(description="Whether an operator has replaced the default")


class UsageView(ResponseModel):
    """The limits of the namespace."""

    namespace: str
    limits: list[LimitUsage]


@ROUTES.route(
    "GET",
    "/v1/usage",
    scope=Scope.READ,
    responses={200: ResponseSpec(description="The limits and the usage of the namespace", models=(UsageView,))},
)
def get_usage(call: Call) -> RouteResponse:
    """Get the limits of the namespace and what it uses of them.

    The numbers of open jobs and waits may be some seconds old. Limits of one key show the usage of this key.
    """
    limits = [
        LimitUsage(
            name=usage.name,
            limit=usage.limit,
            used=usage.used,
            unit=LIMITS[usage.name].unit,
            counts=LIMITS[usage.name].counts,
            overridden=usage.overridden,
        )
        for usage in usage_of(call.context, call.namespace, call.actor)
    ]
    return RouteResponse(status=200, body=UsageView(namespace=call.namespace, limits=limits))
