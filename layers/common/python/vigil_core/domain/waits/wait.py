"""Waits: conditions on jobs, their evaluation, and the status of the wait. Pure.

The entries of a wait are numbered in the order of the request. Each entry receives at most one outcome, the first that
is recorded. A closed wait never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal, TypeAlias

from vigil_core.domain.exact_json import JsonValue, as_text
from vigil_core.domain.jobs import stages
from vigil_core.domain.jobs.job import BUILT_IN_NAMES, Job

WaitStatus: TypeAlias = Literal["waiting", "met", "unmet", "failed_fast", "expired", "cancelled"]
EntryStatus: TypeAlias = Literal["met", "unmet", "failed"]
"""`failed`: the job is at stage `incomplete`, and the wait is a fail-fast wait."""
UnmetReason: TypeAlias = Literal["ended", "deleted", "unknown_stage", "expired", "processing_failed"]

TRUNCATED = "truncated"
"""The captured value that names the values that are not complete. No field has this name."""
MAX_INLINE_WAIT_JOBS = 4
"""The largest inline wait. Its own row contains everything, and a match closes it with one write."""
MAX_WAIT_JOBS = 10_000
REGISTRATION_GRACE = timedelta(seconds=60)


@dataclass(frozen=True, kw_only=True)
class WaitCondition:
    """The condition of one job. One version must satisfy all parts. Without parts: the job has ended."""

    stage: str | None = None
    milestones: tuple[str, ...] = ()
    equals: tuple[tuple[str, JsonValue], ...] = ()


@dataclass(frozen=True, kw_only=True)
class WaitOnJob:
    """One job of a wait, with the condition as the client wrote it.

    `known_version` is the version of the job at the start of the registration, or 0 if the job did not exist. Versions
    up to it do not count, except as the version that is current at registration.
    """

    index: int
    job_id: str
    raw_condition: JsonValue
    known_version: int = 0

    @property
    def condition(self) -> WaitCondition:
        """The parsed condition."""
        return parse_condition(self.raw_condition)


@dataclass(frozen=True, kw_only=True)
class WaitEntry:
    """The content of an entry's row: everything that the matcher needs to evaluate a job."""

    wait_id: str
    wait_on_job: WaitOnJob
    get_fields: tuple[str, ...]
    fail_fast: bool


@dataclass(frozen=True, kw_only=True)
class WaitOptions:
    """The options of a wait.

    `needed` is the number of jobs that must be met: all, 1 (`any`) or n (`at_least`).
    """

    mode: Literal["all", "some"] = "all"
    needed: int
    get_fields: tuple[str, ...] = ()
    fail_fast: bool = False
    return_on_progress: bool = False
    allow_missing: bool = False
    sns: bool = True
    webhook: str | None = None


@dataclass(frozen=True, kw_only=True)
class EntryOutcome:
    """The outcome of one entry. `values` are the captured values of the version that decided it, as text."""

    index: int
    job_id: str
    status: EntryStatus
    version: int
    stage: str | None
    values: Mapping[str, str] = field(default_factory=dict)
    reason: UnmetReason | None = None


@dataclass(frozen=True, kw_only=True)
class WaitCounts:
    """The number of entries of a wait: in total, met, and unmet."""

    total: int
    met: int
    unmet: int

    @property
    def undecided(self) -> int:
        """The number of entries without an outcome."""
        return self.total - self.met - self.unmet


def parse_condition(raw_condition: JsonValue) -> WaitCondition:
    """Parse a valid condition as the client wrote it: null, or an object of expected values."""
    members = raw_condition if isinstance(raw_condition, Mapping) else {}
    stage: str | None = None
    milestones: list[str] = []
    equals: list[tuple[str, JsonValue]] = []
    for name, expected in members.items():
        if name == "job_stage":
            stage = as_text(expected)
        elif name in ("milestone", "milestones"):
            milestones += map(as_text, expected if isinstance(expected, list | tuple) else [expected])
        else:
            equals.append((name, expected))
    return WaitCondition(stage=stage, milestones=tuple(milestones), equals=tuple(equals))


def is_newer_than(entry: WaitEntry, job: Job) -> bool:
    """Return whether this version of the job is newer than the start of the wait's registration."""
    return job.version > entry.wait_on_job.known_version


def wait_entry_of(wait: Wait, wait_on_job: WaitOnJob) -> WaitEntry:
    """Return the entry as the matcher reads it from the entry's row."""
    return WaitEntry(
        wait_id=wait.wait_id,
        wait_on_job=wait_on_job,
        get_fields=wait.options.get_fields,
        fail_fast=wait.options.fail_fast,
    )


def matches(condition: WaitCondition, job: Job) -> bool:
    """Return whether this version of the job satisfies every part of the condition."""
    if condition == WaitCondition():
        return job.ended
    if condition.stage is not None and not stages.has_reached(job.stages, job.stage, condition.stage):
        return False
    if not set(condition.milestones) <= set(job.milestones):
        return False
    return all(_has_value(job, name, expected) for name, expected in condition.equals)


def evaluate(condition: WaitCondition, job: Job | None, *, fail_fast: bool) -> EntryStatus | None:
    """Return the status of an entry by this version of its job.

    Returns:
        None if the entry is still open. That includes a job that does not exist yet.
    """
    if job is None:
        return None
    if job.deleted:
        return "unmet"
    if fail_fast and job.stage == stages.INCOMPLETE:
        return "failed"
    if _has_unknown_stage(condition, job):
        return "unmet"
    if matches(condition, job):
        return "met"
    return "unmet" if job.ended else None


def evaluate_entry(wait_entry: WaitEntry, job: Job | None, *, result: JsonValue = None) -> EntryOutcome | None:
    """Return the outcome of an entry by this version of its job, with the captured values.

    Args:
        wait_entry: The entry.
        job: The job, or None if it does not exist.
        result: The job's result, which is needed only if `get_fields` names it.

    Returns:
        None if the entry is still open.
    """
    wait_on_job = wait_entry.wait_on_job
    status = evaluate(wait_on_job.condition, job, fail_fast=wait_entry.fail_fast)
    if status is None or job is None:
        return None
    if status == "unmet":
        return EntryOutcome(
            index=wait_on_job.index, job_id=wait_on_job.job_id, status=status, version=job.version, stage=job.stage,
            reason=(
                "deleted" if job.deleted
                else "unknown_stage" if _has_unknown_stage(wait_on_job.condition, job)
                else "ended"
            ),
        )  # fmt: skip
    return EntryOutcome(
        index=wait_on_job.index, job_id=wait_on_job.job_id, status=status, version=job.version, stage=job.stage,
        values=capture_fields(job, wait_entry.get_fields, result),
    )  # fmt: skip


def unprocessable_entry(wait_on_job: WaitOnJob, job: Job) -> EntryOutcome:
    """Return the outcome of an entry that cannot be evaluated, or whose captured values cannot be stored."""
    return EntryOutcome(
        index=wait_on_job.index, job_id=wait_on_job.job_id, status="unmet", version=job.version, stage=job.stage,
        reason="processing_failed",
    )  # fmt: skip


def capture_fields(job: Job, names: Iterable[str], result: JsonValue = None) -> dict[str, str]:
    """Return `job_stage`, then each requested field as text, or "" if the job does not have it."""
    values = {"job_stage": job.stage}
    for name in names:
        values[name] = as_text(result) if name == "result" else field_text(job, name) or ""
    return values


def mark_truncated(values: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Return captured values with the names of those that are not complete, in a value of their own."""
    known = values.get(TRUNCATED, "").split()
    return {**values, TRUNCATED: " ".join(dict.fromkeys([*known, *names]))}


def field_text(job: Job, name: str) -> str | None:
    """Return a built-in or a field of a job as text, or None if the job does not have it."""
    value = _field_value(job, name)
    return None if value is None else as_text(value)


def _has_value(job: Job, name: str, expected: JsonValue) -> bool:
    """Return whether a built-in or a field has a value. Two numbers are compared as numbers, all else as text."""
    value = _field_value(job, name)
    if value is None:
        return False
    if _is_number(value) and _is_number(expected):
        return value == expected
    return as_text(value) == as_text(expected)


def _is_number(value: JsonValue) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def _field_value(job: Job, name: str) -> JsonValue:
    if name in BUILT_IN_NAMES or name in {"progress", "message", "error"}:
        return _built_in_value(job, name)
    return job.fields.get(name)


def wait_status(counts: WaitCounts, options: WaitOptions, *, failed: bool) -> WaitStatus:
    """Return the status of a wait with these counts. No other code decides it.

    `failed` has precedence over everything. With mode `all` an unmet job does not end the wait: the others are still
    collected, and the wait is `unmet` when no entry is open. With `any` and `at_least` the wait is `unmet` as soon as
    too few entries are open.
    """
    if failed:
        return "failed_fast"
    if counts.met >= options.needed:
        return "met"
    if counts.undecided <= 0:
        return "unmet"
    if options.mode == "some" and counts.met + counts.undecided < options.needed:
        return "unmet"
    return "waiting"


def _has_unknown_stage(condition: WaitCondition, job: Job) -> bool:
    return condition.stage is not None and not stages.is_known(job.stages, condition.stage)


def _built_in_value(job: Job, name: str) -> JsonValue:
    values: dict[str, JsonValue] = {
        "status": job.status,
        "job_stage": job.stage,
        "job_health": job.health,
        "dependency_status": job.dependencies.status,
        "queue": job.queue,
        "job_type": job.job_type,
        "name": job.name,
        "priority": job.priority,
        "attempt": job.attempt,
        "milestones": list(job.milestones),
        "workflow_id": job.workflow.workflow_id,
        "progress": job.progress,
        "message": job.message,
        "error": None if job.error is None else {"code": job.error.code, "message": job.error.message},
    }
    return values[name]


@dataclass(frozen=True, kw_only=True)
class Wait:
    """The row of a wait.

    An inline wait (`wait_on_jobs` is not None) contains its entries and outcomes. A large wait contains counts per
    block and, once it is closed, the sets of entries that count (`final_met`, `final_unmet`). A large wait is
    registered page by page; `registered_pages` are the finished ones.
    """

    namespace: str
    wait_id: str
    status: WaitStatus
    options: WaitOptions
    raw_options: str
    total: int
    created_by: str
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None = None
    version: int = 1
    has_waited_jobs: bool = False
    wait_on_jobs: tuple[WaitOnJob, ...] | None = None
    outcomes: Mapping[int, EntryOutcome] = field(default_factory=dict)
    pages: int = 0
    registered_pages: frozenset[int] = frozenset()
    met_counts: Mapping[int, int] = field(default_factory=dict)
    unmet_counts: Mapping[int, int] = field(default_factory=dict)
    final_met: frozenset[int] = frozenset()
    """The entries that the answer shows as decided other than as unmet, including those that failed the wait."""
    final_failed: int = 0
    """The number of entries of a large wait that failed it. They are in `final_met`, but no count contains them."""
    final_unmet: frozenset[int] = frozenset()

    @property
    def ended(self) -> bool:
        """Whether the wait has ended, with any status."""
        return self.status != "waiting"

    @property
    def registration_complete(self) -> bool:
        """Whether every entry exists and every job was read after that. Before that, counts prove nothing.

        The row of an inline wait is written last, so its existence means that the registration is complete.
        """
        return len(self.registered_pages) == self.pages

    @property
    def registration_due_at(self) -> datetime:
        """The time at which the sweeper resumes an incomplete registration."""
        return self.created_at + REGISTRATION_GRACE

    @property
    def is_inline(self) -> bool:
        """Whether this row contains the entries and outcomes."""
        return self.wait_on_jobs is not None

    @property
    def counts_every_outcome(self) -> bool:
        """Whether a large wait counts each outcome and not only full blocks, because it can end or answer early."""
        return self.options.mode == "some" or self.options.return_on_progress

    @property
    def failed_count(self) -> int:
        """The number of entries that failed the wait."""
        if self.is_inline:
            return sum(outcome.status == "failed" for outcome in self.outcomes.values())
        return self.final_failed

    @property
    def counts(self) -> WaitCounts:
        """The counts that this row knows."""
        if self.is_inline:
            statuses = [outcome.status for outcome in self.outcomes.values()]
            return WaitCounts(total=self.total, met=statuses.count("met"), unmet=statuses.count("unmet"))
        return WaitCounts(total=self.total, met=sum(self.met_counts.values()), unmet=sum(self.unmet_counts.values()))


WaitTransition: TypeAlias = Callable[[Wait], Wait]
"""A decision on a wait: the changed wait, or the same wait if nothing changes."""


def with_outcomes(wait: Wait, outcomes: Iterable[EntryOutcome], *, now: datetime) -> Wait:
    """Add outcomes to an inline wait, and close it if they decide it.

    The first `failed` outcome closes the wait. Outcomes after it are not counted.

    Returns:
        The same wait if nothing changes: it has ended, or every entry already has an outcome.
    """
    if wait.ended:
        return wait
    outcomes_by_index = dict(wait.outcomes)
    failed = False
    for outcome in outcomes:
        if outcome.index in outcomes_by_index:
            continue
        outcomes_by_index[outcome.index] = outcome
        if outcome.status == "failed":
            failed = True
            break
    if len(outcomes_by_index) == len(wait.outcomes):
        return wait
    changed = replace(wait, outcomes=outcomes_by_index, version=wait.version + 1)
    status = wait_status(changed.counts, wait.options, failed=failed)
    return changed if status == "waiting" else replace(changed, status=status, ended_at=now)


def cancel_inline(wait: Wait, *, now: datetime) -> Wait:
    """Cancel an inline wait."""
    return replace(wait, status="cancelled", ended_at=now, version=wait.version + 1)


def expire_inline(wait: Wait, current_stages: Mapping[str, str], *, now: datetime) -> Wait:
    """Expire an inline wait. Its open entries become unmet, with the job's stage from `current_stages` by job id."""
    expired_outcomes = {
        wait_on_job.index: EntryOutcome(
            index=wait_on_job.index, job_id=wait_on_job.job_id, status="unmet", version=wait_on_job.known_version,
            stage=current_stages.get(wait_on_job.job_id), reason="expired",
        )
        for wait_on_job in wait.wait_on_jobs or ()
        if wait_on_job.index not in wait.outcomes
    }  # fmt: skip
    return replace(
        wait, status="expired", ended_at=now, version=wait.version + 1, outcomes={**wait.outcomes, **expired_outcomes}
    )
