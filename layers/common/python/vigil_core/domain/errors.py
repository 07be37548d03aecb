"""Every error that Vigil raises on purpose, with the stable code that a client sees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class FieldProblem:
    """One thing wrong with a request. `pointer` is an RFC 6901 JSON pointer into the body, or a parameter's name."""

    pointer: str
    detail: str
    code: str = "VALIDATION_FAILED"


def escape_pointer_token(name: str) -> str:
    """A key as it stands in a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")


class VigilError(Exception):
    """The root of Vigil's errors: `code` is stable and upper snake case; `str(error)` may be shown to a client."""

    code = "VIGIL_ERROR"

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class MalformedRequest(VigilError):
    """The request cannot be read at all: not JSON, not UTF-8."""

    code = "MALFORMED_REQUEST"


class ValidationFailed(VigilError):
    """The request can be read, and something in it is wrong; `problems` names each field."""

    code = "VALIDATION_FAILED"

    def __init__(self, problems: Iterable[FieldProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{p.pointer or '/'}: {p.detail}" for p in self.problems))

    @classmethod
    def at(cls, pointer: str, detail: str) -> ValidationFailed:
        """The common case of one problem."""
        return cls([FieldProblem(pointer=pointer, detail=detail)])


class MissingDependency(ValidationFailed):
    """A job is to depend on jobs that do not exist."""

    code = "MISSING_DEPENDENCY"


class CircularDependency(ValidationFailed):
    """Jobs of a workflow depend, by way of each other, on themselves."""

    code = "CIRCULAR_DEPENDENCY"


def raise_if_any(problems: Iterable[FieldProblem]) -> None:
    """Raise ValidationFailed with these problems, if any; where all are of one kind, the error of that kind."""
    all_problems = tuple(problems)
    codes = {problem.code for problem in all_problems}
    error_types = (kind for kind in (MissingDependency, CircularDependency) if codes == {kind.code})
    if all_problems:
        raise next(error_types, ValidationFailed)(all_problems)


class PayloadTooLarge(VigilError):
    """A part of the request is over its limit in bytes."""

    code = "PAYLOAD_TOO_LARGE"


class JobNotFound(VigilError):
    """The namespace holds no job with this id."""

    code = "JOB_NOT_FOUND"

    def __init__(self, *job_ids: str) -> None:
        message = (
            f"Job with ID {job_ids[0]} not found" if len(job_ids) == 1 else f"Jobs not found: {', '.join(job_ids)}"
        )
        super().__init__(message, job_ids=list(job_ids))
        self.job_ids = job_ids


class JobTypeNotFound(VigilError):
    """The namespace holds no job type with this name."""

    code = "JOB_TYPE_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(f"Job type {name} not found", job_type=name)


class ScheduleNotFound(VigilError):
    """The namespace holds no schedule with this name."""

    code = "SCHEDULE_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(f"Schedule {name} not found", schedule=name)


class JobNotCompleted(VigilError):
    """The result of a job was asked for before the job ended."""

    code = "JOB_NOT_COMPLETED"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"Job {job_id} is not yet completed", job_id=job_id)


class JobCreationFailed(VigilError):
    """A job cannot be created now, because of another job."""

    code = "JOB_CREATION_FAILED"


class InvalidTransition(VigilError):
    """The job's or wait's state does not allow this."""

    code = "INVALID_TRANSITION"


class LeaseLost(VigilError):
    """A report came from somebody who does not hold the job's lease."""

    code = "LEASE_LOST"


class WaitNotFound(VigilError):
    """The namespace holds no wait with this id."""

    code = "WAIT_NOT_FOUND"

    def __init__(self, wait_id: str) -> None:
        super().__init__(f"Wait with ID {wait_id} not found", wait_id=wait_id)


class WorkflowNotFound(VigilError):
    """The namespace holds no workflow with this id."""

    code = "WORKFLOW_NOT_FOUND"

    def __init__(self, workflow_id: str) -> None:
        super().__init__(f"Workflow with ID {workflow_id} not found", workflow_id=workflow_id)


class WebhookNotFound(VigilError):
    """The namespace holds no webhook with this name."""

    code = "WEBHOOK_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(f"Webhook {name} not found", webhook=name)


class DeliveryNotFound(VigilError):
    """The webhook has no delivery with this id, or no longer."""

    code = "DELIVERY_NOT_FOUND"

    def __init__(self, delivery_id: str) -> None:
        super().__init__(f"Delivery with ID {delivery_id} not found", delivery_id=delivery_id)


class IdempotencyKeyReused(VigilError):
    """The same Idempotency-Key came with another body."""

    code = "IDEMPOTENCY_KEY_REUSED"


class IdempotencyInProgress(VigilError):
    """The first request with this Idempotency-Key has not been answered yet."""

    code = "IDEMPOTENCY_IN_PROGRESS"

    def __init__(self, until: datetime) -> None:
        super().__init__("A request with this Idempotency-Key is still being processed")
        self.until = until


class Forbidden(VigilError):
    """The key's scopes do not allow this."""

    code = "FORBIDDEN"


class TargetRefused(VigilError):
    """A request may not be sent to this address; the message says why, and nothing of what the address resolves to."""

    code = "TARGET_REFUSED"


class TargetUnreachable(VigilError):
    """A request was sent, or tried to be, and no answer came: whether it arrived is not known."""

    code = "TARGET_UNREACHABLE"


class StoreConflict(VigilError):
    """A conditional write lost to another writer; the caller reads again and decides anew."""

    code = "CONFLICT"
