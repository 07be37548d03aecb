"""Exceptions of the client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Self

from vigil_core.domain.jobs.status import JobStatus
from vigil_tasks.errors import UNREACHABLE, ApiError

if TYPE_CHECKING:
    import httpx

_TRANSIENT_STATUSES = frozenset({429, 502, 503, 504})
_TRANSIENT_CODES = frozenset({UNREACHABLE, "IDEMPOTENCY_IN_PROGRESS"})


class VigilError(ApiError):
    """A request that the API refused, or that got no answer (`status` is then None).

    Attributes:
        code: The error code for programs (docs/errors.md).
        status: The HTTP status.
        errors: Every problem of an invalid request.
        maybe_done: Whether the API may have carried out the request although its answer did not arrive.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int | None = None,
        errors: Sequence[Mapping[str, str]] = (),
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(code, message, status=status)
        self.errors = tuple(errors)
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.maybe_done = False

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in _TRANSIENT_STATUSES or self.code in _TRANSIENT_CODES

    @classmethod
    def of(cls, response: httpx.Response) -> Self:
        """Build the error of an unsuccessful response: a problem document, or the answer of a proxy in between."""
        try:
            body = response.json()
        except ValueError:
            body = None
        problem = body if isinstance(body, dict) else {}
        try:
            name = HTTPStatus(response.status_code).name
        except ValueError:
            name = f"HTTP_{response.status_code}"
        return cls(
            problem.get("error") or name,
            problem.get("message") or response.reason_phrase or name,
            status=response.status_code,
            errors=problem.get("errors") or (),
            request_id=problem.get("request_id"),
            retry_after_s=_parse_retry_after(response.headers.get("retry-after")),
        )


class JobFailed(VigilError):
    """Raised for the result of a job that ended without one.

    Attributes:
        code: The error code of the job itself.
        job_status: The status in which the job ended.
    """

    def __init__(self, job_status: JobStatus, code: str, message: str) -> None:
        super().__init__(code, message)
        self.job_status = job_status


def _parse_retry_after(retry_after: str | None) -> float | None:
    """Return the seconds of a `Retry-After` header, which has a number or a date."""
    if retry_after is None:
        return None
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
