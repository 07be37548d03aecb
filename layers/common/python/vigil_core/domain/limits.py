"""The limits of a namespace: one table, and the state and overrides of a namespace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal, TypeAlias, cast, get_args

from vigil_core.domain.errors import FieldProblem, LimitExceeded, RequestLimitExceeded, ValidationFailed
from vigil_core.domain.exact_json import JsonValue

LimitName: TypeAlias = Literal[
    "jobs_per_request",
    "open_jobs",
    "open_waits",
    "open_waits_per_read_key",
    "queues",
    "schedules",
    "job_types",
    "webhooks",
    "websocket_connections",
    "websocket_connections_per_key",
    "long_polls",
    "requests_per_second",
    "executor_calls",
    "upload_bytes_per_day",
]
LIMIT_NAMES: tuple[LimitName, ...] = get_args(LimitName)
MAX_LIMIT = 10**15
"""The largest value of an override: exact in every JSON parser."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One limit of a namespace."""

    name: LimitName
    default: int | None
    """None if the default follows from the concurrency of the stack."""
    unit: str
    counts: str
    """What counts, for documents and messages."""
    status: Literal[422, 429] | None
    """The status of a refused request; None if nothing is refused: the work waits, or the answer arrives earlier."""


def _limit(name: LimitName, default: int | None, unit: str, status: Literal[422, 429] | None, counts: str) -> Limit:
    return Limit(name=name, default=default, unit=unit, status=status, counts=counts)


LIMITS: dict[LimitName, Limit] = {
    limit.name: limit
    for limit in (
        _limit("jobs_per_request", 10_000, "jobs", 422, "the jobs that one request creates, with the items of batches"),
        _limit("open_jobs", 100_000, "jobs", 429, "jobs that have not ended, with the items of batches"),
        _limit("open_waits", 20_000, "waits", 429, "waits that have not ended"),
        _limit("open_waits_per_read_key", 100, "waits", 429, "the open waits of one key of scope `read`"),
        _limit("queues", 1_000, "queues", 422, "queues that had a job or were paused"),
        _limit("schedules", 500, "schedules", 422, "schedules, paused or not"),
        _limit("job_types", 500, "job types", 422, "registered job types"),
        _limit("webhooks", 50, "webhooks", 422, "webhooks, enabled or not"),
        _limit("websocket_connections", 100, "connections", 429, "open WebSocket connections"),
        _limit("websocket_connections_per_key", 20, "connections", 429, "the open WebSocket connections of one key"),
        _limit("long_polls", None, "requests", None, "requests that wait at the same time"),
        _limit(
            "requests_per_second", 100, "requests", 429, "HTTP requests and WebSocket messages, on average over 5 s"
        ),
        _limit("executor_calls", 100, "calls", None, "calls of executors `http` and `lambda` at the same time"),
        _limit("upload_bytes_per_day", 10 * 1024**3, "bytes", 429, "the sizes of the uploads of one day (UTC)"),
    )
}


class NamespaceState(StrEnum):
    """Whether a namespace works."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    DELETING = "deleting"


@dataclass(frozen=True, kw_only=True)
class NamespaceSettings:
    """The state of a namespace and its overrides of limits, as operators set them."""

    namespace: str
    state: NamespaceState = NamespaceState.ACTIVE
    state_since: datetime | None = None
    overrides: Mapping[LimitName, int] = field(default_factory=dict)

    @property
    def active(self) -> bool:
        """Whether the namespace's keys work and its work starts."""
        return self.state is NamespaceState.ACTIVE

    def limit(self, name: LimitName, concurrency: int) -> int:
        """Return the value of a limit: the override, otherwise the default.

        Args:
            name: The limit.
            concurrency: The concurrent executions of the stack.
        """
        override = self.overrides.get(name)
        return default_limit(name, concurrency) if override is None else override


def default_limit(name: LimitName, concurrency: int) -> int:
    """Return the default of a limit. One namespace may use a quarter of the concurrency for long polls."""
    default = LIMITS[name].default
    return max(1, concurrency // 4) if default is None else default


def max_long_polls(concurrency: int) -> int:
    """Return the number of long polls of all namespaces together, which leave half of the concurrency free."""
    return max(1, concurrency // 2)


def limit_error(name: LimitName, value: int) -> LimitExceeded | RequestLimitExceeded:
    """Build the error of a request that exceeds a limit."""
    limit = LIMITS[name]
    message = f"The limit {name} is {value:,}. It counts {limit.counts}"
    return RequestLimitExceeded(message, limit=name) if limit.status == 422 else LimitExceeded(message, limit=name)


def check_jobs_per_request(jobs: int, value: int) -> None:
    """Check the number of jobs that one request creates.

    Raises:
        RequestLimitExceeded: The request creates more jobs than the limit allows.
    """
    if jobs > value:
        raise limit_error("jobs_per_request", value)


def count_jobs(bodies: Sequence[JsonValue]) -> int:
    """Count the jobs that job bodies of a request create: each body, and each item of a batch."""
    batches = (body.get("batch") for body in bodies if isinstance(body, Mapping))
    return len(bodies) + sum(len(items) for items in batches if isinstance(items, list))


def parse_override(name: object, value: object) -> tuple[LimitName, int | None]:
    """Validate an override of a limit. The value None restores the default.

    Raises:
        ValidationFailed: The limit does not exist, or the value is not a whole number from 0.
    """
    problems = []
    if name not in LIMIT_NAMES:
        problems.append(FieldProblem(pointer="/limit", detail=f"must be one of {', '.join(LIMIT_NAMES)}"))
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_LIMIT):
        problems.append(FieldProblem(pointer="/value", detail=f"must be a whole number from 0 to {MAX_LIMIT}"))
    if problems:
        raise ValidationFailed(problems)
    return cast(LimitName, name), cast(int | None, value)
