"""Stages: a finer, ordered, user-defined position inside a job's life."""

from __future__ import annotations

from collections.abc import Sequence

from vigil_core.domain.errors import ValidationFailed

SUBMIT = "submit"
COMPLETE = "complete"
INCOMPLETE = "incomplete"
"""Where a job that failed, was cancelled or was skipped stands: outside the order, reached only by itself."""

DEFAULT_STAGES: tuple[str, ...] = (
    SUBMIT, "download", "boot", "setup", "running", "post_run", "finish", COMPLETE,
)  # fmt: skip

MAX_STAGES = 64
"""How many stages an order has at most, `submit` and `complete` among them."""


def normalize_stages(names: Sequence[str]) -> tuple[str, ...]:
    """The order that somebody means who names these stages: `submit` goes first and `complete` last, named or not.

    Raises:
        ValidationFailed: a stage is named twice or where it cannot be, or there are too many.
    """
    ends = {(0, SUBMIT), (len(names) - 1, COMPLETE)}
    order = (SUBMIT, *(stage for index, stage in enumerate(names) if (index, stage) not in ends), COMPLETE)
    for place, stage in enumerate(names):
        if stage == INCOMPLETE:
            raise ValidationFailed.at(f"/stages/{place}", "'incomplete' stands outside every order")
        if names.index(stage) != place:
            raise ValidationFailed.at(f"/stages/{place}", "is named twice")
        if stage in (SUBMIT, COMPLETE) and (place, stage) not in ends:
            raise ValidationFailed.at(f"/stages/{place}", "'submit' is the first stage and 'complete' the last")
    if len(order) > MAX_STAGES:
        raise ValidationFailed.at("/stages", f"at most {MAX_STAGES}, 'submit' and 'complete' among them")
    return order


def is_known(stages: Sequence[str], stage: str) -> bool:
    """Whether a job with these stages can ever stand at this one."""
    return stage == INCOMPLETE or stage in stages


def has_reached(stages: Sequence[str], current: str, target: str) -> bool:
    """Whether `current` is `wanted` or a later stage in the order."""
    if INCOMPLETE in (current, target):
        return current == target
    return stages.index(current) >= stages.index(target)
