"""Classify errors as transient or permanent, and contain the permanent ones.

A transient error comes from outside: throttling, a timeout, a conflict, a lost connection, a failure of an AWS service,
or a permission that the deployment lacks. The same work may succeed later. Every other error is permanent: the data of
the work causes it, so each further try fails in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import Any, TypeAlias, TypeVar

from botocore.exceptions import (
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
)
from botocore.exceptions import ConnectionError as AwsConnectionError
from botocore.parsers import ResponseParserError

from vigil_core.domain.errors import VigilError
from vigil_core.runtime.logging import logger

K = TypeVar("K")
T = TypeVar("T")
OnError: TypeAlias = Callable[[Sequence[T], Exception], None]

TRANSIENT_TYPES: tuple[type[Exception], ...] = (
    # OSError includes TimeoutError, ConnectionError and the lack of file descriptors.
    OSError, HTTPException, AwsConnectionError, HTTPClientError, IncompleteReadError, ResponseStreamingError,
    ResponseParserError, NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, MetadataRetrievalError,
)  # fmt: skip

THROTTLED = frozenset(
    {
        "BandwidthLimitExceeded", "EC2ThrottledException", "KMSThrottlingException", "LimitExceededException",
        "OverLimit", "PriorRequestNotComplete", "ProvisionedThroughputExceeded",
        "ProvisionedThroughputExceededException", "RequestLimitExceeded", "RequestThrottled",
        "RequestThrottledException", "SlowDown", "ThrottledException", "Throttling", "ThrottlingError",
        "ThrottlingException", "TooManyRequestsException",
    }
)  # fmt: skip
CONFLICTS = frozenset(
    {
        "ConditionalCheckFailedException", "OperationAborted", "TransactionConflict", "TransactionConflictException",
        "TransactionInProgressException",
    }
)  # fmt: skip
UNAVAILABLE = frozenset(
    {
        "InternalError", "InternalFailure", "InternalServerError", "InternalServiceError", "RequestTimeout",
        "RequestTimeoutException", "ServiceException", "ServiceUnavailable", "ServiceUnavailableException",
    }
)  # fmt: skip
DEPLOYMENT = frozenset(
    {
        "AccessDenied", "AccessDeniedException", "AuthFailure", "AuthorizationError", "AuthorizationErrorException",
        "AWS.SimpleQueueService.NonExistentQueue", "ExpiredToken", "ExpiredTokenException", "Forbidden",
        "ForbiddenException", "IncompleteSignature", "InvalidAccessKeyId", "InvalidClientTokenId",
        "InvalidSignatureException", "MissingAuthenticationToken", "NoSuchBucket", "NotFoundException",
        "QueueDoesNotExist", "RequestExpired", "ResourceInUseException", "ResourceNotFoundException",
        "SignatureDoesNotMatch", "StateMachineDoesNotExist", "UnrecognizedClientException",
    }
)  # fmt: skip
"""The errors of a deployment: a role, a credential or a resource is missing, for every record alike."""

TRANSIENT_CODES = THROTTLED | CONFLICTS | UNAVAILABLE | DEPLOYMENT


def is_transient(error: BaseException) -> bool:
    """Return whether the same work may succeed later.

    Vigil's own errors declare it by the attribute `transient`. A cancelled transaction has one reason for each of its
    actions: it is transient if one of them is.
    """
    declared: bool | None = getattr(error, "transient", None)
    if declared is not None:
        return declared
    if isinstance(error, ClientError):
        response: Any = error.response
        codes = {response.get("Error", {}).get("Code")}
        codes |= {reason.get("Code") for reason in response.get("CancellationReasons", ())}
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or not TRANSIENT_CODES.isdisjoint(codes)
    return isinstance(error, TRANSIENT_TYPES)


def error_name(error: BaseException) -> str:
    """Return the name of an error that a client may see: a code or a type, without any data."""
    if isinstance(error, VigilError):
        return error.code
    if isinstance(error, ClientError):
        response: Any = error.response
        return str(response.get("Error", {}).get("Code", "ClientError"))
    return type(error).__name__


def add_error(errors: dict[K, Exception], key: K, error: Exception) -> None:
    """Add the error of a key. The first error stays, except that a transient one replaces a permanent one."""
    known = errors.get(key)
    if known is None or (is_transient(error) and not is_transient(known)):
        errors[key] = error


def apply_in_halves(items: Sequence[T], work: Callable[[Sequence[T]], object], on_error: OnError[T]) -> None:
    """Do work on all items together. After a permanent error, do it on each half, down to single items.

    Args:
        items: The items.
        work: Does the work on some of the items. It must be possible to repeat it.
        on_error: Receives a transient error with all its items, and a permanent error with the one item that causes it.
    """
    if not items:
        return
    try:
        work(items)
    except Exception as error:
        if is_transient(error) or len(items) == 1:
            on_error(items, error)
            return
        middle = len(items) // 2
        apply_in_halves(items[:middle], work, on_error)
        apply_in_halves(items[middle:], work, on_error)


def contain(work: Callable[[], T], on_permanent: Callable[[Exception], T]) -> T:
    """Do some work, and let `on_permanent` end it if a permanent error makes it impossible.

    Returns:
        The value of `work`, or that of `on_permanent`.

    Raises:
        Exception: A transient error of the work, or an error of `on_permanent`.
    """
    try:
        return work()
    except Exception as error:
        if is_transient(error):
            raise
        logger.error("Permanent error; its work ends", extra={"action": "contain"}, exc_info=error)
        return on_permanent(error)
