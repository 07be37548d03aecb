"""Problem documents (RFC 9457), and the one table that maps errors to HTTP statuses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from botocore.exceptions import ClientError

from vigil_core.api.jobs.models import FieldProblemView, Problem
from vigil_core.domain.errors import (
    CircularDependency,
    DeliveryNotFound,
    Forbidden,
    IdempotencyInProgress,
    IdempotencyKeyReused,
    InvalidTransition,
    JobCreationFailed,
    JobNotCompleted,
    JobNotFound,
    JobTypeNotFound,
    LeaseLost,
    MalformedRequest,
    MissingDependency,
    PayloadTooLarge,
    ScheduleNotFound,
    StoreConflict,
    TargetRefused,
    TargetUnreachable,
    ValidationFailed,
    VigilError,
    WaitNotFound,
    WebhookNotFound,
    WorkflowNotFound,
)
from vigil_core.domain.timestamps import to_text
from vigil_core.runtime.logging import logger

CONTENT_TYPE = "application/problem+json"
MAX_MESSAGE_CHARS = 500_000
"""Room for the ids of 10,000 unknown jobs; and an end to the names that a client may make up."""
MAX_POINTER_CHARS = 1_000


class Unauthorized(VigilError):
    """No authorizer has said who is asking."""

    code = "UNAUTHORIZED"


class RouteNotFound(VigilError):
    """No route has this method and path."""

    code = "NOT_FOUND"


class TooManyRequests(VigilError):
    """AWS, or other requests for the same thing, leave no room now; nothing is wrong with the request."""

    code = "TOO_MANY_REQUESTS"


class InternalError(VigilError):
    """Vigil's own fault. What it was stands in the log, under the request's id."""

    code = "INTERNAL_ERROR"


HTTP_STATUS: Mapping[type[VigilError], int] = {
    MalformedRequest: 400,
    Unauthorized: 401,
    Forbidden: 403,
    RouteNotFound: 404,
    JobNotFound: 404,
    WaitNotFound: 404,
    WorkflowNotFound: 404,
    JobTypeNotFound: 404,
    WebhookNotFound: 404,
    DeliveryNotFound: 404,
    ScheduleNotFound: 404,
    InvalidTransition: 409,
    JobCreationFailed: 409,
    JobNotCompleted: 409,
    LeaseLost: 409,
    IdempotencyInProgress: 409,
    PayloadTooLarge: 413,
    ValidationFailed: 422,
    MissingDependency: 422,
    CircularDependency: 422,
    IdempotencyKeyReused: 422,
    TargetRefused: 422,
    TargetUnreachable: 424,
    TooManyRequests: 429,
    InternalError: 500,
}

_THROTTLED = {
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "ThrottlingException",
    "ThrottlingError",
}


def to_client_error(error: Exception) -> VigilError:
    """The error as a client is to see it: one of `STATUS`. One that nobody meant to raise is logged."""
    if isinstance(error, StoreConflict) or (isinstance(error, ClientError) and _is_throttled(error)):
        return TooManyRequests("Too much is happening at once: try again in a moment")
    if isinstance(error, VigilError) and type(error) in HTTP_STATUS:
        return error
    logger.exception("fault", extra={"action": "fault"}, exc_info=error)
    return InternalError("Something went wrong inside Vigil; the request_id finds it in the logs")


def problem_document(error: VigilError, *, path: str, request_id: str, now: datetime) -> Problem:
    """The document for an error of `STATUS`."""
    message = error.message[:MAX_MESSAGE_CHARS]
    document = Problem(
        type=f"urn:vigil:problem:{error.code}",
        title=error.code.replace("_", " ").capitalize(),
        status=HTTP_STATUS[type(error)],
        detail=message,
        instance=quote(path, safe="/%", errors="replace"),
        error=error.code,
        message=message,
        timestamp=to_text(now),
        request_id=request_id,
    )
    if not isinstance(error, ValidationFailed):
        return document
    field_problems = [
        FieldProblemView(pointer=p.pointer[:MAX_POINTER_CHARS], detail=p.detail, code=p.code) for p in error.problems
    ]
    return document.model_copy(update={"errors": field_problems})


def retry_after_headers(error: VigilError, now: datetime) -> dict[str, str]:
    """When it makes sense to try again, as a header, where time alone may help."""
    if isinstance(error, IdempotencyInProgress):
        return {"retry-after": str(max(1, math.ceil((error.until - now).total_seconds())))}
    return {"retry-after": "1"} if isinstance(error, TooManyRequests) else {}


def _is_throttled(error: ClientError) -> bool:
    response: Any = error.response
    reasons = {reason.get("Code") for reason in response.get("CancellationReasons", [])}
    return not _THROTTLED.isdisjoint({response["Error"]["Code"], *reasons})
