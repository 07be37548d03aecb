"""Exceptions of the job handle: what a handler raises, and how a request to Vigil fails."""

from __future__ import annotations

from http import HTTPStatus

UNREACHABLE = "UNREACHABLE"
"""The code of an error when no answer arrived."""

_LOST_JOB_CODES = frozenset({"LEASE_LOST", "INVALID_TRANSITION", "JOB_NOT_FOUND"})


class Permanent(Exception):
    """Raised by a handler: the job fails, and a retry would not help."""


class Cancelled(Exception):
    """Raised by `raise_if_cancelled`: a client cancelled the job, or the lease is lost."""


class ApiError(Exception):
    """A request that Vigil refused or did not answer. `code` is listed in docs/errors.md."""

    def __init__(self, code: str, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later."""
        return self.code == UNREACHABLE

    @property
    def is_job_lost(self) -> bool:
        """Whether a report was refused because the lease is lost, or the job has ended or does not exist."""
        return self.code in _LOST_JOB_CODES


class TaskError(ApiError):
    """A report that Vigil refused, or a request that could not be sent."""

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later: no answer, throttled, or an error of the server."""
        if self.status is None:
            return super().is_transient
        return self.status == HTTPStatus.TOO_MANY_REQUESTS or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
