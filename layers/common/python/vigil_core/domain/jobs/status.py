"""The statuses of a job and the allowed transitions. Pure."""

from __future__ import annotations

from typing import Literal, TypeAlias

JobStatus: TypeAlias = Literal[
    "scheduled", "waiting", "pending", "running", "completed", "failed", "cancelled", "skipped"
]

STATUSES: tuple[JobStatus, ...] = (
    "scheduled", "waiting", "pending", "running", "completed", "failed", "cancelled", "skipped",
)  # fmt: skip
TERMINAL: frozenset[JobStatus] = frozenset({"completed", "failed", "cancelled", "skipped"})

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    "scheduled": frozenset({"waiting", "pending", "cancelled", "skipped"}),
    "waiting": frozenset({"pending", "failed", "cancelled", "skipped"}),
    "pending": frozenset({"running", "waiting", "failed", "cancelled", "skipped"}),
    "running": frozenset({"scheduled", "pending", "completed", "failed", "cancelled"}),
    "completed": frozenset(),
    "failed": frozenset({"pending"}),
    "cancelled": frozenset({"pending"}),
    "skipped": frozenset({"pending"}),
}
"""The statuses that may follow each status. A terminal status permits only an operator's retry. Jobs of the executors
`none` and `join` may also end directly from `pending`."""
