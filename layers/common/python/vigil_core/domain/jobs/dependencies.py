"""What a job waits for before it may run: how other jobs end, judged by a trigger rule. Pure.

Rules by the names that Airflow gave them: https://airflow.apache.org/docs/apache-airflow/stable/core-concepts/dags.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

from vigil_core.domain.jobs.status import TERMINAL, JobStatus

TriggerRule: TypeAlias = Literal[
    "all_success", "all_done", "all_failed", "one_success", "one_failed", "one_done", "none_failed",
    "none_failed_min_one_success", "none_skipped", "always",
]  # fmt: skip
EndState: TypeAlias = Literal["success", "failed", "skipped", "cancelled"]
DependencyStatus: TypeAlias = Literal["none", "waiting", "satisfied", "failed"]
END_STATES: tuple[EndState, ...] = get_args(EndState)
RULES_UNAFFECTED_BY_FAILURE: frozenset[TriggerRule] = frozenset({"all_failed", "none_skipped"})
"""Rules that no failure keeps from holding: who is skipped by one of them is not so because others failed."""
MAX_DEPENDENCIES = 100
"""Of one job: its row names them all."""


@dataclass(frozen=True, kw_only=True)
class Dependency:
    """A job that another depends on. What it was up to `known_version` does not count, but as what it is then."""

    job_id: str
    known_version: int


@dataclass(frozen=True, kw_only=True)
class Dependent:
    """A job that waits for another to end, in its nth attempt; `index` is the other's place among its dependencies."""

    job_id: str
    attempt: int
    index: int
    known_version: int


@dataclass(frozen=True, kw_only=True)
class DependencyCounts:
    """How many dependencies there are, and how many of them have ended in which way."""

    total: int
    success: int = 0
    failed: int = 0
    skipped: int = 0
    cancelled: int = 0

    @property
    def failed_or_cancelled(self) -> int:
        """What counts as failed: a cancel does."""
        return self.failed + self.cancelled

    @property
    def done(self) -> int:
        """How many have ended."""
        return self.success + self.failed_or_cancelled + self.skipped

    def inputs(self) -> dict[str, int]:
        """By name, as a verdict shows them."""
        return {"total": self.total, **{ending: getattr(self, ending) for ending in END_STATES}}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Why a job was released or skipped. `through_failure`: it was skipped because others failed, and counts as failed
    for those that depend on it."""

    rule: TriggerRule
    inputs: Mapping[str, int]
    reason: str
    through_failure: bool = False

    def with_reason(self, reason: str) -> Verdict:
        """The same, but for the reason."""
        return replace(self, reason=reason)


def end_state_of(status: JobStatus, verdict: Verdict | None) -> EndState | None:
    """What the end of a job means for those that depend on it; None while it has not ended."""
    if status not in TERMINAL:
        return None
    if status == "skipped" and verdict is not None and verdict.through_failure:
        return "failed"
    by_status: dict[JobStatus, EndState] = {"completed": "success", "failed": "failed", "cancelled": "cancelled"}
    return by_status.get(status, "skipped")


def evaluate_rule(rule: TriggerRule, counts: DependencyCounts) -> bool | None:
    """Whether the rule is satisfied (True), can no longer be (False), or may still go either way (None)."""
    all_done = counts.done >= counts.total

    def all_match(mismatches: int) -> bool | None:
        return False if mismatches else (True if all_done else None)

    def any_matches(matches: int) -> bool | None:
        return True if matches else (False if all_done else None)

    match rule:
        case "all_success":
            return all_match(counts.failed_or_cancelled + counts.skipped)
        case "all_done":
            return all_match(0)
        case "all_failed":
            return all_match(counts.success + counts.skipped)
        case "one_success":
            return any_matches(counts.success)
        case "one_failed":
            return any_matches(counts.failed_or_cancelled)
        case "one_done":
            return any_matches(counts.success + counts.failed_or_cancelled)
        case "none_failed":
            return all_match(counts.failed_or_cancelled)
        case "none_failed_min_one_success":
            held = all_match(counts.failed_or_cancelled)
            return any_matches(counts.success) if held else held
        case "none_skipped":
            return all_match(counts.skipped)
        case "always":
            return True


def rule_verdict(rule: TriggerRule, counts: DependencyCounts, is_satisfied: bool) -> Verdict:
    """The verdict by the rule alone, in words."""
    ended_counts = (
        ", ".join(f"{getattr(counts, ending)} {ending}" for ending in END_STATES if getattr(counts, ending)) or "none"
    )
    state = "holds" if is_satisfied else "can no longer hold"
    return Verdict(
        rule=rule,
        inputs=counts.inputs(),
        reason=f"{rule} {state}: of {counts.total} dependencies {ended_counts}",
        through_failure=not is_satisfied and counts.failed_or_cancelled > 0 and rule not in RULES_UNAFFECTED_BY_FAILURE,
    )
