"""Trigger rules in their simplest form."""

from __future__ import annotations

from collections.abc import Sequence

END_STATES = ("success", "failed", "skipped", "cancelled")
UNAFFECTED_BY_FAILURES = ("all_failed", "none_skipped")
"""Rules that a failure cannot violate: they skip no job because of a failure."""


def satisfied(rule: str, endings: Sequence[str]) -> bool:
    """Evaluate a rule on dependencies that have all ended."""
    bad = endings.count("failed") + endings.count("cancelled")
    good, skipped = endings.count("success"), endings.count("skipped")
    return {
        "all_success": good == len(endings),
        "all_done": True,
        "all_failed": bad == len(endings),
        "one_success": good > 0,
        "one_failed": bad > 0,
        "one_done": good + bad > 0,
        "none_failed": bad == 0,
        "none_failed_min_one_success": bad == 0 and good > 0,
        "none_skipped": skipped == 0,
        "always": True,
    }[rule]


def decided(rule: str, endings: Sequence[str], total: int) -> bool | None:
    """Evaluate a rule on the dependencies that have ended; None when the others can still change the result."""
    left = total - len(endings)
    if left and rule == "all_done":
        return None
    said = {satisfied(rule, [*endings, *[rest] * left]) for rest in END_STATES}
    return said.pop() if len(said) == 1 else None
