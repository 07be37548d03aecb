"""Trigger rules of a job's dependencies: end states, counts, evaluation and verdicts. Pure.

The rules have the names of Airflow: https://airflow.apache.org/docs/apache-airflow/stable/core-concepts/dags.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

from vigil_core.domain.jobs.status import TERMINAL, JobStatus

TriggerRule: TypeAlias = Literal[
    "all_success", "all_done", "all_failed", "one_success", "one_failed", "one_done", "none_failed",
    "none_failed_min_one_success", "none_skipped", "always",
]  # fmt: skip
EndState: TypeAlias = Literal["success", "failed", "skipped", "cancelled"]
MAX_NAMED_FAILURES = 3
"""The number of failed dependencies that a verdict names."""
END_STATES: tuple[EndState, ...] = get_args(EndState)
FAILED_END_STATES: frozenset[EndState] = frozenset({"failed", "cancelled"})
RULES_UNAFFECTED_BY_FAILURE: frozenset[TriggerRule] = frozenset({"all_failed", "none_skipped"})
"""The rules that a failure cannot violate. A job that one of them skips is not skipped through a failure."""


@dataclass(frozen=True, kw_only=True)
class DependencyCounts:
    """The number of dependencies in total and per end state."""

    total: int
    success: int = 0
    failed: int = 0
    skipped: int = 0
    cancelled: int = 0
    failures: tuple[str, ...] = ()
    """The first failed or cancelled dependencies: names in a run, otherwise ids."""

    @classmethod
    def of(cls, total: int, ended: Mapping[EndState, int], failures: Sequence[str] = ()) -> DependencyCounts:
        """Return the counts of a mapping. Only the first failures are kept."""
        by_end_state = {end_state: ended.get(end_state, 0) for end_state in END_STATES}
        return cls(total=total, failures=tuple(failures[:MAX_NAMED_FAILURES]), **by_end_state)

    @property
    def failed_or_cancelled(self) -> int:
        """The number of failed dependencies; a cancelled one counts as failed."""
        return self.failed + self.cancelled

    @property
    def done(self) -> int:
        """The number of ended dependencies."""
        return self.success + self.failed_or_cancelled + self.skipped

    def inputs(self) -> dict[str, int]:
        """Return the counts by name, as a verdict shows them."""
        return {"total": self.total, **{ending: getattr(self, ending) for ending in END_STATES}}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The decision to release or skip a job, with its reason."""

    rule: TriggerRule
    inputs: Mapping[str, int]
    reason: str
    through_failure: bool = False
    """Whether the job was skipped because dependencies failed. It then counts as failed for its own dependents."""
    failures: tuple[str, ...] = ()
    """The first failed or cancelled dependencies."""

    @property
    def explanation(self) -> str:
        """The reason with the names of the failed dependencies."""
        if not self.failures:
            return self.reason
        unnamed = self.inputs.get("failed", 0) + self.inputs.get("cancelled", 0) - len(self.failures)
        return f"{self.reason} ({', '.join(self.failures)}{f' and {unnamed} more' if unnamed > 0 else ''})"

    def with_reason(self, reason: str) -> Verdict:
        """Return this verdict with another reason."""
        return replace(self, reason=reason)


def end_state_of(status: JobStatus, verdict: Verdict | None) -> EndState | None:
    """Return the end state of a job as its dependents count it; None for an open job.

    The verdict tells why a skipped job was skipped: a job skipped through a failure counts as failed.
    """
    if status not in TERMINAL:
        return None
    if status == "skipped" and verdict is not None and verdict.through_failure:
        return "failed"
    by_status: dict[JobStatus, EndState] = {"completed": "success", "failed": "failed", "cancelled": "cancelled"}
    return by_status.get(status, "skipped")


def evaluate_rule(rule: TriggerRule, counts: DependencyCounts) -> bool | None:
    """Evaluate a trigger rule: True if satisfied, False if it can no longer be satisfied, None if undecided."""
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
            none_failed = all_match(counts.failed_or_cancelled)
            return any_matches(counts.success) if none_failed else none_failed
        case "none_skipped":
            return all_match(counts.skipped)
        case "always":
            return True


def rule_verdict(rule: TriggerRule, counts: DependencyCounts, is_satisfied: bool) -> Verdict:
    """Build the verdict of a trigger rule. The job's condition is not evaluated here."""
    ended_counts = (
        ", ".join(f"{getattr(counts, ending)} {ending}" for ending in END_STATES if getattr(counts, ending)) or "none"
    )
    state = "holds" if is_satisfied else "can no longer hold"
    return Verdict(
        rule=rule,
        inputs=counts.inputs(),
        failures=counts.failures,
        reason=f"{rule} {state}: of {counts.total} dependencies {ended_counts}",
        through_failure=not is_satisfied and counts.failed_or_cancelled > 0 and rule not in RULES_UNAFFECTED_BY_FAILURE,
    )
