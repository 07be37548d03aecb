"""Lives of runs on moto: workers, operators, the stream, the pager, supervisors and the clock, any of whom may die
between two writes, hear of things twice, late and in another order. What the outer world did is kept for the reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any
from uuid import UUID

from tests.model.moto_table import empty_table
from tests.model.run_reference import Event, Planned, Reference, unjustified, verdict
from tests.support.runs import RunWorld
from tests.support.state_machine import Execution
from tests.support.world import KEY, NAMESPACE
from vigil_core.api.workflow_wire import run_of_body
from vigil_core.domain import graphs
from vigil_core.domain.errors import InvalidTransition
from vigil_core.domain.jobs import Job, JobError
from vigil_core.domain.jsontext import loads
from vigil_core.domain.standings import Standings, note_of
from vigil_core.services import change_job, create_run, look_after_run, run_clock, runs, supervise
from vigil_core.services.claim_jobs import Claim, claim_jobs
from vigil_core.services.do_wide_work import do_wide_work
from vigil_core.services.match import match_records
from vigil_core.services.run_clock import SweepFailed
from vigil_core.store.stream import StreamRecord

LONG_S = 1_000_000
SHORT_S = 40
DELAY_S = 30
EXPRESSIONS = {"true": "`true`", "false": "`false`", "broken": "abs('x')"}
TERMINAL = {"completed", "failed", "cancelled", "skipped"}
CALM = 0.0
RESTLESS = 0.08


class Died(BaseException):
    """Whoever was at work is no more: nobody catches that."""


class MortalTable:
    """The table, for a process that dies before or after one of its writes."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self.writes_left: int | None = None
        self.dies_after = False

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._table, name)
        if name not in {"put", "update", "delete", "batch_write", "transact"}:
            return call

        def mortal(*args: Any, **kwargs: Any) -> Any:
            last = self.writes_left == 0
            if last and not self.dies_after:
                raise Died
            done = call(*args, **kwargs)
            if last:
                raise Died
            if self.writes_left is not None:
                self.writes_left -= 1
            return done

        return mortal


class RunLife:
    """One run and all that happens to it. `orderly`: everybody has heard of everything before the next thing is done;
    they may still die and hear of it twice."""

    def __init__(self, chance: Random, jobs: list[Planned], *, orderly: bool, **rest: Any) -> None:
        self.chance, self.orderly = chance, orderly
        self.jobs = {job.name: job for job in jobs}
        self.table = MortalTable(empty_table())
        self.world = RunWorld(self.table)  # type: ignore[arg-type]
        # The same seed is the same life: jobs of one age are handed out in the order of their ids.
        self.world.ctx = replace(self.world.ctx, new_id=self._new_id, chance=chance.random)
        self.policy: str = rest["failure_policy"]
        self.most: int | None = rest.get("max_concurrency")
        self.events: list[Event] = []
        self.hands: dict[str, Job] = {}
        """What workers have in hand, by name."""
        self.patient: set[str] = set()
        """The leases that are not to lapse."""
        self.ran: Counter[str] = Counter()
        self.now: dict[str, Job] = {}
        """Each job as its row has it."""
        self.decided: dict[tuple[str, int], str] = {}
        self.pardoned: set[str] = set()
        self.kept: set[str] = set()
        self.late: list[list[StreamRecord]] = []
        self.mourned: list[tuple[Execution, str]] = []
        self.deaths = 0
        self.stale = True
        self.asked = 0
        wake = self.world.machine.wake
        self.world.machine.wake = lambda token: None if self._chaos(0.05) else wake(token)  # type: ignore[method-assign]
        self.run_id = self._create(rest)
        self.look()

    # What the outer world does

    def act(self) -> None:
        acts: list[tuple[int, Callable[[], None]]] = [
            (8, self.claim), (8, self.finish), (2, self.time_passes), (1, self.cancel_job), (1, self.pause),
            (2, self.resume), (3, self.decide), (1, self.trouble_supervisor),
        ]  # fmt: skip
        if self.chance.random() < 0.01:
            self.cancel_run()
        else:
            self.chance.choices([act for _, act in acts], [weight for weight, _ in acts])[0]()
        self.look()

    def claim(self, most: int | None = None) -> None:
        self.asked += 1
        wanted = Claim(
            queue="default",
            worker="w",
            most=most or self.chance.randint(1, 3),
            lease_s=SHORT_S,
            claim_id=f"c{self.asked}",
        )
        run = self.world.found(self.run_id)

        def ask() -> list[Job]:
            return claim_jobs(self.world.ctx, NAMESPACE, wanted, by=KEY, until=self.world.time)

        granted = self._surely(ask)
        self.look()
        for job in granted:
            name = str(job.name)
            assert run.status == "running", f"{name} begins though the run is {run.status}"
            assert not run.stopping, f"{name} begins though the run is being ended"
            assert job.lease is not None
            if self._outcome(name) is not None or self.chance.random() < 0.7:
                token = job.lease.token
                change_job.heartbeat(self.world.ctx, NAMESPACE, job.job_id, lease_token=token, length_s=LONG_S)
                self.patient.add(token)
            self.hands[name] = job
            self.events.append(("claimed", name))

    def finish(self) -> None:
        if patient := [name for name in sorted(self.hands) if self._is_patient(name)]:
            self._finish(self.chance.choice(patient))

    def _finish(self, name: str) -> None:
        job = self.hands.pop(name)
        assert job.lease is not None
        token, number = job.lease.token, self._outcome(name)
        asked = self._stored(name).cancel_requested_at is not None

        def report() -> Job:
            if number is not None:
                result = {"n": number}
                return self.world.do(change_job.complete, job.job_id, result=result, lease_token=token)
            return self.world.do(change_job.fail, job.job_id, JobError(code="BROKEN", message="m"), lease_token=token)

        self.ran[name] += 1
        self.events.append(("ran", name, "asked" if asked else ""))
        self._surely(report)

    def cancel_job(self) -> None:
        name = self.chance.choice(sorted(self.jobs))
        if self.chance.random() < 0.3:
            with suppress(InvalidTransition):
                if self.world.do(change_job.cancel, self._stored(name).job_id).status == "cancelled":
                    self.events.append(("cancelled", name))

    def cancel_run(self) -> None:
        with suppress(InvalidTransition):
            runs.request_cancel(self.world.ctx, NAMESPACE, self.run_id, by=KEY)
            self._note_stops()

    def pause(self) -> None:
        with suppress(InvalidTransition):
            runs.pause(self.world.ctx, NAMESPACE, self.run_id, by=KEY)

    def resume(self) -> None:
        with suppress(InvalidTransition):
            runs.resume(self.world.ctx, NAMESPACE, self.run_id, by=KEY)

    def decide(self, *, kindly: bool = False) -> None:
        if self.policy != "manual":
            return
        standings = self.world.standings(self.run_id)
        for name in self.jobs:
            place = standings.graph.place_of[name]
            note = standings.chunk(graphs.chunk_of(place)).notes.get(place)
            if note is None or note.standing != "undecided" or (name, note.moment) in self.decided:
                continue
            action = self.chance.choices(["retry", "skip", "abort"], [6, 8, 0 if kindly else 1])[0]

            def say(name: str = name, action: Any = action) -> Any:
                with suppress(InvalidTransition):
                    return runs.put_decision(self.world.ctx, NAMESPACE, self.run_id, name, action, by=KEY, note=None)

            if self._surely(say) is not None:
                self.decided[name, note.moment] = action
                self.events.append(("decided", name, action))
                self.pardoned |= {name} if action == "skip" else set()
                if not kindly:
                    return

    def trouble_supervisor(self) -> None:
        """It is stopped by hand, dies, or waits for too long."""
        at_work = [each for each in self.world.machine.executions.values() if each.status == "RUNNING"]
        if not at_work:
            return
        execution, what = at_work[-1], self.chance.random()
        if what < 0.5 and execution.token is not None:
            self.world.machine.time_out(execution)
        elif what < 0.7:
            status = "ABORTED" if self.chance.random() < 0.1 else self.chance.choice(["FAILED", "TIMED_OUT"])
            self.world.machine.stop(execution.name, status)
            if self.chance.random() < 0.7:
                self.mourned.append((execution, status))

    def time_passes(self, seconds: float | None = None) -> None:
        self.world.pass_time(seconds or self.chance.choice([1, 20, 61]))
        before = len(self.events)
        messages, self.world.queues.wake_ups = self.world.queues.wake_ups, []
        for message, delay in messages:
            if delay <= 61:
                self._mortally(partial(run_clock.on_message, self.world.ctx, loads(message)))
        with suppress(SweepFailed):
            self._mortally(self.world.sweep)
        self.world.pass_time(56)  # The lock of a sweep that died is free by then.
        self.look()
        if len(self.events) > before + 1:
            self.orderly = False  # In which order that is heard of is anybody's guess.

    def retry(self) -> bool:
        """Once it has ended; whether there was anything to retry."""
        start = self.chance.choice([None, None, self.chance.choice(sorted(self.jobs))])
        generation = self.world.found(self.run_id).generation
        self.quiet(CALM)
        if not self.world.found(self.run_id).ended:
            return False

        def again() -> None:
            run = self.world.found(self.run_id)
            if run.generation == generation:
                run = runs.retry(self.world.ctx, NAMESPACE, self.run_id, start=start, by=KEY)
            create_run.prepare(self.world.ctx, run)

        try:
            self._mortally(again)
        except InvalidTransition:
            assert start is None
            return False
        run = self.world.found(self.run_id)
        if run.generation == generation:
            return False
        self.events.append(("retried", start or ""))
        self.hands.clear()
        names = list(self.jobs)
        assert run.again is None or run.again
        if not run.sealed:
            self.world.pass_time(61)
            self._surely(lambda: create_run.prepare(self.world.ctx, run))
        self.look()
        self.kept = {name for name in names if self.now[name].status in TERMINAL}
        return True

    # What Vigil does by itself

    def go_on(self, restless: float) -> None:
        """One thing that is to be done, whichever: a step of a supervisor, some records, a message."""
        machine, ctx = self.world.machine, self.world.ctx
        todo: list[Callable[[], Any]] = []
        if ready := machine.ready():
            todo.append(lambda: self._mortally(lambda: machine.step(self.chance.choice(ready)), restless))
        if self.world.table.records:
            todo.append(lambda: self._carry(restless))
        if self.world.queues.wide:
            todo.append(lambda: self._page(restless))
        if self.mourned:
            execution, status = self.mourned[-1]

            def mourn() -> None:
                self.mourned.pop()
                supervise.mourn(ctx, execution.data, status)

            todo.append(lambda: self._mortally(mourn, restless))
        if self.late and self.chance.random() < restless:
            batch = self.late.pop(self.chance.randrange(len(self.late)))
            todo.append(lambda: self._match(batch, restless))
        if todo:
            self.chance.choice(todo)()

    def busy(self) -> bool:
        return bool(self.world.machine.ready() or self.world.table.records or self.world.queues.wide or self.mourned)

    def quiet(self, restless: float = RESTLESS) -> None:
        """Until there is nothing to be done."""
        steps = 0
        while self.busy():
            steps += 1
            assert steps < 2_000, "there is no end to it"
            self.go_on(restless)
            self.look()

    def _carry(self, restless: float) -> None:
        """Some of what the stream tells: records of one row in their order, others in any."""
        by_row: dict[Any, list[StreamRecord]] = {}
        for record in self.world.table.records:
            by_row.setdefault(record.key, []).append(record)
        rows = [row[: self.chance.randint(1, len(row))] for row in by_row.values()]
        self.chance.shuffle(rows)
        rows = rows[: self.chance.randint(1, len(rows))]
        order = [number for number, row in enumerate(rows) for _ in row]
        self.chance.shuffle(order)
        batch = [rows[number].pop(0) for number in order]
        if self._match(batch, restless):
            carried = {record.sequence_number for record in batch}
            left = [record for record in self.world.table.records if record.sequence_number not in carried]
            self.world.table.records[:] = left
            if self.chance.random() < 2 * restless:
                self.late.append(batch)

    def _match(self, batch: list[StreamRecord], restless: float) -> bool:
        failed = self._mortally(lambda: match_records(self.world.ctx, batch), restless)
        if failed:
            raise next(iter(failed.values()))
        return failed is not None

    def _page(self, restless: float) -> None:
        wide = self.world.queues.wide
        message = wide[self.chance.randrange(len(wide))]
        first = next(each for each in wide if each.group == message.group)
        ctx, body = self.world.ctx, loads(first.body)
        done = self._mortally(lambda: do_wide_work(ctx, body, still_time=lambda: True), restless)
        if done and self.chance.random() > restless:  # Else it comes again.
            wide.remove(first)

    def _mortally(self, work: Callable[[], Any], restless: float = RESTLESS) -> Any:
        """Work that may be the last of whoever does it; None then."""
        if self.chance.random() < restless:
            self.table.writes_left, self.table.dies_after = self.chance.randint(0, 3), self.chance.random() < 0.5
        try:
            return work()
        except Died:
            self.deaths += 1
            self.stale = True
            return None
        finally:
            self.table.writes_left = None

    def _surely(self, work: Callable[[], Any]) -> Any:
        """What is asked for again when whoever did it has died."""
        deaths = self.deaths
        done = self._mortally(work)
        return work() if self.deaths > deaths else done

    # The end

    def come_to_end(self) -> None:
        """Everybody does his work until the run has ended."""
        for _ in range(60 + 4 * len(self.jobs)):
            self.quiet()
            if self.world.found(self.run_id).ended:
                self.quiet()
                self.look()
                return
            self.decide(kindly=True)
            self.quiet()
            self.resume()
            self.quiet()
            for name in sorted(self.hands):
                if name in self.hands and self._is_patient(name):
                    self._finish(name)
                    self.look()
                    self.quiet() if self.orderly else self.go_on(RESTLESS)
            granted = len(self.events)
            self.claim(10)
            if len(self.events) == granted:
                self.time_passes(61)
        run = self.world.found(self.run_id)
        raise AssertionError(f"the run hangs: {run}; {self.world.statuses(self.run_id)}")

    def expected(self) -> Reference:
        through = {name: job.verdict.through_failure for name, job in self.now.items() if job.verdict is not None}
        reference = Reference(policy=self.policy, jobs=self.jobs, ambiguous=through)
        races = any(job.race for job in self.jobs.values())
        reference.exact = self.orderly or not races
        reference.replay(self.events, orderly=self.orderly)
        return reference

    def check_end(self) -> bool:
        """All is as it has to be; whether that could be told exactly."""
        self._reread()
        run, standings = self.world.found(self.run_id), self.world.standings(self.run_id)
        seen = {name: job.status for name, job in self.now.items()}
        assert set(seen.values()) <= TERMINAL, f"open jobs in a run that is {run.status}: {seen}"
        counted = {status: count for status, count in (run.statistics or {}).items() if count}
        for name in self.pardoned:  # One that was cancelled is pardoned as though it had failed.
            told_as = "failed" if standings.of(standings.graph.place_of[name]) == "pardoned" else seen[name]
            counted = dict(Counter(counted) - Counter([told_as]) + Counter([seen[name]]))
        assert counted == Counter(seen.values()), f"{counted} are told of, and there are {Counter(seen.values())}"
        self._notes_agree(standings)
        reference = self.expected()
        ended = run.status, run.error.code if run.error else None
        if reference.exact:
            wrong = {
                name: (seen[name], reference.status[name]) for name in seen if seen[name] != reference.status[name]
            }
            assert not wrong, f"(as it is, as it should be): {wrong}"
            assert ended == reference.outcome, f"{ended} should be {reference.outcome}"
            by_hand = {event[1] for event in self.events if event[0] == "cancelled"}
            told = {name: self.now[name].dependency_status for name in seen.keys() - by_hand - reference.lost}
            unjudged = {name: "waiting" if self.jobs[name].after else "none" for name in told}
            judged = {**unjudged, **reference.judged}
            assert all(judged[name] == told[name] for name in told), f"{told} should be {judged}"
            if self.orderly and reference.outcome[1] == "JOB_FAILED":
                assert run.error is not None
                at_once = any(job.condition == "broken" for job in self.jobs.values())
                first = filter(reference.failed, self.jobs) if at_once else [reference.first_failed]
                assert run.error.message.split()[1] in set(first), f"{run.error.message!r} names another than {first}"
        else:
            lost = {name for name in seen if standings.has_lost(standings.graph.place_of[name])}
            through = {name for name, job in self.now.items() if job.verdict and job.verdict.through_failure}
            problems = unjustified(
                self.jobs, seen, through=through, lost=lost, pardoned=self.pardoned, kept=self.kept,
                events=self.events, policy=self.policy, outcome=ended,
            )  # fmt: skip
            assert not problems, str(problems)
        return reference.exact

    def _notes_agree(self, standings: Standings) -> None:
        for name, job in self.now.items():
            place = standings.graph.place_of[name]
            note = standings.chunk(graphs.chunk_of(place)).notes.get(place)
            assert note is not None, f"nothing is noted of {name}"
            pardoned = note.standing == "pardoned" or (self.policy == "manual" and note.standing in BAD_NOTES)
            if not (pardoned and job.status in BAD_NOTES):
                assert note.standing == note_of(job).standing, f"{name} is {job.status}, noted as {note.standing}"
            assert note.moment // 2 == job.version, f"the note on {name} is of another moment"

    # What is looked at all the time

    def look(self) -> None:
        """Every version of a job since the last look: is all as it may be?"""
        if self.stale:
            self._reread()
        versions, self.world.unmatched[:] = list(self.world.unmatched), []
        for job in versions:
            self._see(job)
        self._note_stops()

    def _reread(self) -> None:
        """What was stored by whoever died then is not in the world's own list."""
        self.stale = False
        self.world.unmatched.clear()
        for name in self.jobs:
            job = self.world.ctx.jobs.find(NAMESPACE, self.world.id_of(self.run_id, name))
            if job is not None:
                self._see(job)

    def _see(self, job: Job) -> None:
        name, before = str(job.name), self.now.get(str(job.name))
        self.now[name] = job
        if before is not None and before.version == job.version:
            return
        if before is not None and before.status == "scheduled" and job.status == "waiting" and not job.verdict:
            self.events.append(("due", name))
        if job.status == "running" and (before is None or before.status != "running"):
            self._may_have_begun(name)
        held = self.hands.get(name)
        if held is not None and held.lease is not None and (job.lease is None or job.lease.token != held.lease.token):
            # Taken back by the clock: its time is over, or it did not end by itself when asked to.
            del self.hands[name]
            if held.lease.token in self.patient:
                self.events.append(("forced", name))
            else:
                self.ran[name] += 1
                self.events.append(("ran", name, "asked" if job.status == "cancelled" else ""))
        if self.most is not None:
            busy = [other for other, its in self.now.items() if its.status in ("pending", "running")]
            assert len(busy) <= self.most, f"{len(busy)} at once, of {self.most}: {busy}"

    def _may_have_begun(self, name: str) -> None:
        if any(job.race for job in self.jobs.values()) or self.policy == "manual":
            return
        ends = {}
        for other in self.jobs[name].after:
            its = self.now[other]
            if its.status in TERMINAL:
                through = its.verdict is not None and its.verdict.through_failure
                ends[other] = {"completed": "success", "skipped": "failed" if through else "skipped"}.get(
                    its.status, its.status
                )
        assert verdict(self.jobs[name], ends) is True, f"{name} begins, and before it are {ends}"

    def _note_stops(self) -> None:
        run = self.world.found(self.run_id)
        since = max((at for at, event in enumerate(self.events) if event[0] == "retried"), default=0)
        told = {event[1] for event in self.events[since:] if event[0] == "stop"}
        for why, there in (("cancel", run.cancel_requested_by is not None), ("deadline", run.deadline_passed)):
            if there and why not in told:
                self.events.append(("stop", why))

    # Small things

    def _create(self, rest: dict[str, Any]) -> str:
        body = {"name": "test", "jobs": [_wire(job, self.chance) for job in self.jobs.values()], **rest}
        ctx, run_id = self.world.ctx, self._new_id()
        new = run_of_body(NAMESPACE, body, run_id, now=self.world.time, find_types=ctx.job_types.find_many)
        self._surely(lambda: create_run.create_run(ctx, NAMESPACE, new, by=KEY))
        if not self.world.found(run_id).sealed:
            self.world.pass_time(61)  # The clock finishes what its creator has left undone.
            self._surely(lambda: look_after_run.look_after_run(ctx, NAMESPACE, run_id))
        return run_id

    def _new_id(self) -> str:
        return str(UUID(int=self.chance.getrandbits(128) & ~(0xF << 76) & ~(0x3 << 62) | 7 << 76 | 2 << 62))

    def _outcome(self, name: str) -> int | None:
        return self.jobs[name].outcome(self.ran[name])

    def _stored(self, name: str) -> Job:
        job = self.world.ctx.jobs.find(NAMESPACE, self.world.id_of(self.run_id, name))
        assert job is not None
        return job

    def _is_patient(self, name: str) -> bool:
        lease = self.hands[name].lease
        return lease is not None and lease.token in self.patient

    def _chaos(self, share: float) -> bool:
        return self.chance.random() < share


BAD_NOTES = {"failed", "cancelled"}


def _wire(job: Planned, chance: Random) -> dict[str, Any]:
    said: dict[str, Any] = {
        "name": job.name,
        "depends_on": list(job.after),
        "trigger_rule": job.rule,
        "priority": chance.choice(["high", "normal", "low"]),
    }
    if isinstance(job.condition, tuple):
        said["condition"] = f'"{job.condition[0]}".result.n == `{job.condition[1]}`'
    elif job.condition is not None:
        said["condition"] = EXPRESSIONS[job.condition]
    if job.attempts > 1:
        said["retry"] = {
            "max_attempts": job.attempts,
            "initial_delay": chance.choice([0, 0, 20]),
            "jitter": False,
        }
    if job.fallback is not None:
        said["fallback"] = {"n": job.fallback}
    if job.join:
        said["executor"] = "join"
    if job.race:
        said["cancel_losers"] = True
    if job.delayed:
        said["start_delay"] = DELAY_S
    return said
