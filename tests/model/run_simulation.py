"""Lives of runs: what a plan says is done to them, each thing once Vigil has come to rest after the one before.

Who may die while it comes to rest does; things are heard of twice, late and in another order. None of that shows in
what becomes of the run. A job that completes or fails by itself as soon as it starts (a join, or one whose condition
cannot be evaluated) is one of these things, too: else it would have no order among what happens at that moment.

Left to the runs of run_interleavings.py is what cannot be told exactly, because it matters what Vigil hears of first:
which of the jobs that are ready at one moment get the places of `max_concurrency`, and races whose join has a condition
or in which somebody may end by himself at the moment when he loses. So are pauses by hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from tests.model.engine_simulator import RestlessRun
from tests.model.run_plans import Act, Life, Plan, nth
from tests.model.run_reference import BAD, Reference
from tests.support.world import KEY, NAMESPACE
from vigil_core.domain.errors import InvalidTransition
from vigil_core.domain.exact_json import loads
from vigil_core.domain.jobs.job import Job
from vigil_core.services.background import sweeper as sweep
from vigil_core.services.jobs import transitions as change_job
from vigil_core.services.workflows import commands as runs
from vigil_core.store.stream import StreamRecord

What: TypeAlias = tuple[datetime, str, Callable[[], Any]]


class Asked(NamedTuple):
    """An operator who decides about a failure: when, about which moment of a job's life, and what."""

    at: datetime
    moment: int
    action: Any


class RunLife(RestlessRun):
    """The life of a run as it is planned."""

    def __init__(self, plan: Plan) -> None:
        self.heard: set[str] = set()
        super().__init__(plan)
        self.world.ctx.job_queues.set_paused(NAMESPACE, "joins", True)
        self.decided = Counter[str]()
        self.hands: dict[str, tuple[datetime, Job]] = {}
        """What workers do, by name, and when they will be done."""
        self.asked: dict[str, Asked] = {}
        """What operators have been asked, by name."""

    def live(self, life: Life) -> None:
        """Until the run has ended."""
        acts = [(self.world.time + timedelta(milliseconds=act.at), act) for act in life.acts]
        for _ in range(2_000):
            self.quiet()
            if self.run.ended:
                return
            self._hand_out()
            self._ask_operators()
            todo: list[What] = [(at, "", partial(self._act, act, acts)) for at, act in acts]
            todo += self._due()
            assert todo, f"the run hangs: {self.run}; {self.world.statuses(self.run_id)}"
            self.world.time, _, do = min(todo, key=lambda what: what[:2])
            if self.chance.random() < 0.05:
                self.trouble_supervisor()
            do()
        raise AssertionError(f"there is no end to it: {self.world.statuses(self.run_id)}")

    def records(self) -> list[StreamRecord]:
        """Not those of jobs whose condition could not be evaluated, before their turn."""
        return [each for each in super().records() if each.sequence_number in self.heard or not _is_broken(each)]

    # What has become of it

    def check(self, told: Reference) -> None:
        """All is as the reference says."""
        run, standings = self.run, self.world.standings(self.run_id)
        wrong: dict[str, Any] = {}
        for name, job in self.all().items():
            place, its = standings.graph.index_of[name], told.jobs[name]
            text = self.world.ctx.jobs.payloads(job, payload=False).result
            result = None if text is None else loads(text)
            if its.end == standings.end_state(place) == "skipped":
                # Of who is skipped at the moment when he loses a race, either may be told.
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
        # One that was cancelled is pardoned as though it had failed.
        pardoned = [name for name, its in told.jobs.items() if its.status in BAD and its.end == "success"]
        counted = Counter("failed" if name in pardoned else its.status for name, its in told.jobs.items())
        assert {status: count for status, count in (run.statistics or {}).items() if count} == counted

    # What is done

    def _hand_out(self) -> None:
        """Whoever is ready is handed to a worker."""
        while any(job.status == "pending" and not self.jobs[name].join for name, job in self.all().items()):
            granted = self.claim(10)
            assert self.run.accepts_starts or not granted, f"{[job.name for job in granted]} begin in {self.run}"
            for job in granted:
                ends_at = self.world.time + timedelta(milliseconds=self.trying(job).lasts)
                self.hands[str(job.name)] = ends_at, job
            if not granted:
                break

    def _ask_operators(self) -> None:
        """They take their time to decide about each failure."""
        undecided = self.undecided()
        self.asked = {name: asked for name, asked in self.asked.items() if undecided.get(name) == asked.moment}
        for name in undecided.keys() - self.asked.keys():
            after, action = nth(self.jobs[name].decisions, self.decided[name])
            self.decided[name] += 1
            at = self.world.time + timedelta(milliseconds=after)
            self.asked[name] = Asked(at, undecided[name], action)

    def _due(self) -> list[What]:
        """What is to come next of each job, and of the run."""
        due: list[What] = []
        for name, job in self.all().items():
            if job.status != "running":
                self.hands.pop(name, None)
            lease_ends = job.lease.expires_at if job.lease else None
            if name in self.hands and not self.trying(job).silent:
                lease_ends = None
                due.append((self.hands[name][0], name, partial(self._finish, name)))
            clock = partial(sweep.on_message, self.world.ctx, {"kind": "job", "namespace": NAMESPACE, "id": job.job_id})
            for at in (job.timer_at, job.cancel_due_at, lease_ends):
                if at is not None:
                    due.append((at, name, partial(self.surely, clock)))
            if job.status == "pending" and self.jobs[name].join and self.run.accepts_starts:
                due.append((self.world.time, name, partial(self._dispatch, job)))
        for record in super().records():
            if record.sequence_number not in self.heard and _is_broken(record):
                name = record.change["NewImage"]["name"]["S"]
                due.append((self.world.time, name, partial(self.heard.add, record.sequence_number)))
        if not self.run.terminating:
            due += [(asked.at, name, partial(self._decide, name)) for name, asked in self.asked.items()]
        return due

    def _act(self, act: Act, acts: list[tuple[datetime, Act]]) -> None:
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
        with suppress(InvalidTransition):  # It has ended.
            self.surely(do)

    def _decide(self, name: str) -> None:
        decide = partial(runs.put_decision, self.world.ctx, NAMESPACE, self.run_id, name, self.asked[name].action)
        self.surely(partial(decide, actor=KEY, comment=None))

    def _finish(self, name: str) -> None:
        _, job = self.hands.pop(name)
        self.finish(job)

    def _dispatch(self, job: Job) -> None:
        """A join's turn: for as long as that takes, its queue is not paused."""
        self.world.ctx.job_queues.set_paused(NAMESPACE, "joins", False)
        message = {"kind": "dispatch", "namespace": NAMESPACE, "id": job.job_id}
        self.surely(partial(sweep.on_message, self.world.ctx, message))
        self.world.ctx.job_queues.set_paused(NAMESPACE, "joins", True)


def _is_broken(record: StreamRecord) -> bool:
    image = record.change["NewImage"]
    return image["status"]["S"] == "failed" and "CONDITION_FAILED" in str(image.get("error"))
