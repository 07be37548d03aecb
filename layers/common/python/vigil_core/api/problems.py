"""Problem documents (RFC 9457), and the only table that maps errors to HTTP statuses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from botocore.exceptions import ClientError
from pydantic import Field

from vigil_core.domain.errors import (
    MAX_POINTER_CHARS,
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
    LimitExceeded,
    MalformedRequest,
    MissingDependency,
    PayloadTooLarge,
    RequestLimitExceeded,
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
from vigil_core.schemas.base import ResponseModel, TimestampText

CONTENT_TYPE = "application/problem+json"
MAX_MESSAGE_CHARS = 500_000
"""Enough for the ids of 10,000 unknown jobs. It limits the echo of a client's own text."""


class FieldProblemView(ResponseModel):
    """One problem of a request.

    `pointer` is a JSON pointer into the body, `?` and the name of a query parameter, or the name of a header.
    """

    pointer: str
    detail: str
    code: str


class Problem(ResponseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    error: str
    message: str
    timestamp: TimestampText
    request_id: str
    hint: str = Field(default="", description="Advice, for example the form of an id. Present if there is any")
    errors: list[FieldProblemView] = Field(default=[], description="Present if the request is invalid")
    limit: str = Field(default="", description="The name of the limit that the request exceeds. Present only then")


class Unauthorized(VigilError):
    """The request has no valid API key."""

    code = "UNAUTHORIZED"


class RouteNotFound(VigilError):
    """No route has this method and path."""

    code = "NOT_FOUND"


class TooManyRequests(VigilError):
    """AWS throttles, or too many requests change the same row. The request itself is valid."""

    code = "TOO_MANY_REQUESTS"


class InternalError(VigilError):
    """A fault of Vigil. The log contains the cause under the id of the request."""

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
    RequestLimitExceeded: 422,
    TargetRefused: 422,
    TargetUnreachable: 424,
    TooManyRequests: 429,
    LimitExceeded: 429,
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
    """Return the error that the client sees, one of `HTTP_STATUS`.

    A throttled or conflicting write becomes TooManyRequests. Any other unexpected error is logged and becomes
    InternalError.
    """
    if isinstance(error, StoreConflict) or (isinstance(error, ClientError) and _is_throttled(error)):
        return TooManyRequests("Too many requests at the same time: try again in a moment")
    if isinstance(error, VigilError) and type(error) in HTTP_STATUS:
        return error
    logger.exception("fault", extra={"action": "fault"}, exc_info=error)
    return InternalError("An internal error occurred. Find it in the logs by the request_id")


def problem_document(error: VigilError, *, path: str, request_id: str, now: datetime) -> Problem:
    """Return the problem document of an error of `HTTP_STATUS`."""
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
    if isinstance(error, LimitExceeded | RequestLimitExceeded):
        return document.model_copy(update={"limit": error.limit})
    if error.hint is not None:
        document = document.model_copy(update={"hint": error.hint})
    if not isinstance(error, ValidationFailed):
        return document
    field_problems = [
        FieldProblemView(pointer=p.pointer[:MAX_POINTER_CHARS], detail=p.detail, code=p.code) for p in error.problems
    ]
    return document.model_copy(update={"errors": field_problems})


def retry_after_headers(error: VigilError, now: datetime) -> dict[str, str]:
    """Return a Retry-After header for an error that a later retry can avoid, otherwise nothing."""
    if isinstance(error, IdempotencyInProgress):
        return {"retry-after": str(max(1, math.ceil((error.until - now).total_seconds())))}
    if isinstance(error, LimitExceeded):
        return {"retry-after": str(error.retry_after_s)}
    return {"retry-after": "1"} if isinstance(error, TooManyRequests) else {}


def _is_throttled(error: ClientError) -> bool:
    response: Any = error.response
    reasons = {reason.get("Code") for reason in response.get("CancellationReasons", [])}
    return not _THROTTLED.isdisjoint({response["Error"]["Code"], *reasons})
