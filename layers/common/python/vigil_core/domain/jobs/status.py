"""The life of a job: which status may follow which. Whatever is not in this table is refused and changes nothing."""

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
"""From a terminal status there is only the operator's retry. Executor `none` may also end straight from `pending`."""
