"""The errors that Vigil raises deliberately, each with the stable code that a client sees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from vigil_core.domain.ids import is_uuid7

MAX_POINTER_CHARS = 1_000
"""The length of a pointer in an error: a key can be as long as the body."""


@dataclass(frozen=True, kw_only=True)
class FieldProblem:
    """One problem of a request. `pointer` is a JSON pointer (RFC 6901) or the name of a parameter."""

    pointer: str
    detail: str
    code: str = "VALIDATION_FAILED"


def escape_pointer_token(name: str) -> str:
    """Escape a key for a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


class VigilError(Exception):
    """The base class of Vigil's errors. `code` is stable and in upper snake case. A client may see `str(error)`.

    `transient` is true if the same work may succeed later, because the data did not cause the error.
    """

    code = "VIGIL_ERROR"
    transient = False

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    @property
    def hint(self) -> str | None:
        """Advice in addition to the message, or None."""
        return None


class MalformedRequest(VigilError):
    """The body is not JSON or not UTF-8."""

    code = "MALFORMED_REQUEST"


class ValidationFailed(VigilError):
    """The request is readable but invalid. `problems` has one entry for each problem."""

    code = "VALIDATION_FAILED"

    def __init__(self, problems: Iterable[FieldProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{p.pointer[:MAX_POINTER_CHARS] or '/'}: {p.detail}" for p in self.problems))

    @classmethod
    def at(cls, pointer: str, detail: str) -> ValidationFailed:
        """Return an error with one problem."""
        return cls([FieldProblem(pointer=pointer, detail=detail)])


class MissingDependency(ValidationFailed):
    """A job depends on jobs that do not exist."""

    code = "MISSING_DEPENDENCY"


class CircularDependency(ValidationFailed):
    """The dependencies of a workflow's jobs form a cycle."""

    code = "CIRCULAR_DEPENDENCY"


def raise_if_any(problems: Iterable[FieldProblem]) -> None:
    """Raise an error with these problems, if there are any.

    Raises:
        MissingDependency, CircularDependency: All problems are of this kind.
        ValidationFailed: In any other case.
    """
    all_problems = tuple(problems)
    codes = {problem.code for problem in all_problems}
    error_types = (kind for kind in (MissingDependency, CircularDependency) if codes == {kind.code})
    if all_problems:
        raise next(error_types, ValidationFailed)(all_problems)


class PayloadTooLarge(VigilError):
    """A part of the request exceeds its limit in bytes."""

    code = "PAYLOAD_TOO_LARGE"


class RequestLimitExceeded(VigilError):
    """A request exceeds a limit of the namespace, and a repetition would exceed it too."""

    code = "REQUEST_LIMIT_EXCEEDED"

    def __init__(self, message: str, *, limit: str) -> None:
        super().__init__(message, limit=limit)
        self.limit = limit


class LimitExceeded(VigilError):
    """A limit of the namespace is reached. A later repetition of the request may succeed."""

    code = "LIMIT_EXCEEDED"

    def __init__(self, message: str, *, limit: str, retry_after_s: int = 1) -> None:
        super().__init__(message, limit=limit)
        self.limit = limit
        self.retry_after_s = retry_after_s


def _id_hint(*ids: str) -> str | None:
    return None if all(map(is_uuid7, ids)) else "Ids of jobs, waits and workflow runs are UUIDv7 in lower case"


class JobNotFound(VigilError):
    """The namespace has no job with this id."""

    code = "JOB_NOT_FOUND"

    def __init__(self, *job_ids: str) -> None:
        message = (
            f"Job with ID {job_ids[0]} not found" if len(job_ids) == 1 else f"Jobs not found: {', '.join(job_ids)}"
        )
        super().__init__(message, job_ids=list(job_ids))
        self.job_ids = job_ids

    @property
    def hint(self) -> str | None:
        """The form of an id, if one of the ids has another form."""
        return _id_hint(*self.job_ids)


class JobTypeNotFound(VigilError):
    """The namespace has no job type with this name."""

    code = "JOB_TYPE_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(f"Job type {name} not found", job_type=name)


class ScheduleNotFound(VigilError):
    """The namespace has no schedule with this name."""

    code = "SCHEDULE_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(f"Schedule {name} not found", schedule=name)


class JobNotCompleted(VigilError):
    """A request needs the result of a job that has not ended."""

    code = "JOB_NOT_COMPLETED"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"Job {job_id} is not yet completed", job_id=job_id)


class JobCreationFailed(VigilError):
    """Another job prevents the creation of a job."""

    code = "JOB_CREATION_FAILED"


class InvalidTransition(VigilError):
    """The state of the job, run or wait does not allow the change."""

    code = "INVALID_TRANSITION"


class LeaseLost(VigilError):
    """A report does not have the token of the job's current lease."""

    code = "LEASE_LOST"


class WaitNotFound(VigilError):
    """The namespace has no wait with this id."""

    code = "WAIT_NOT_FOUND"

    def __init__(self, wait_id: str) -> None:
        super().__init__(f"Wait with ID {wait_id} not found", wait_id=wait_id)
        self.wait_id = wait_id

    @property
    def hint(self) -> str | None:
        """The form of an id, if the id has another form."""
        return _id_hint(self.wait_id)


class WorkflowNotFound(VigilError):
    """The namespace has no workflow run with this id."""

    code = "WORKFLOW_NOT_FOUND"

    def __init__(self, workflow_id: str) -> None:
        super().__init__(f"Workflow with ID {workflow_id} not found", workflow_id=workflow_id)
        self.workflow_id = workflow_id

    @property
    def hint(self) -> str | None:
        """The form of an id, if the id has another form."""
        return _id_hint(self.workflow_id)


class WebhookNotFound(VigilError):
    """The namespace has no webhook with this name."""

    code = "WEBHOOK_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(f"Webhook {name} not found", webhook=name)


class DeliveryNotFound(VigilError):
    """The webhook has no delivery with this id, or the delivery has expired."""

    code = "DELIVERY_NOT_FOUND"

    def __init__(self, delivery_id: str) -> None:
        super().__init__(f"Delivery with ID {delivery_id} not found", delivery_id=delivery_id)


class IdempotencyKeyReused(VigilError):
    """An earlier request had the same Idempotency-Key and another body."""

    code = "IDEMPOTENCY_KEY_REUSED"


class IdempotencyInProgress(VigilError):
    """The first request with this Idempotency-Key has no answer yet."""

    code = "IDEMPOTENCY_IN_PROGRESS"
    transient = True

    def __init__(self, until: datetime) -> None:
        super().__init__("A request with this Idempotency-Key is still being processed")
        self.until = until


class Forbidden(VigilError):
    """The scopes of the API key do not allow the request."""

    code = "FORBIDDEN"


class TargetRefused(VigilError):
    """The outbound policy forbids this address. The message has the reason, but not the addresses behind the name."""

    code = "TARGET_REFUSED"


class TargetUnreachable(VigilError):
    """A request to a target has no answer. It is unknown whether the request arrived."""

    code = "TARGET_UNREACHABLE"
    transient = True


class StoreConflict(VigilError):
    """Another process changed the row before a conditional write. The caller must read and decide again."""

    code = "CONFLICT"
    transient = True
