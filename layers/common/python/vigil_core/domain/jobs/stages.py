"""Stages: an ordered, user-defined position inside the life of a job. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from vigil_core.domain.errors import ValidationFailed

SUBMIT = "submit"
COMPLETE = "complete"
INCOMPLETE = "incomplete"
"""The stage of a failed, cancelled or skipped job. It is outside the order."""

DEFAULT_STAGES: tuple[str, ...] = (
    SUBMIT, "download", "boot", "setup", "running", "post_run", "finish", COMPLETE,
)  # fmt: skip

MAX_STAGES = 64
"""The longest stage order, including `submit` and `complete`."""


def normalize_stages(names: Sequence[str]) -> tuple[str, ...]:
    """Complete a list of stages to a stage order: `submit` is first and `complete` last, whether listed or not.

    Raises:
        ValidationFailed: A stage occurs twice or in a wrong position, or there are too many stages.
    """
    ends = {(0, SUBMIT), (len(names) - 1, COMPLETE)}
    order = (SUBMIT, *(stage for index, stage in enumerate(names) if (index, stage) not in ends), COMPLETE)
    for index, stage in enumerate(names):
        if stage == INCOMPLETE:
            raise ValidationFailed.at(f"/stages/{index}", "'incomplete' is outside every stage order")
        if names.index(stage) != index:
            raise ValidationFailed.at(f"/stages/{index}", "occurs twice")
        if stage in (SUBMIT, COMPLETE) and (index, stage) not in ends:
            raise ValidationFailed.at(f"/stages/{index}", "'submit' is the first stage and 'complete' the last")
    if len(order) > MAX_STAGES:
        raise ValidationFailed.at("/stages", f"at most {MAX_STAGES} stages, including 'submit' and 'complete'")
    return order


def is_known(stages: Sequence[str], stage: str) -> bool:
    """Return whether a job with this stage order can reach a stage."""
    return stage == INCOMPLETE or stage in stages


def has_reached(stages: Sequence[str], current: str, target: str) -> bool:
    """Return whether `current` is `target` or a later stage."""
    if INCOMPLETE in (current, target):
        return current == target
    return stages.index(current) >= stages.index(target)
