"""Stages: a finer, ordered, user-defined position inside a job's life."""

from __future__ import annotations

from collections.abc import Sequence

SUBMIT = "submit"
COMPLETE = "complete"
INCOMPLETE = "incomplete"
"""Where a job that failed, was cancelled or was skipped stands: outside the order, reached only by itself."""

DEFAULT_STAGES: tuple[str, ...] = (
    SUBMIT, "download", "boot", "setup", "running", "post_run", "finish", COMPLETE,
)  # fmt: skip


def stages_of(job_type: str) -> Sequence[str]:
    """The ordered stages of a job type, `submit` first and `complete` last."""
    del job_type  # Every type has the default order: types of one's own are not served yet.
    return DEFAULT_STAGES


def is_known(stages: Sequence[str], stage: str) -> bool:
    """Whether a job with these stages can ever stand at this one."""
    return stage == INCOMPLETE or stage in stages


def has_reached(stages: Sequence[str], current: str, wanted: str) -> bool:
    """Whether `current` is `wanted` or a later stage in the order."""
    if INCOMPLETE in (current, wanted):
        return current == wanted
    return stages.index(current) >= stages.index(wanted)
