"""Simulated jobs: workers claim, report, fall silent and crash between any two requests, while time passes.

The index always matches the job's row, no report succeeds under a lost lease, no attempt starts twice, and after all
workers have stopped the sweeper leaves no job running.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal
from random import Random

import pytest
from moto import mock_aws

from tests.model.crash_injection import CrashingWorld, simulate
from tests.model.seeds import WORLDS, blocks
from tests.support.table import create_table
from tests.support.world import KEY, NAMESPACE
from vigil_core.domain.errors import InvalidTransition, JobCreationFailed, LeaseLost
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job, JobError, NewJob, Report
from vigil_core.domain.jobs.retry import RetryPolicy
from vigil_core.services.background import sweeper as sweep
from vigil_core.services.jobs import submit as submit_job
from vigil_core.services.jobs import transitions as change_job
from vigil_core.services.locks import promote_next_waiter
from vigil_core.services.queues.claim import ClaimRequest, claim_jobs
from vigil_core.store import keys

QUEUE = "default"
BROKEN = JobError(code="E", message="m")
pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]


POLICIES = [
    None,
    RetryPolicy(max_attempts=3, initial_delay=Decimal(0)),
    RetryPolicy(max_attempts=5, initial_delay=Decimal(0)),
    RetryPolicy(max_attempts=2, initial_delay=Decimal(20), jitter=False),
    RetryPolicy(max_attempts=4, initial_delay=Decimal(5)),
]
STEPS = (
    ["create"] * 3 + ["claim"] * 5 + ["worker_report"] * 6 + ["client_request"] + ["time_passes"] * 4 + ["sweep"] * 2
)
STEPS += ["timer_message"] + ["promote_next"] * 3


class JobSimulation(CrashingWorld):
    """A queue, its workers and the sweeper."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.leases: dict[str, list[str]] = {}
        """The granted tokens of each job, in order."""
        self.seen: dict[str, Job] = {}

    def create(self, chance: Random) -> None:
        at = self.world.time + timedelta(seconds=30) if chance.random() < 0.2 else None
        job_id = self.world.ctx.new_id()
        wanted = NewJob(
            job_id=job_id,
            job_type="test",
            scheduled_at=at,
            retry=chance.choice(POLICIES),
            timeout_s=chance.choice([None, None, 40]),
            fallback=chance.choice([None, None, {"rows": 0}]),
            executor=chance.choice(["worker", "worker", "worker", "none"]),
            priority=chance.choice(["high", "normal"]),
            heartbeat_timeout_s=chance.choice([None, 25]),
            mutex_key=chance.choice([None, "m", "n"]),
            queue_on_conflict=chance.random() < 0.8,
        )
        with suppress(JobCreationFailed):
            self.with_crashes(chance, lambda: submit_job.submit(self.world.ctx, NAMESPACE, wanted, actor=KEY))
        if self.world.ctx.jobs.find(NAMESPACE, job_id):
            self.ids.append(job_id)

    def claim(self, chance: Random) -> None:
        claim_id = chance.choice([None, None, str(chance.randint(0, 5))])
        wanted = ClaimRequest(
            queue=QUEUE,
            worker="w",
            limit=chance.randint(1, 3),
            lease_s=chance.choice([10, 50]),
            claim_id=claim_id,
        )
        granted = self.with_crashes(
            chance, lambda: claim_jobs(self.world.ctx, NAMESPACE, wanted, actor=KEY, until=self.world.time)
        )
        for job in granted or ():
            assert job.status == "running"
            assert job.lease
            assert job.lease.expires_at > self.world.time or claim_id, "what is granted is not over yet"

    def worker_report(self, chance: Random) -> None:
        """Report under a valid lease, or under a lost one."""
        held = {job_id: job.lease.token for job_id, job in self.seen.items() if job.lease}
        lost = [
            (job_id, token)
            for job_id, tokens in self.leases.items()
            for token in tokens
            if token not in (held.get(job_id), self.seen[job_id].reported_token)
        ]
        what = chance.randint(0, 5)
        if lost and chance.random() < 0.3:
            job_id, token = chance.choice(lost)
            before = self.stored(job_id)
            with suppress(LeaseLost, InvalidTransition):
                self._send_report(job_id, token, what)
            assert self.stored(job_id) == before, "a stale report changes nothing"
        elif held:
            job_id, token = chance.choice(list(held.items()))
            over = self.seen[job_id].lease
            try:
                self.with_crashes(chance, lambda: self._send_report(job_id, token, what))
            except LeaseLost:
                assert what == 0, "only a heartbeat minds that the time is over"
                assert over
                assert over.expires_at <= self.world.time

    def _send_report(self, job_id: str, token: str, what: int) -> None:
        ctx = self.world.ctx
        match what:
            case 0:
                half = Decimal("0.5")
                change_job.heartbeat(
                    ctx, NAMESPACE, job_id, lease_token=token, lease_s=None, progress=half, message=None
                )
            case 1:
                change_job.complete(ctx, NAMESPACE, job_id, actor=KEY, result=token, lease_token=token)
            case 2 | 3:
                change_job.fail(ctx, NAMESPACE, job_id, BROKEN, actor=KEY, retryable=what == 2, lease_token=token)
            case 4:
                change_job.release(ctx, NAMESPACE, job_id, actor=KEY, lease_token=token)
            case _:
                change_job.report(ctx, NAMESPACE, job_id, Report(fields={"n": token}), actor=KEY, lease_token=token)

    def client_request(self, chance: Random) -> None:
        if self.ids:
            job_id, act = (
                chance.choice(self.ids),
                chance.choice([change_job.start, change_job.cancel, change_job.retry]),
            )
            with suppress(InvalidTransition, LeaseLost, JobCreationFailed):
                self.with_crashes(chance, lambda: act(self.world.ctx, NAMESPACE, job_id, actor=KEY))

    def timer_message(self, chance: Random) -> None:
        """Deliver a sweeper message, which may be obsolete."""
        if self.ids:
            change_job.apply_timers(self.world.ctx, NAMESPACE, chance.choice(self.ids))

    def promote_next(self, chance: Random) -> None:
        """Deliver a job version that affects a mutex to the matcher, possibly again."""
        if self.ids:
            job = self.stored(chance.choice(self.ids))
            if job.needs_matching and job.mutex.key:
                self.with_crashes(
                    chance, lambda: promote_next_waiter(self.world.ctx, NAMESPACE, str(job.mutex.key), actor="matcher")
                )

    def check_invariants(self) -> None:
        for job_id in self.ids:
            job, before = self.stored(job_id), self.seen.get(job_id)
            if job.lease and job.lease.token not in self.leases.setdefault(job_id, []):
                self.leases[job_id].append(job.lease.token)
            assert (job.lease is not None) <= (job.status == "running")
            assert 1 <= job.attempt <= job.max_attempts
            if before is not None:
                assert job.attempt >= before.attempt
                assert job.version >= before.version
                if before.ended and not job.ended:
                    assert any(line.kind == "retried" for line in job.log if line.version > before.version)
            if job.status == "completed" and job.health == "success" and job.reported_token:
                assert self.world.ctx.jobs.payloads(job).result == f'"{job.reported_token}"', "the holder's own result"
            self.seen[job_id] = job
            self._check_index(job)
            if job.mutex.key and job.status in ("pending", "running"):
                hold = self.world.ctx.locks.find(NAMESPACE, "mutex", job.mutex.key)
                assert hold, "what may run has its mutex"
                assert hold.job_id == job_id, "only one has it"

    def _check_index(self, job: Job) -> None:
        row = self.table.get(keys.job(NAMESPACE, job.job_id))
        shown = (row.get("g1pk"), row.get("g1sk"))
        if job.status == "pending" and job.executor == "worker":
            assert shown[0] == keys.ready_jobs(NAMESPACE, QUEUE)
        elif job.status == "waiting":
            assert shown[0] == keys.timed_jobs(NAMESPACE, QUEUE)
        elif job.due_at is not None:
            assert shown[0] == keys.timed_jobs(NAMESPACE, QUEUE)
            assert keys.timed_at(str(shown[1])) <= job.due_at, "the sweeper looks in time"
        else:
            assert shown == (None, None)

    def check_end(self) -> None:
        """Stop all workers: the sweeper alone ends all running work."""
        for _ in range(12):
            self.world.pass_time(61)
            self.world.sweep()
        for job_id in self.ids:
            job = self.stored(job_id)
            assert job.status != "scheduled"
            assert job.lease is None, "no worker keeps what it does not look after"
            assert job.status != "running" or job.due_at is None, "only what runs without a limit goes on"
            if job.status == "waiting":
                hold = self.world.ctx.locks.find(NAMESPACE, "mutex", str(job.mutex.key))
                assert hold
                holder = self.stored(hold.job_id)
                assert not holder.ended, "nobody stands in line for what is free"
                assert holder.status != "waiting", "nobody stands in line for what he has himself"


@pytest.fixture(autouse=True)
def table() -> Iterator[None]:
    with mock_aws():
        create_table()
        yield


@pytest.mark.parametrize("seeds", blocks(WORLDS), ids=str)
def test_simulated_jobs_satisfy_every_invariant(seeds: range) -> None:
    simulate(JobSimulation, STEPS, seeds)


def _allow_any_token(job: Job, lease_token: str | None) -> None:
    del job, lease_token


def _without_mutex(_: object, before: Job | None, after: Job) -> tuple[Job, tuple[()]]:
    """Return every lock as if the job were its holder."""
    del before
    return after, ()


FAULTS: dict[str, tuple[object, str, object]] = {
    "reports are accepted without the lease token": (transitions, "_require_lease", _allow_any_token),
    "the index does not contain the end of a lease": (Job, "due_at", property(lambda job: job.timer_at)),
    "a job runs without its mutex": (submit_job, "acquire_or_enqueue", _without_mutex),
    "the sweeper ignores mutex queues": (sweep, "promote_next_waiter", lambda *_, **__: None),
}


@pytest.mark.fault
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises(AssertionError):
        simulate(JobSimulation, STEPS, range(100), shorten=False)
