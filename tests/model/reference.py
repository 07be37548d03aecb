"""The reference: a plain model of jobs and waits that shares no code with the product.

The reference receives the versions of each job in the order of their writes, and the times of calls, responses and
quiet moments. A time here is a tick: the number of AWS calls made before.

The rule for waits: a registration takes effect at one instant for each of its jobs, between the call and its end. The
version current at that instant counts, and all later ones; the first version that decides an entry gives its outcome,
permanently. Outcomes are recorded some time after their version is stored, at the latest at the next quiet moment;
outcomes that exist at registration are recorded before anything is counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from vigil_core.domain.jobs.job import Job

NEVER = 10**9

ORDER = ["submit", "download", "boot", "setup", "running", "post_run", "finish", "complete"]
TERMINAL = ("completed", "failed", "cancelled", "skipped")


# Jobs


@dataclass(frozen=True)
class Version:
    """One version of a job, and the tick of its write."""

    tick: int
    number: int
    deleted: bool
    milestones: tuple[str, ...]
    says: Mapping[str, Any]
    """Built-ins and fields by name, as a condition names them."""

    @classmethod
    def of(cls, tick: int, job: Job) -> Version:
        """Return a version as it was stored."""
        built_in = {
            "status": job.status, "job_stage": job.stage, "job_health": job.health, "attempt": job.attempt,
            "queue": job.queue, "result": {"by": job.log[-1].actor} if job.status == "completed" else None,
        }  # fmt: skip
        return cls(tick, job.version, job.deleted, job.milestones, {**job.fields, **built_in})

    @property
    def is_terminal(self) -> bool:
        return self.says["status"] in TERMINAL

    def text(self, name: str) -> str:
        """Return the text that `get_fields` gives."""
        value = self.says.get(name)
        if value is None:
            return ""
        if isinstance(value, list):
            return " ".join(str(item) for item in value)
        return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


@dataclass(frozen=True)
class JobView:
    """The part of a job that a wait can see."""

    status: str
    stage: str
    health: str | None
    milestones: tuple[str, ...]
    fields: Mapping[str, Any]
    attempt: int
    to_cancel: bool
    deleted: bool

    @classmethod
    def of(cls, job: Job) -> JobView:
        """Return the state as it was stored."""
        return cls(
            job.status, job.stage, job.health, job.milestones, dict(job.fields), job.attempt,
            job.cancel_requested_at is not None, job.deleted,
        )  # fmt: skip


def expected_change(before: JobView | None, verb: str, said: Mapping[str, Any]) -> JobView:
    """Return the state of a job after a request."""
    if before is None:
        assert verb == "create"
        before = JobView("pending", "submit", None, (), {}, 1, False, False)
    if verb == "start":
        return replace(before, status="running")
    if verb in ("create", "report"):
        fields = {**before.fields, **said.get("fields", {})}
        return replace(
            before,
            stage=said.get("stage", before.stage),
            milestones=tuple(dict.fromkeys([*before.milestones, *said.get("milestones", ())])),
            fields={name: value for name, value in fields.items() if value is not None},
        )
    if verb == "complete":
        return replace(before, status="completed", stage="complete", health="success")
    if verb == "fail" and not before.to_cancel:
        return replace(before, status="failed", stage="incomplete", health="failed")
    if verb == "cancel" and before.status == "running":
        return replace(before, to_cancel=True)
    if verb in ("cancel", "fail", "enforce"):
        return replace(before, status="cancelled", stage="incomplete", health="cancelled")
    if verb == "retry":
        again = replace(before, status="pending", stage="submit", health=None, to_cancel=False)
        return replace(again, attempt=before.attempt + 1)
    assert verb == "delete"
    return replace(before, deleted=True)


# Waits

Verdict: TypeAlias = Literal["met", "unmet", "failed"]


@dataclass(frozen=True)
class Outcome:
    """The outcome of an entry; None while it is open."""

    verdict: Verdict
    shown: Mapping[str, Any]
    """The job's value in the response, in `waited_jobs` or in `unmet_jobs`."""
    stored: int
    """The tick at which the deciding version was stored."""
    at_once: bool
    """Whether that version was current when the registration took effect."""


@dataclass
class WaitCase:
    """The history of one wait."""

    namespace: str
    wait_id: str
    body: Mapping[str, Any]
    called: int
    registered: int = NEVER
    """The tick at which the registration was complete: answered, and for a large wait marked complete."""
    unfinished: bool = False
    """Whether the registration crashed or failed, so that the sweeper had to finish it."""
    closing: int = NEVER
    """The tick at which the closing actor began; an outcome recorded later may have been too late."""
    closed: int = NEVER
    cancels: list[tuple[int, int]] = field(default_factory=list)
    """The cancel attempts: (begun, ended)."""

    @property
    def options(self) -> Mapping[str, Any]:
        return dict(self.body.get("wait_options") or {})

    @property
    def fails_fast(self) -> bool:
        return self.options.get("fail_fast", False) is not False

    @property
    def needed(self) -> int:
        mode = self.options.get("mode", "all")
        return len(self.body["wait_on"]) if mode == "all" else 1 if mode == "any" else int(mode["at_least"])

    def possible_outcomes(self, job_id: str, versions: Sequence[Version]) -> list[Outcome | None]:
        """Return the possible outcomes of an entry, one for each instant at which the registration may have read the
        job.
        """
        before = [v for v in versions if v.tick <= self.called]
        during = [v for v in versions if self.called < v.tick <= self.registered]
        instants = [*before[-1:], *during] if before else [None, *during]
        return [self._outcome(job_id, current, versions) for current in instants]

    def _outcome(self, job_id: str, current: Version | None, versions: Sequence[Version]) -> Outcome | None:
        first = current.number if current else 1
        for version in versions:
            if version.number >= first and (verdict := self._evaluate(job_id, version)):
                return Outcome(
                    verdict, self._response_value(job_id, verdict, version), version.tick, version is current
                )
        return None

    def _evaluate(self, job_id: str, version: Version) -> Verdict | None:
        asked = self.body["wait_on"][job_id]
        if version.deleted:
            return "unmet"
        if self.fails_fast and version.says["job_stage"] == "incomplete":
            return "failed"
        if _unknown_stage(asked):
            return "unmet"
        if _matches(asked, version):
            return "met"
        return "unmet" if version.is_terminal else None

    def _response_value(self, job_id: str, verdict: Verdict, version: Version) -> Mapping[str, Any]:
        if verdict == "unmet":
            unknown = _unknown_stage(self.body["wait_on"][job_id])
            reason = "deleted" if version.deleted else "unknown_stage" if unknown else "ended"
            return {"job_stage": version.says["job_stage"], "reason": reason}
        names = ["job_stage", *(self.options.get("get_fields") or {})]
        return {name: version.text(name) for name in names}

    def status_for(self, verdicts: Sequence[Verdict]) -> str:
        """Return the status that this number of outcomes gives the wait."""
        if "failed" in verdicts:
            return "failed_fast"
        total, met = len(self.body["wait_on"]), verdicts.count("met")
        left = total - len(verdicts)
        if met >= self.needed:
            return "met"
        some = self.options.get("mode", "all") != "all"
        return "unmet" if left == 0 or (some and met + left < self.needed) else "waiting"


def deviation(
    case: WaitCase, answer: Mapping[str, Any], jobs: Mapping[str, Sequence[Version]], *, at_rest: Sequence[int]
) -> str | None:
    """Return the reason that this response is wrong at the end; None when it can be right.

    `at_rest` are the quiet ticks; the last of them is now.
    """
    status, waited, unmet = answer["status"], answer["waited_jobs"], answer["unmet_jobs"]
    by_count = status in ("met", "unmet")
    taken: list[tuple[int, Verdict]] = []
    verdicts: list[Verdict] = []
    for job_id in case.body["wait_on"]:
        expired = unmet.get(job_id, {}).get("reason") == "expired"
        seen = None if expired else waited.get(job_id) or unmet.get(job_id)
        fitting: list[tuple[int, Outcome | None]] = []
        for outcome in case.possible_outcomes(job_id, jobs[job_id]):
            by = _latest_record_tick(case, outcome, at_rest, by_count=by_count)
            if seen is None and (outcome is None or by > case.closing or (status == "failed_fast" and outcome.at_once)):
                fitting.append((NEVER, None))
            elif seen is not None and outcome is not None and outcome.stored <= case.closed:
                place = unmet if outcome.verdict == "unmet" else waited
                fitting += [(by, outcome)] if place.get(job_id) == outcome.shown else []
        if not fitting:
            return f"{job_id} is {seen or 'open'}, but could only be {case.possible_outcomes(job_id, jobs[job_id])}"
        latest, outcome = max(fitting, key=lambda each: each[0])
        if outcome is not None:
            verdicts.append(outcome.verdict)
            taken.append((latest, outcome.verdict))
    # If the registration crashed, the sweeper closes the wait after a minute.
    for rest in at_rest[-1:] if case.unfinished else at_rest:
        by_then = [verdict for by, verdict in taken if by <= rest]
        if case.registered <= rest < case.closed and case.status_for(by_then) != "waiting":
            return f"it was decided at {rest} ({case.status_for(by_then)}), but went on until {case.closed}"
    if status in ("waiting", "met", "unmet", "failed_fast") and case.status_for(verdicts) != status:
        return f"it is {status}, but what counts says {case.status_for(verdicts)}"
    if status == "cancelled" and not any(begun <= case.closed <= ended for begun, ended in case.cancels):
        return "it is cancelled, but nobody did that then"
    if status == "expired" and set(unmet) | set(waited) != set(case.body["wait_on"]):
        return "it is expired, but does not account for every job"
    return None


def _latest_record_tick(case: WaitCase, outcome: Outcome | None, at_rest: Sequence[int], *, by_count: bool) -> int:
    """Return the tick by which an outcome must have been recorded."""
    if outcome is None:
        return NEVER
    if outcome.at_once:
        return 0 if by_count else case.registered
    if case.unfinished:
        return at_rest[-1]
    return min((rest for rest in at_rest if rest >= max(outcome.stored, case.registered)), default=NEVER)


def _unknown_stage(asked: Any) -> bool:
    stage = (asked or {}).get("job_stage", "incomplete")
    return stage != "incomplete" and stage not in ORDER


def _matches(asked: Any, version: Version) -> bool:
    if not asked:
        return version.is_terminal
    for name, wanted in asked.items():
        if name == "job_stage":
            stage = version.says["job_stage"]
            if "incomplete" in (stage, wanted):
                if stage != wanted:
                    return False
            elif ORDER.index(stage) < ORDER.index(wanted):
                return False
        elif name in ("milestone", "milestones"):
            if not set([wanted] if isinstance(wanted, str) else wanted) <= set(version.milestones):
                return False
        elif version.says.get(name) is None or version.text(name) != (
            wanted if isinstance(wanted, str) else json.dumps(wanted)
        ):
            return False
    return True
