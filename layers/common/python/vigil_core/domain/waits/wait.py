"""Waits: what a client waits for, when a job satisfies it, and when the whole is over. Pure.

A wait's entries are numbered in the order the client gave them. Each entry gets at most one outcome, the first that is
recorded, and a closed wait never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from vigil_core.domain.errors import FieldProblem, ValidationFailed, escape_pointer_token
from vigil_core.domain.exact_json import JsonValue, as_text
from vigil_core.domain.jobs import stages
from vigil_core.domain.jobs.job import BUILT_IN_NAMES, Job

WaitStatus: TypeAlias = Literal["waiting", "met", "unmet", "failed_fast", "expired", "cancelled"]
EntryStatus: TypeAlias = Literal["met", "unmet", "failed"]
"""`failed`: the job stands at `incomplete` and the wait fails fast."""
UnmetReason: TypeAlias = Literal["ended", "deleted", "unknown_stage", "expired"]

MAX_INLINE_WAIT_JOBS = 4
"""Up to so many jobs a wait keeps everything in its own row, and a match closes it in one write."""
MAX_WAIT_JOBS = 10_000
REGISTRATION_GRACE = timedelta(seconds=60)
UNSUPPORTED_CONDITION_NAMES = frozenset({"progress", "message", "result"})
"""What `get_fields` may name and a condition may not: no version of a job carries them."""


@dataclass(frozen=True, kw_only=True)
class WaitCondition:
    """What one job has to satisfy, all of it on one version. With no part at all: the job has ended."""

    stage: str | None = None
    milestones: tuple[str, ...] = ()
    equals: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class WaitOnJob:
    """One job of a wait, with the condition as the client wrote it.

    `known_version` is the job's version when the registration began, 0 when it did not exist: what the job was up to
    that version does not count, except as the version current at registration.
    """

    index: int
    job_id: str
    raw_condition: JsonValue
    known_version: int = 0

    @property
    def condition(self) -> WaitCondition:
        """The condition, understood."""
        return parse_condition(self.raw_condition)


@dataclass(frozen=True, kw_only=True)
class WaitEntry:
    """What the matcher knows of an entry from its row alone: enough to judge a job by it."""

    wait_id: str
    wait_on_job: WaitOnJob
    get_fields: tuple[str, ...]
    fail_fast: bool


@dataclass(frozen=True, kw_only=True)
class WaitOptions:
    """How a wait behaves. `needed` is how many jobs must be met: all of them, or the n of `any` and `at_least`."""

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
    """What became of one entry. `values` are text, captured from the version of the job that decided it."""

    index: int
    job_id: str
    status: EntryStatus
    version: int
    stage: str | None
    values: Mapping[str, str] = field(default_factory=dict)
    reason: UnmetReason | None = None


@dataclass(frozen=True, kw_only=True)
class WaitCounts:
    """How many entries a wait has, and how many of them are decided."""

    total: int
    met: int
    unmet: int

    @property
    def undecided(self) -> int:
        """Entries that may still go either way."""
        return self.total - self.met - self.unmet


def parse_condition(raw_condition: JsonValue, pointer: str = "") -> WaitCondition:
    """Understand the condition on one job as a client writes it: null, or an object of expected values.

    Raises:
        ValidationFailed: with a JSON pointer to each part that is wrong, below `pointer`.
    """
    if raw_condition is None:
        return WaitCondition()
    if not isinstance(raw_condition, Mapping):
        raise ValidationFailed.at(pointer, "a condition is null or an object")
    problems: list[FieldProblem] = []
    stage: str | None = None
    milestones: list[str] = []
    equals: list[tuple[str, str]] = []
    for name, expected in raw_condition.items():
        member_pointer = f"{pointer}/{escape_pointer_token(name)}"
        if name == "job_stage":
            if isinstance(expected, str) and expected:
                stage = expected
            else:
                problems.append(FieldProblem(pointer=member_pointer, detail="a stage's name is text"))
        elif name in ("milestone", "milestones"):
            names = [expected] if isinstance(expected, str) else expected
            if isinstance(names, Sequence) and names and all(isinstance(n, str) and n for n in names):
                milestones += [str(n) for n in names]
            else:
                problems.append(
                    FieldProblem(pointer=member_pointer, detail="a milestone's name, or a list of at least one")
                )
        elif name in UNSUPPORTED_CONDITION_NAMES:
            problems.append(FieldProblem(pointer=member_pointer, detail=f"{name} cannot be waited on"))
        elif expected is None or isinstance(expected, Mapping | list | tuple):
            problems.append(
                FieldProblem(pointer=member_pointer, detail="the expected value is text, a number, true or false")
            )
        else:
            equals.append((name, as_text(expected)))
    if problems:
        raise ValidationFailed(problems)
    return WaitCondition(stage=stage, milestones=tuple(milestones), equals=tuple(equals))


def is_newer_than(entry: WaitEntry, job: Job) -> bool:
    """Whether a version of the job that the stream tells of came after the wait's registration began."""
    return job.version > entry.wait_on_job.known_version


def wait_entry_of(wait: Wait, wait_on_job: WaitOnJob) -> WaitEntry:
    """What a wait's registrar wants of a job: the same that the entry's row says to the matcher."""
    return WaitEntry(
        wait_id=wait.wait_id,
        wait_on_job=wait_on_job,
        get_fields=wait.options.get_fields,
        fail_fast=wait.options.fail_fast,
    )


def matches(condition: WaitCondition, job: Job) -> bool:
    """Whether this version of the job satisfies every part of the condition."""
    if condition == WaitCondition():
        return job.ended
    if condition.stage is not None and not stages.has_reached(job.stages, job.stage, condition.stage):
        return False
    if not set(condition.milestones) <= set(job.milestones):
        return False
    return all(field_text(job, name) == expected for name, expected in condition.equals)


def evaluate(condition: WaitCondition, job: Job | None, *, fail_fast: bool) -> EntryStatus | None:
    """What this version of the job means for an entry; None while it may still go either way.

    None is also the answer for a job that does not exist (yet).
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
    """The outcome of an entry by this version of its job, with the fields that the wait collects; None while open.

    `result` is the job's result, which is only needed when `get_fields` names it.
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


def capture_fields(job: Job, names: Iterable[str], result: JsonValue = None) -> dict[str, str]:
    """`job_stage`, then each requested field as text; "" for what the job does not have."""
    values = {"job_stage": job.stage}
    for name in names:
        values[name] = as_text(result) if name == "result" else field_text(job, name) or ""
    return values


def field_text(job: Job, name: str) -> str | None:
    """A built-in or a field of a job as text; None when the job does not have it."""
    value = (
        _built_in_value(job, name)
        if name in BUILT_IN_NAMES or name in {"progress", "message"}
        else job.fields.get(name)
    )
    return None if value is None else as_text(value)


def wait_status(counts: WaitCounts, options: WaitOptions, *, failed: bool) -> WaitStatus:
    """Whether the wait is over, by what is decided so far: a pure function, the only place that says so.

    Fail-fast beats everything. With mode `all` an unmet job does not end the wait: the others are still collected, and
    it is `unmet` when nothing is left. With `any` and `at_least` it is `unmet` once too few are left.
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
        "workflow_id": None,
        "progress": job.progress,
        "message": job.message,
    }
    return values[name]


@dataclass(frozen=True, kw_only=True)
class Wait:
    """A wait's own row. Small waits (`entries` is not None) hold their entries and outcomes; large ones hold counts,
    and when closed the sets of entries that count.

    A large wait is registered page by page, and `pages_done` says which are.
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
    final_unmet: frozenset[int] = frozenset()

    @property
    def ended(self) -> bool:
        """Whether the wait is over, one way or another."""
        return self.status != "waiting"

    @property
    def registration_complete(self) -> bool:
        """Whether every entry is written and every job read after that. Before, "nothing is open" proves nothing.

        A small wait's row is written when all that is done: it is its own seal.
        """
        return len(self.registered_pages) == self.pages

    @property
    def registration_due_at(self) -> datetime:
        """When the sweeper looks after a registration that should long be finished."""
        return self.created_at + REGISTRATION_GRACE

    @property
    def is_inline(self) -> bool:
        """Whether this row alone holds everything."""
        return self.wait_on_jobs is not None

    @property
    def counts_every_outcome(self) -> bool:
        """Whether a large wait hears of each outcome, not only of full chunks: it may end, or answer, early."""
        return self.options.mode == "some" or self.options.return_on_progress

    @property
    def counts(self) -> WaitCounts:
        """What is decided so far, as far as this row knows."""
        if self.is_inline:
            met = sum(o.status != "unmet" for o in self.outcomes.values())
            return WaitCounts(total=self.total, met=met, unmet=len(self.outcomes) - met)
        return WaitCounts(total=self.total, met=sum(self.met_counts.values()), unmet=sum(self.unmet_counts.values()))


WaitTransition: TypeAlias = Callable[[Wait], Wait]
"""What is to become of a wait; the wait itself when nothing is."""


def with_outcomes(wait: Wait, outcomes: Iterable[EntryOutcome], *, now: datetime) -> Wait:
    """An inline wait after these outcomes, closed if that is what they mean.

    Returns the wait itself when nothing changes: it is over, or every entry already has its outcome. The first
    `failed` closes the wait, and what comes after it is not counted.
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
    """An inline wait that nobody wants any more."""
    return replace(wait, status="cancelled", ended_at=now, version=wait.version + 1)


def expire_inline(wait: Wait, current_stages: Mapping[str, str], *, now: datetime) -> Wait:
    """An inline wait whose time is over: what is still open is unmet. `stages_now` is by job id."""
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
