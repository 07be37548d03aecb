"""Everything that Vigil does for a run without a request: processes crash between any two writes, and records arrive
twice, late and in another order.

Each plan always gives the same simulation.
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
from tests.model.run_plans import SILENT_MS, Plan, PlannedAttempt, PlannedJob, nth
from tests.support.runs import RunWorld
from tests.support.state_machine import Execution
from tests.support.world import KEY, NAMESPACE
from vigil_core.api.workflows.models import parse_workflow
from vigil_core.domain.errors import InvalidTransition
from vigil_core.domain.exact_json import loads
from vigil_core.domain.ids import workflow_job_id
from vigil_core.domain.jobs.job import Job, JobError
from vigil_core.domain.workflows import graph as graphs
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.services.background.fan_out import fan_out
from vigil_core.services.background.matcher import match_records
from vigil_core.services.jobs import transitions as change_job
from vigil_core.services.queues.claim import ClaimRequest, claim_jobs
from vigil_core.services.workflows import commands as runs
from vigil_core.services.workflows import create as create_run
from vigil_core.services.workflows import reconcile as look_after_run
from vigil_core.services.workflows import supervisor as supervise
from vigil_core.store.stream import StreamRecord

FAULT_RATE = 0.08
LONG_LEASE_S = 40_000
CONDITIONS = {"true": "`true`", "false": "`false`", "broken": "abs('x')"}


class ProcessCrashed(BaseException):
    """The process has crashed; no code catches this."""


class CrashingTable:
    """The table of a process that crashes before or after one of its writes."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self.writes_left: int | None = None
        self.crash_after_write = False

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._table, name)
        if name not in {"put", "update", "delete", "batch_write", "transact"}:
            return call

        def mortal(*args: Any, **kwargs: Any) -> Any:
            last = self.writes_left == 0
            if last and not self.crash_after_write:
                raise ProcessCrashed
            done = call(*args, **kwargs)
            if last:
                raise ProcessCrashed
            if self.writes_left is not None:
                self.writes_left -= 1
            return done

        return mortal


class SimulatedRun:
    """A run of a plan, with all its background work. The same plan always gives the same simulation."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.jobs = plan, {job.name: job for job in plan.jobs}
        self.chance = Random(plan.chance)
        self.table = CrashingTable(empty_table())
        self.world = RunWorld(self.table)  # type: ignore[arg-type]
        self.world.ctx = replace(self.world.ctx, new_id=self._new_id, jitter=self.chance.random, sleep=lambda _: None)
        self.late_batches: list[list[StreamRecord]] = []
        self.ended_executions: list[tuple[Execution, str]] = []
        self.needs_sweep = False
        """Whether something was lost that only the sweeper finds."""
        self.crashes = 0
        self.claims = 0
        self.tried = Counter[str]()
        """The number of starts of each job."""
        self._wake, self.world.machine.wake = self.world.machine.wake, self._maybe_wake  # type: ignore[method-assign]
        self.run_id = self._new_id()
        self._create()

    @property
    def run(self) -> WorkflowRun:
        """Return the run from its row."""
        return self.world.table.runs[self.run_id]

    def job(self, name: str) -> Job:
        """Return a job from its row."""
        return self.world.table.jobs[workflow_job_id(self.run_id, name)]

    def all(self) -> dict[str, Job]:
        """Return every existing job, by name."""
        there = self.world.table.jobs
        return {name: there[its] for name in self.jobs if (its := workflow_job_id(self.run_id, name)) in there}

    # Requests

    def claim(self, most: int) -> list[Job]:
        """Grant jobs to a worker.

        A worker that will report starts the job at once; a silent worker never reports.
        """
        self.claims += 1
        wanted = ClaimRequest(
            queue="default", worker="w", limit=most, lease_s=SILENT_MS // 1_000, claim_id=f"c{self.claims}"
        )
        ask = partial(claim_jobs, self.world.ctx, NAMESPACE, wanted, actor=KEY, until=self.world.time)
        granted: list[Job] = self.retry_after_crash(ask)
        for job in granted:
            self.tried[str(job.name)] += 1
            if not self.planned_attempt(job).silent:
                token = job.lease.token if job.lease else None
                change_job.heartbeat(self.world.ctx, NAMESPACE, job.job_id, lease_token=token, lease_s=LONG_LEASE_S)
        return granted

    def planned_attempt(self, job: Job) -> PlannedAttempt:
        """Return the plan of the current attempt."""
        its: PlannedAttempt = nth(self.jobs[str(job.name)].tries, self.tried[str(job.name)] - 1)
        return its

    def finish(self, job: Job) -> None:
        """End the attempts that the worker has claimed."""
        assert job.lease is not None
        token, result = job.lease.token, self.planned_attempt(job).result
        if result is not None:
            end = partial(self.world.do, change_job.complete, job.job_id, result=result, lease_token=token)
        else:
            error = JobError(code="BROKEN", message="it broke")
            end = partial(self.world.do, change_job.fail, job.job_id, error, lease_token=token)
        self.retry_after_crash(end)

    def undecided(self) -> dict[str, int]:
        """Return the failures that await a decision: job and state version."""
        if self.plan.policy != "manual" or not any(
            job.status in ("failed", "cancelled") for job in self.all().values()
        ):
            return {}
        standings = self.world.run_state(self.run_id)
        notes = {
            name: standings.block(graphs.block_of(place)).records.get(place)
            for name, place in standings.graph.index_of.items()
        }
        return {
            name: note.state_version
            for name, note in notes.items()
            if note is not None and note.state == "awaiting_decision"
        }

    def retry(self, start: str | None) -> bool:
        """Retry the run; return whether there was a job to rerun."""
        generation = self.run.generation

        def again() -> None:
            run = self.run
            if run.generation == generation:
                run = runs.retry(self.world.ctx, NAMESPACE, self.run_id, from_job=start, actor=KEY)
            create_run.prepare_jobs(self.world.ctx, run)

        with suppress(InvalidTransition):
            self.retry_after_crash(again)
        return self.run.generation > generation

    def disturb_supervisor(self) -> None:
        """Stop the supervisor, or let it time out."""
        at_work = [each for each in self.world.machine.executions.values() if each.status == "RUNNING"]
        if at_work and at_work[-1].token is not None and self.chance.random() < 0.5:
            self.world.machine.time_out(at_work[-1])
        elif at_work:
            status = self.chance.choice(["FAILED", "TIMED_OUT"])
            self.world.machine.stop(at_work[-1].name, status)
            if self.chance.random() < 0.7:
                self.ended_executions.append((at_work[-1], status))
            else:
                self.needs_sweep = True

    # Background work

    def run_until_idle(self) -> None:
        """Work until nothing is left to do."""
        steps = 0
        while self.has_work() or self.needs_sweep:
            steps += 1
            assert steps < 3_000, "there is no end to it"
            if self.has_work():
                self.step()
            else:
                self.needs_sweep = False
                self.retry_after_crash(lambda: look_after_run.reconcile_run(self.world.ctx, NAMESPACE, self.run_id))

    def has_work(self) -> bool:
        """Return whether work is left."""
        return bool(
            self.world.machine.ready() or self.records() or self.world.queues.fan_out_messages or self.ended_executions
        )

    def records(self) -> list[StreamRecord]:
        """Return the records that the stream can deliver now."""
        return self.world.table.records

    def step(self) -> None:
        """Do one piece of work at random: a step of a supervisor, some records, or a message."""
        todo: list[Callable[[], Any]] = []
        if ready := self.world.machine.ready():
            todo.append(lambda: self.with_crashes(lambda: self.world.machine.step(self.chance.choice(ready))))
        if self.records():
            todo.append(self._deliver_records)
        if self.world.queues.fan_out_messages:
            todo.append(self._run_fan_out)
        if self.ended_executions:
            todo.append(self._report_ended_execution)
        if self.late_batches and self.chance.random() < FAULT_RATE:
            todo.append(lambda: self._match(self.late_batches.pop(self.chance.randrange(len(self.late_batches)))))
        if todo:
            self.chance.choice(todo)()

    def with_crashes(self, work: Callable[[], Any]) -> Any:
        """Perform work that a crash may end; return None after a crash."""
        if self.chance.random() < FAULT_RATE:
            self.table.writes_left, self.table.crash_after_write = self.chance.randint(0, 3), self.chance.random() < 0.5
        try:
            return work()
        except ProcessCrashed:
            self.crashes += 1
            return None
        finally:
            self.table.writes_left = None

    def retry_after_crash(self, work: Callable[[], Any]) -> Any:
        """Request work again after its process crashed."""
        deaths = self.crashes
        done = self.with_crashes(work)
        return work() if self.crashes > deaths else done

    def _deliver_records(self) -> None:
        """Return some records of the stream: records of one row in order, others in any order."""
        by_row: dict[Any, list[StreamRecord]] = {}
        for record in self.records():
            by_row.setdefault(record.key, []).append(record)
        rows = [row[: self.chance.randint(1, len(row))] for row in by_row.values()]
        self.chance.shuffle(rows)
        rows = rows[: self.chance.randint(1, len(rows))]
        order = [number for number, row in enumerate(rows) for _ in row]
        self.chance.shuffle(order)
        batch = [rows[number].pop(0) for number in order]
        if self._match(batch):
            carried = {record.sequence_number for record in batch}
            left = [record for record in self.world.table.records if record.sequence_number not in carried]
            self.world.table.records[:] = left
            if self.chance.random() < 2 * FAULT_RATE:
                self.late_batches.append(batch)

    def _match(self, batch: list[StreamRecord]) -> bool:
        failed = self.with_crashes(lambda: match_records(self.world.ctx, batch))
        if failed:
            raise next(iter(failed.values()))
        return failed is not None

    def _run_fan_out(self) -> None:
        wide = self.world.queues.fan_out_messages
        message = wide[self.chance.randrange(len(wide))]
        first = next(each for each in wide if each.group == message.group)
        done = self.with_crashes(lambda: fan_out(self.world.ctx, loads(first.body), has_time_left=lambda: True))
        if done and self.chance.random() > FAULT_RATE:  # Otherwise it is delivered again.
            wide.remove(first)

    def _report_ended_execution(self) -> None:
        execution, status = self.ended_executions.pop()
        crashes = self.crashes
        self.retry_after_crash(lambda: supervise.on_execution_ended(self.world.ctx, execution.data, status))
        if self.crashes > crashes:
            # The crashed process may have named a successor without starting it. Only the sweeper finds that.
            self.needs_sweep = True

    def _maybe_wake(self, token: str) -> None:
        if self.chance.random() < 0.05:
            self.needs_sweep = True
        else:
            self._wake(token)

    def _create(self) -> None:
        jobs = [self.plan.jobs[place] for place in self.plan.defined]
        body: dict[str, Any] = {
            "name": "test", "failure_policy": self.plan.policy, "jobs": [_wire(job) for job in jobs],
            "timeout": self.plan.timeout_s, "max_concurrency": self.plan.most,
        }  # fmt: skip
        body = {name: said for name, said in body.items() if said is not None}
        ctx = self.world.ctx
        new = parse_workflow(NAMESPACE, body, self.run_id, now=self.world.time, find_types=ctx.job_types.find_many)
        self.retry_after_crash(partial(create_run.create_run, ctx, NAMESPACE, new, actor=KEY, resumed=True))

    def _new_id(self) -> str:
        return str(UUID(int=self.chance.getrandbits(128) & ~(0xF << 76) & ~(0x3 << 62) | 7 << 76 | 2 << 62))


def _wire(job: PlannedJob) -> dict[str, Any]:
    said: dict[str, Any] = {
        "name": job.name,
        "depends_on": list(job.after),
        "trigger_rule": job.rule,
        "priority": job.priority,
    }
    if job.wants is not None:
        said["condition"] = f'"{job.after[0]}".result.n == `{job.wants["n"]}`'
    elif job.condition is not None:
        said["condition"] = CONDITIONS[job.condition]
    if job.attempts > 1:
        delay = {"initial_delay": job.rest // 1_000, "multiplier": 1, "jitter": False}
        said["retry"] = {"max_attempts": job.attempts, **delay}
    if job.fallback is not None:
        said["fallback"] = job.fallback
    if job.join:
        said |= {"executor": "join", "queue": "joins"}
    if job.race:
        said["cancel_losers"] = True
    if job.delay:
        said["start_delay"] = job.delay // 1_000
    return said
