"""Simulated runs: each action of the plan happens once Vigil has processed the previous one.

Processes crash meanwhile, and records arrive twice, late and in another order; the result of the run shows none of it.
A job that ends as soon as it starts (a join, or a job whose condition cannot be evaluated) counts as an action too,
because otherwise it would have no order among the events of that moment.

The runs of run_interleavings.py cover what depends on the order of processing: which of the jobs that are ready at one
moment get the slots of `max_concurrency`, races whose join has a condition, races in which a job may end at the moment
at which it loses, and pauses by hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from tests.model.engine_simulator import SimulatedRun
from tests.model.run_plans import Generation, Plan, PlannedAction, nth
from tests.model.run_reference import BAD, Reference
from tests.support.world import KEY, NAMESPACE
from vigil_core.domain.errors import InvalidTransition
from vigil_core.domain.exact_json import loads
from vigil_core.domain.jobs.job import Job
from vigil_core.services.background import sweeper as sweep
from vigil_core.services.jobs import transitions as change_job
from vigil_core.services.workflows import commands as runs
from vigil_core.store.stream import StreamRecord

DueAction: TypeAlias = tuple[datetime, str, Callable[[], Any]]


class PendingDecision(NamedTuple):
    """An operator's decision about a failure: its time, the state version of the job, and the action."""

    at: datetime
    moment: int
    action: Any


class PlannedSimulation(SimulatedRun):
    """A simulated run with its plan."""

    def __init__(self, plan: Plan) -> None:
        self.visible_records: set[str] = set()
        super().__init__(plan)
        self.world.ctx.job_queues.set_paused(NAMESPACE, "joins", True)
        self.decided = Counter[str]()
        self.work_in_progress: dict[str, tuple[datetime, Job]] = {}
        """The work of the workers by job name, and the times at which it ends."""
        self.pending_decisions: dict[str, PendingDecision] = {}
        """The pending decisions by job name."""

    def run_generation(self, life: Generation) -> None:
        """Run until the end."""
        acts = [(self.world.time + timedelta(milliseconds=act.at), act) for act in life.acts]
        for _ in range(2_000):
            self.run_until_idle()
            if self.run.ended:
                self._finish_losers()
                return
            self._claim_ready_jobs()
            self._schedule_decisions()
            todo: list[DueAction] = [(at, "", partial(self._act, act, acts)) for at, act in acts]
            todo += self._due()
            assert todo, f"the run hangs: {self.run}; {self.world.statuses(self.run_id)}"
            self.world.time, _, do = min(todo, key=lambda what: what[:2])
            if self.chance.random() < 0.05:
                self.disturb_supervisor()
            do()
        raise AssertionError(f"there is no end to it: {self.world.statuses(self.run_id)}")

    def _finish_losers(self) -> None:
        """Let the losers of races stop, which the run does not wait for."""
        while any(not job.ended for job in self.all().values()):
            todo = self._due()
            assert todo, f"the run has ended, but its jobs have not: {self.world.statuses(self.run_id)}"
            self.world.time, _, do = min(todo, key=lambda what: what[:2])
            do()
            self.run_until_idle()

    def records(self) -> list[StreamRecord]:
        """Return the events, without those of jobs whose condition could not be evaluated, before their turn."""
        return [
            each for each in super().records() if each.sequence_number in self.visible_records or not _is_broken(each)
        ]

    # Result

    def check(self, told: Reference) -> None:
        """Require that everything is as the reference predicts."""
        run, standings = self.run, self.world.run_state(self.run_id)
        wrong: dict[str, Any] = {}
        for name, job in self.all().items():
            place, its = standings.graph.index_of[name], told.jobs[name]
            text = self.world.ctx.jobs.payloads(job, payload=False).result
            result = None if text is None else loads(text)
            if its.end == standings.end_state(place) == "skipped":
                # Either reason is correct for a job that is skipped at the moment at which it loses a race.
                its.status, its.lost = job.status, standings.lost_race(place)
            health = {"completed": "fallback" if its.fallback and its.result == its.fallback else "success"}
            found = job.status, standings.end_state(place), standings.lost_race(place), job.attempt, result, job.health
            expected = its.status, its.end, its.lost, its.attempt, its.result, health.get(its.status, its.status)
            if found != expected:
                wrong[name] = found, expected
        assert not wrong, f"(as it is, as it should be): {wrong}"
        assert (run.status, run.error.code if run.error else None) == told.outcome()
        if run.error is not None and run.error.code == "JOB_FAILED":
            assert told.failed(told.jobs[run.error.message.split()[1]]), f"{run.error} names none that failed"
        # A cancelled job is ignored by decision like a failed one.
        pardoned = [name for name, its in told.jobs.items() if its.status in BAD and its.end == "success"]
        counted = Counter(
            "failed" if name in pardoned else "cancelled" if its.lost else its.status for name, its in told.jobs.items()
        )
        assert {status: count for status, count in (run.statistics or {}).items() if count} == counted

    # Actions

    def _claim_ready_jobs(self) -> None:
        """Grant every ready job to a worker."""
        while any(job.status == "pending" and not self.jobs[name].join for name, job in self.all().items()):
            granted = self.claim(10)
            assert self.run.accepts_starts or not granted, f"{[job.name for job in granted]} begin in {self.run}"
            for job in granted:
                ends_at = self.world.time + timedelta(milliseconds=self.planned_attempt(job).lasts)
                self.work_in_progress[str(job.name)] = ends_at, job
            if not granted:
                break

    def _schedule_decisions(self) -> None:
        """Start a decision about each failure."""
        undecided = self.undecided()
        self.pending_decisions = {
            name: asked for name, asked in self.pending_decisions.items() if undecided.get(name) == asked.moment
        }
        for name in undecided.keys() - self.pending_decisions.keys():
            after, action = nth(self.jobs[name].decisions, self.decided[name])
            self.decided[name] += 1
            at = self.world.time + timedelta(milliseconds=after)
            self.pending_decisions[name] = PendingDecision(at, undecided[name], action)

    def _due(self) -> list[DueAction]:
        """Return the next event of each job and of the run."""
        due: list[DueAction] = []
        for name, job in self.all().items():
            if job.status != "running":
                self.work_in_progress.pop(name, None)
            lease_ends = job.lease.expires_at if job.lease else None
            if name in self.work_in_progress and not self.planned_attempt(job).silent:
                lease_ends = None
                due.append((self.work_in_progress[name][0], name, partial(self._finish, name)))
            clock = partial(sweep.on_message, self.world.ctx, {"kind": "job", "namespace": NAMESPACE, "id": job.job_id})
            for at in (job.timer_at, job.cancel_due_at, lease_ends):
                if at is not None:
                    due.append((at, name, partial(self.retry_after_crash, clock)))
            if job.status == "pending" and self.jobs[name].join and self.run.accepts_starts:
                due.append((self.world.time, name, partial(self._dispatch, job)))
        for record in super().records():
            if record.sequence_number not in self.visible_records and _is_broken(record):
                name = record.change["NewImage"]["name"]["S"]
                due.append((self.world.time, name, partial(self.visible_records.add, record.sequence_number)))
        if not self.run.terminating:
            due += [(asked.at, name, partial(self._decide, name)) for name, asked in self.pending_decisions.items()]
        return due

    def _act(self, act: PlannedAction, acts: list[tuple[datetime, PlannedAction]]) -> None:
        acts[:] = [other for other in acts if other[1] is not act]
        ctx, run_id = self.world.ctx, self.run_id
        do: Callable[[], Any]
        match act.what:
            case "cancel":
                do = partial(self.world.do, change_job.cancel, self.job(act.name).job_id)
            case "stop":
                do = partial(runs.request_cancel, ctx, NAMESPACE, run_id, actor=KEY)
            case "deadline":
                do = partial(sweep.on_message, ctx, {"kind": "run", "namespace": NAMESPACE, "id": run_id})
        with suppress(InvalidTransition):  # The run has ended.
            self.retry_after_crash(do)

    def _decide(self, name: str) -> None:
        decide = partial(
            runs.put_decision, self.world.ctx, NAMESPACE, self.run_id, name, self.pending_decisions[name].action
        )
        self.retry_after_crash(partial(decide, decision_id=self.world.ctx.new_id(), actor=KEY, comment=None))

    def _finish(self, name: str) -> None:
        _, job = self.work_in_progress.pop(name)
        self.finish(job)

    def _dispatch(self, job: Job) -> None:
        """Take the turn of a join; its queue is not paused meanwhile."""
        self.world.ctx.job_queues.set_paused(NAMESPACE, "joins", False)
        message = {"kind": "dispatch", "namespace": NAMESPACE, "id": job.job_id}
        self.retry_after_crash(partial(sweep.on_message, self.world.ctx, message))
        self.world.ctx.job_queues.set_paused(NAMESPACE, "joins", True)


def _is_broken(record: StreamRecord) -> bool:
    image = record.change["NewImage"]
    return image["status"]["S"] == "failed" and "CONDITION_FAILED" in str(image.get("error"))
