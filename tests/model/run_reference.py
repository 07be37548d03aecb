"""The reference for runs, in virtual time, one event after another. docs/workflows.md states its rules."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.model.rules import UNAFFECTED_BY_FAILURES, decided
from tests.model.run_plans import Generation, Plan, nth

BAD = {"failed", "cancelled"}
ENDS = {"stop": ("cancelled", None), "deadline": ("failed", "TIMED_OUT"), "abort": ("failed", "ABORTED")}
NEW = {"status": "waiting", "end": None, "result": None, "lost": False, "asked": False, "next": ""}


class Reference:
    """A run. Each job has its plan and its state: `end` is its end state for successors (success, failed, cancelled or
    skipped), `next` its next event, `at` the time of that event.
    """

    def __init__(self, plan: Plan) -> None:
        self.policy, self.now = plan.policy, 0
        self.jobs = {
            job.name: SimpleNamespace(**vars(job), **NEW, per_life=job.attempts, attempt=1, tried=0, failures=0)
            for job in plan.jobs
        }
        for job in self.jobs.values():
            job.before = [self.jobs[name] for name in job.after]
            job.status, job.at, job.next = ("scheduled", job.delay, "waiting") if job.delay else ("waiting", 0, "")

    def run_generation(self, life: Generation) -> None:
        """Run until the end."""
        self.stops = set[str]()
        acts = {(self.now + act.at, "", act.what, act.name) for act in life.acts}
        while self._advance():
            due = {(job.at, job.name, job.next, job.name) for job in self.jobs.values() if job.next}
            self.now, _, what, name = act = min(acts | due)
            acts.discard(act)
            self._apply_action(what, self.jobs.get(name))
        # The losers of races stop after the end of the run. Nothing of that changes the run.
        while stopping := [job for job in self.jobs.values() if job.next]:
            loser = min(stopping, key=lambda job: (job.at, job.name))
            self.now = loser.at
            self._apply_action(loser.next, loser)

    def retry(self, start: str | None) -> bool:
        """Retry the run; return whether there is a job to rerun."""
        for job in self.jobs.values():
            job.after_start = job.name == start or any(other.after_start for other in job.before)
            bad = self.failed(job) or (job.status, job.end) == ("skipped", "failed")
            job.again = job.after_start or bad or (job.end != "success" and any(other.again for other in job.before))
        again = [job for job in self.jobs.values() if job.again]
        for job in again:
            self._apply_action("retry", job)
        return bool(again)

    def failed(self, job: Any) -> bool:
        """Return whether a job fails the run: not if it lost a race, or is in a race that was or can be won."""
        racers = [other for join in self.jobs.values() if join.race and job.name in join.after for other in join.before]
        won = any(other.end == "success" or (other.end is None and other.status not in BAD) for other in racers)
        return job.status in BAD and job.end != "success" and not job.lost and not won

    def outcome(self) -> tuple[str, str | None]:
        """Return how the run has ended, and its error."""
        said = ("failed", "JOB_FAILED") if any(map(self.failed, self.jobs.values())) else ("completed", None)
        return next((ENDS[why] for why in ENDS if why in self.stops), said)

    def _advance(self) -> bool:
        """Do everything that follows at once, and return whether anything is left:

        a waiting job is decided as soon as its rule allows it, a scheduled one skipped, a ready job starts.
        """
        while judged := [
            job
            for job in self.jobs.values()
            if (job.status == "waiting" and self._is_satisfied(job) is not None)
            or (job.status == "scheduled" and self._is_satisfied(job) is False)
        ]:
            self._apply_rule(judged[0], self._is_satisfied(judged[0]))
        paused = any(job.next in ("retry", "skip", "abort") for job in self.jobs.values())
        for job in [job for job in self.jobs.values() if job.status == "ready"]:
            if job.join:  # It ends as soon as it starts.
                job.at, job.next = self.now, "" if paused else "tried"
            elif not paused:
                job.status, job.at, job.next = "running", self.now + nth(job.tries, job.tried).lasts, "tried"
                job.tried += 1
        return any(job.end is None for job in self.jobs.values())

    def _is_satisfied(self, job: Any) -> bool | None:
        return decided(job.rule, [other.end for other in job.before if other.end], len(job.before))

    def _apply_rule(self, job: Any, held: bool | None) -> None:
        if held and job.condition == "broken":
            job.status, job.at, job.next = "failed", self.now, "failed"
        elif not held or job.condition == "false" or (job.wants and job.before[0].result != job.wants):
            bad = any(other.end in BAD for other in job.before) and job.rule not in UNAFFECTED_BY_FAILURES
            job.status, job.end, job.next = "skipped", "failed" if bad and not held else "skipped", ""
        else:
            job.status = "ready"
            for other in [other for other in job.before if job.race and other.end is None]:
                other.lost = True
                self._apply_action("cancel", other)
                other.end = "skipped"

    def _apply_action(self, what: str, job: Any) -> None:
        """Apply an action to a job or to the run."""
        match what:
            case "waiting" | "ready":
                job.status, job.next = what, ""
            case "tried":
                self._end_attempt(job, nth(job.tries, job.tried - 1))
            case "failed" | "cancelled":
                self._end(job, what)
            case "cancel" if job.status == "running":
                job.asked, (job.at, job.next) = True, min((job.at, job.next), (self.now + 60_000, "cancelled"))
            case "cancel" if job.end is None and job.status not in BAD:
                self._end(job, "cancelled")
            case "retry":
                vars(job).update(NEW, attempt=job.attempt + 1, attempts=job.attempt + job.per_life)
            case "skip":
                job.end, job.next = "success", ""
            case "stop" | "deadline" | "abort" | "failure":
                self.stops.add(what)
                for job in self.jobs.values():
                    if job.status in BAD and job.end is None:
                        job.end, job.next = job.status, ""
                    self._apply_action("cancel", job)

    def _end_attempt(self, job: Any, its: Any) -> None:
        if job.join:
            won = [other.result for other in job.before if other.status == "completed"]
            joined = {other.name: other.result for other in job.before}
            self._end(job, "completed", joined if job.rule != "one_success" else nth(won, 0))
        elif its.result is not None:
            self._end(job, "completed", its.result)
        elif not job.asked and job.attempt < job.attempts:
            job.attempt += 1
            job.status, job.at, job.next = "resting", self.now + (0 if its.silent else job.rest), "ready"
        elif not job.asked and job.fallback is not None:
            self._end(job, "completed", job.fallback)
        else:
            self._end(job, "cancelled" if job.asked else "failed")

    def _end(self, job: Any, status: str, result: Any = None) -> None:
        job.status, job.result, job.next = status, result, ""
        job.end = "skipped" if job.lost else "success" if status == "completed" else status
        if not self.stops and self.failed(job):
            if self.policy == "fail_fast":
                self._apply_action("failure", job)
            elif self.policy == "manual":
                after, job.next = nth(job.decisions, job.failures)
                job.end, job.at, job.failures = None, self.now + after, job.failures + 1
