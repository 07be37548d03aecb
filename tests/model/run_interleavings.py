"""Runs that receive requests while earlier ones are still being processed.

The result of such a run depends on the order in which Vigil processes them. The run satisfies these invariants in any
order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from tests.model.engine_simulator import SimulatedRun
from tests.model.rules import UNAFFECTED_BY_FAILURES, decided
from tests.model.run_plans import Plan, PlannedJob
from tests.model.run_reference import BAD, Reference
from tests.support.world import KEY, NAMESPACE
from vigil_core.domain.errors import InvalidTransition
from vigil_core.domain.exact_json import loads
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.status import TERMINAL
from vigil_core.domain.workflows import graph as graphs
from vigil_core.domain.workflows.run import MAX_LOG_ENTRIES, TERMINAL_STATUSES
from vigil_core.domain.workflows.run_state import RunState, record_of
from vigil_core.services.background import sweeper as sweep
from vigil_core.services.background.sweep import SweepFailed
from vigil_core.services.jobs import transitions as change_job
from vigil_core.services.workflows import commands as runs


class InterleavedRun(SimulatedRun):
    """A run that never comes to rest before its end."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.world.table.on_change = self._observe
        self.violations: list[str] = []
        self.work_in_progress: dict[str, Job] = {}
        self.decided: dict[tuple[str, int], str] = {}
        self.by_hand: set[str] = set()
        """The jobs with a cancel by hand since the run started."""
        self.ignored_failures: set[str] = set()
        self.before: dict[str, int] = {}
        """The attempt of each job when the run was retried."""

    def run_actions(self, acts: int) -> None:
        """Send requests, then process all work until the run has ended."""
        for _ in range(acts):
            for _ in range(self.chance.randint(0, 4)):
                self.step()
            if self.run.ended:
                break
            self._act()
            assert not self.violations, str(self.violations)
        for _ in range(60 + 4 * len(self.jobs)):
            self.run_until_idle()
            assert not self.violations, str(self.violations)
            if self.run.ended and all(job.ended for job in self.all().values()):
                return
            self._decide(kindly=True)
            self.run_until_idle()
            self._resume()
            self.run_until_idle()
            for name in sorted(self.work_in_progress):
                self._finish(name)
                self.step()
            if not self._claim(10):
                self._time_passes(61)
        raise AssertionError(f"the run hangs: {self.run}; {self.world.statuses(self.run_id)}")

    def retry(self, start: str | None) -> bool:
        """Retry the run; return whether there was a job to rerun."""
        before = {name: job.attempt for name, job in self.all().items()}
        if not super().retry(start):
            return False
        self.before, self.work_in_progress = before, {}
        self.by_hand.clear()
        return True

    def check(self) -> None:
        """Check the invariants of an ended run."""
        run, standings = self.run, self.world.run_state(self.run_id)
        seen = {name: job.status for name, job in self.all().items()}
        assert set(seen.values()) <= TERMINAL, f"open jobs in a run that is {run.status}: {seen}"
        # A cancelled job is ignored by decision like a failed one.
        pardoned = {name for name in seen if standings.state_of(standings.graph.index_of[name]) == "ignored_failure"}
        counted = {status: count for status, count in (run.statistics or {}).items() if count}
        lost = {name for name in seen if standings.lost_race(standings.graph.index_of[name])}
        assert counted == Counter(
            "failed" if name in pardoned else "cancelled" if name in lost else status for name, status in seen.items()
        )
        if len(run.log) < MAX_LOG_ENTRIES:
            assert sum(line.kind in TERMINAL_STATUSES for line in run.log) == run.generation, "it ends once"
        for name, job in self.all().items():
            place = standings.graph.index_of[name]
            if name in lost:  # The run does not record what a race loser reports after the end of the run.
                continue
            note = standings.block(graphs.block_of(place)).records[place]
            assert note.state_version // 2 == job.version, f"the note on {name} is of another moment"
            if note.state != "ignored_failure":
                assert note.state == record_of(job).state, f"{name} is {job.status}, noted as {note.state}"
        problems = self._violations(seen, standings)
        assert not problems, str(problems)

    # Requests

    def _act(self) -> None:
        acts: list[tuple[int, Callable[[], Any]]] = [
            (80, partial(self._claim, self.chance.randint(1, 3))), (80, self._finish), (20, self._time_passes),
            (10, self._cancel), (10, self._pause), (20, self._resume), (30, self._decide), (1, self._stop),
            (10, self.disturb_supervisor),
        ]  # fmt: skip
        self.chance.choices([act for _, act in acts], [weight for weight, _ in acts])[0]()

    def _claim(self, most: int) -> bool:
        run = self.run
        granted = self.claim(most)
        if granted and not run.accepts_starts:
            self.violations.append(f"{[job.name for job in granted]} begin in a run that is {run}")
        self.work_in_progress |= {str(job.name): job for job in granted if not self.planned_attempt(job).silent}
        return bool(granted)

    def _finish(self, name: str | None = None) -> None:
        if self.work_in_progress:
            name = name or self.chance.choice(sorted(self.work_in_progress))
            job = self.work_in_progress.pop(name)
            with suppress(*change_job.LOST_JOB_ERRORS):
                self.finish(job)

    def _time_passes(self, seconds: float | None = None) -> None:
        self.world.pass_time(seconds or self.chance.choice([1, 20, 61]))
        messages, self.world.queues.sweeper_messages = self.world.queues.sweeper_messages, []
        for message, delay in messages:
            if delay <= 61:
                self.with_crashes(partial(sweep.on_message, self.world.ctx, loads(message)))
        with suppress(SweepFailed):
            self.with_crashes(self.world.sweep)
        self.world.pass_time(56)  # The sweep lease of a crashed sweep has expired by then.

    def _cancel(self) -> None:
        name = self.chance.choice(sorted(self.jobs))
        if name in self.all() and self.chance.random() < 0.3:
            with suppress(InvalidTransition):
                self.world.do(change_job.cancel, self.job(name).job_id)
                self.by_hand.add(name)

    def _stop(self) -> None:
        with suppress(InvalidTransition):
            runs.request_cancel(self.world.ctx, NAMESPACE, self.run_id, actor=KEY)

    def _pause(self) -> None:
        with suppress(InvalidTransition):
            runs.pause(self.world.ctx, NAMESPACE, self.run_id, actor=KEY)

    def _resume(self) -> None:
        with suppress(InvalidTransition):
            runs.resume(self.world.ctx, NAMESPACE, self.run_id, actor=KEY)

    def _decide(self, *, kindly: bool = False) -> None:
        for name, moment in self.undecided().items():
            if (name, moment) in self.decided:
                continue
            action: Any = self.chance.choices(["retry", "skip", "abort"], [6, 8, 0 if kindly else 1])[0]
            ctx = self.world.ctx
            decide = partial(runs.put_decision, ctx, NAMESPACE, self.run_id, name, action)
            decide = partial(decide, decision_id=ctx.new_id(), actor=KEY, comment=None)
            with suppress(InvalidTransition):
                self.retry_after_crash(decide)
                self.decided[name, moment] = action
                self.ignored_failures |= {name} if action == "skip" else set()
                if not kindly:
                    return

    # Invariants

    def _observe(self, job: Job) -> None:
        """Record a stored version of a job."""
        its = self.jobs[str(job.name)]
        others = self.all()
        if job.status == "running" and job.log[-1].kind == "claimed" and self.plan.policy != "manual":
            ends = {name: _end_of(others[name]) for name in its.after if others[name].status in TERMINAL}
            if not any(each.race for each in self.plan.jobs) and _verdict(its, ends) is not True:
                self.violations.append(f"{its.name} begins, and before it are {ends}")
        busy = [name for name, other in others.items() if other.status in ("pending", "running")]
        if self.plan.most is not None and len(busy) > self.plan.most:
            self.violations.append(f"{busy} at once, of {self.plan.most}")

    def _violations(self, seen: Mapping[str, str], standings: RunState) -> list[str]:
        """Return the violations that no order of processing explains."""
        run, jobs = self.run, self.all()
        lost = {name for name in seen if standings.lost_race(standings.graph.index_of[name])}
        kept = {name for name, job in jobs.items() if job.attempt == self.before.get(name)}
        told = Reference(self.plan)
        for name, its in told.jobs.items():
            its.status, its.end, its.lost = seen[name], _end_of(jobs[name]), name in lost
            if its.lost:
                its.end = "skipped"
            elif name in self.ignored_failures and its.status in BAD:
                its.end = "success"
        failed = [name for name, its in told.jobs.items() if told.failed(its)]
        told.stops = {why for why, there in (
            ("stop", run.cancel_requested_by), ("deadline", run.deadline_passed), ("abort", run.aborted),
        ) if there}  # fmt: skip
        stopped = bool(told.stops) or (self.plan.policy == "fail_fast" and bool(failed))
        ends = {
            name: its.end
            for name, its in told.jobs.items()
            if seen[name] != "cancelled" or name in lost | self.by_hand | kept or not stopped
        }
        # A job that is due to be skipped may be cancelled first, after its successors were skipped with it.
        while doomed := [name for name in jobs.keys() - ends if _verdict(self.jobs[name], ends) is False]:
            for name in doomed:
                bad = BAD & {ends.get(other) for other in self.jobs[name].after}
                ends[name] = "failed" if bad and self.jobs[name].rule not in UNAFFECTED_BY_FAILURES else "skipped"
        wrong: list[str] = []
        # A racer's failure counts at once for its successors, and may still be ignored when the race cannot be won.
        turned = bool(self.ignored_failures) and any(job.race for job in self.plan.jobs)
        for name, job in self.jobs.items():
            held = _verdict(job, ends)
            # A job that was due to be skipped may have lost a race first, after its successors were decided.
            told_otherwise = any(other in lost and _verdict(self.jobs[other], ends) is False for other in job.after)
            if name in kept or turned or told_otherwise:
                continue
            if seen[name] in ("completed", "failed") and held is not True:
                wrong.append(f"{name} is {seen[name]}, though its rule does not hold")
            if seen[name] == "skipped" and held is not False and job.condition is None and job.wants is None:
                wrong.append(f"{name} is skipped, though its rule may hold")
            if seen[name] == "cancelled" and name not in lost | self.by_hand and not stopped:
                wrong.append(f"{name} is cancelled, and nobody knows why")
            if name in lost and not any(other.race and name in other.after for other in self.plan.jobs):
                wrong.append(f"{name} has lost no race")
        ended = run.status, run.error.code if run.error else None
        if ended != told.outcome():
            wrong.append(f"the run is {ended}, not {told.outcome()}, after {told.stops} and failures of {failed}")
        return wrong


def _end_of(job: Job) -> str:
    if job.status == "skipped":
        return "failed" if job.dependencies.verdict and job.dependencies.verdict.through_failure else "skipped"
    return "success" if job.status == "completed" else job.status


def _verdict(job: PlannedJob, ends: Mapping[str, str]) -> bool | None:
    return decided(job.rule, [ends[name] for name in job.after if name in ends], len(job.after))
