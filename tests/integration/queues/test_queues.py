"""Queues and workers, on moto: the order of claims, leases, and changes by time."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.support.table import TABLE_NAME
from tests.support.world import KEY, NAMESPACE, World
from vigil_core.domain.errors import InvalidTransition, JobNotFound, LeaseLost
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job, JobError, Report
from vigil_core.domain.jobs.retry import RetryPolicy
from vigil_core.services.jobs import transitions as job_transitions
from vigil_core.services.queues.claim import ClaimRequest, claim_jobs
from vigil_core.services.queues.stats import queue_state
from vigil_core.store.table import DynamoTable

QUEUE = "default"
ERROR = JobError(code="E", message="m")
BOOTING = Report(stage="boot")
RETRY_AT_ONCE = RetryPolicy(max_attempts=3, initial_delay=Decimal(0))


def claim(
    world: World, limit: int = 1, *, worker: str = "w", lease_s: int = 60, claim_id: str | None = None
) -> list[Job]:
    request = ClaimRequest(queue=QUEUE, worker=worker, limit=limit, lease_s=lease_s, claim_id=claim_id)
    return claim_jobs(world.ctx, NAMESPACE, request, actor=KEY, until=world.time)


def claimed_job(world: World, **attributes: object) -> tuple[str, str]:
    """Create and claim a job. Return its id and its lease token."""
    job_id = world.job(**attributes)
    (job,) = claim(world)
    assert job.job_id == job_id
    assert job.lease
    return job_id, job.lease.token


def stored(world: World, job_id: str) -> Job:
    job = world.ctx.jobs.find(NAMESPACE, job_id)
    assert job
    return job


def heartbeat(world: World, job_id: str, token: str | None, **members: object) -> Job:
    arguments = {"lease_s": None, "progress": None, "message": None, **members}
    return job_transitions.heartbeat(world.ctx, NAMESPACE, job_id, lease_token=token, **arguments)  # type: ignore[arg-type]


class SerialClient:
    """Client whose requests do not overlap, because moto checks a condition and writes in two separate steps."""

    def __init__(self, table: DynamoTable) -> None:
        self._client: Any = table._client
        self._lock = threading.Lock()

    def __getattr__(self, operation: str) -> Any:
        def request(**arguments: Any) -> Any:
            with self._lock:
                return getattr(self._client, operation)(**arguments)

        return request


class TestClaims:
    def test_claims_follow_priority_then_age(self, world: World) -> None:
        order = ["low", "critical", "normal", "background", "critical", "high", "normal"]
        ids: list[tuple[int, int, str]] = []
        ranks = ["critical", "high", "normal", "low", "background"]
        for number, priority in enumerate(order):
            world.pass_time(1)
            ids.append((ranks.index(priority), number, world.job(priority=priority)))
        claimed_ids = [job.job_id for _ in range(3) for job in claim(world, 3)]
        assert claimed_ids == [job_id for _, _, job_id in sorted(ids)]

    def test_claimed_job_runs_under_its_lease(self, world: World) -> None:
        world.job(name="n")
        (job,) = claim(world, worker="box-1", lease_s=30)
        assert (job.status, job.attempt, job.started_at) == ("running", 1, world.time)
        assert job.lease
        assert (job.lease.worker, job.lease.expires_at) == ("box-1", world.time + timedelta(seconds=30))
        assert claim(world) == []

    def test_claim_skips_other_queues_and_jobs_that_are_not_ready(self, world: World) -> None:
        world.job(queue="other")
        world.job(executor="none")
        world.job(scheduled_at=world.time + timedelta(hours=1))
        world.running()
        assert claim(world, 10) == []

    def test_two_workers_never_get_the_same_job(self, table: DynamoTable) -> None:
        world = World(DynamoTable(SerialClient(table), TABLE_NAME))  # type: ignore[arg-type]
        ids = {world.job() for _ in range(40)}
        got: list[str] = []

        def work(worker: str) -> None:
            while granted := claim(world, 2, worker=worker):
                got.extend(job.job_id for job in granted)

        workers = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(6)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        got += [job.job_id for job in claim(world, 10)]  # A worker that lost all its races stopped early.
        assert len(got) == len(set(got))
        assert set(got) == ids

    def test_repeated_claim_grants_the_same_jobs(self, world: World) -> None:
        for _ in range(5):
            world.job()
        first = claim(world, 2, claim_id="c1")
        repeated = claim(world, 2, claim_id="c1")
        assert [(job.job_id, job.lease) for job in repeated] == [(job.job_id, job.lease) for job in first]
        assert {job.job_id for job in claim(world, 2, claim_id="c2")}.isdisjoint(job.job_id for job in first)
        assert [stored(world, job.job_id).attempt for job in first] == [1, 1]

    def test_claim_resumes_its_candidates_after_a_crash(self, world: World) -> None:
        ids = [world.job() for _ in range(3)]
        world.ctx.job_queues.save_candidates(NAMESPACE, QUEUE, "c1#0", ids[:1], now=world.time)
        assert [job.job_id for job in claim(world, 1, claim_id="c1")] == ids[:1]

    def test_candidates_taken_by_other_claims_are_replaced(self, world: World) -> None:
        ids = [world.job() for _ in range(2)]
        world.ctx.job_queues.save_candidates(NAMESPACE, QUEUE, "c1#0", ids[:1], now=world.time)
        claim(world)
        assert [job.job_id for job in claim(world, claim_id="c1")] == ids[1:]
        assert [job.job_id for job in claim(world, claim_id="c1")] == ids[1:]

    def test_concurrent_claims_spread_over_different_candidates(self, world: World) -> None:
        ids = [world.job() for _ in range(20)]
        hints = world.ctx.job_queues.ready(NAMESPACE, QUEUE, 20)
        others: set[str] = set()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(world.ctx.job_queues, "ready", lambda *_: hints)
            for number in range(8):
                assert claim(world, claim_id=f"c{number}")
                first, other = world.ctx.job_queues.candidates(NAMESPACE, QUEUE, f"{KEY}#c{number}#0") or ()
                assert first == ids[0]
                others.add(other)
        assert len(others) > 3

    def test_long_poll_claims_a_job_that_becomes_ready(self, world: World) -> None:
        job_id = world.job(scheduled_at=world.time + timedelta(seconds=5))
        sleep = world.ctx.sleep

        def minded(seconds: float) -> None:
            sleep(seconds)
            job_transitions.apply_timers(world.ctx, NAMESPACE, job_id)

        ctx = replace(world.ctx, sleep=minded)
        request = ClaimRequest(queue=QUEUE, worker="w", limit=1, lease_s=60, claim_id=None)
        started_at = world.time
        granted = claim_jobs(ctx, NAMESPACE, request, actor=KEY, until=world.time + timedelta(seconds=20))
        assert [job.job_id for job in granted] == [job_id]
        assert timedelta(seconds=5) <= world.time - started_at < timedelta(seconds=7)

    def test_stale_index_entries_are_skipped(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        ids = [world.job() for _ in range(3)]
        hints = world.ctx.job_queues.ready(NAMESPACE, QUEUE, 25)
        claim(world, 1)
        deleted = ids[1]
        world.do(job_transitions.cancel, deleted)
        world.delete(deleted)
        monkeypatch.setattr(world.ctx.job_queues, "ready", lambda *_: hints)
        assert [job.job_id for job in claim(world, 10)] == ids[2:]

    def test_stale_index_entries_do_not_change_the_claim_order(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ids = [world.job() for _ in range(8)]
        hints = world.ctx.job_queues.ready(NAMESPACE, QUEUE, 25)
        monkeypatch.setattr(world.ctx.job_queues, "ready", lambda *_: hints)
        assert [job.job_id for _ in ids for job in claim(world)] == ids


class TestPause:
    def test_paused_queue_grants_no_claims(self, world: World) -> None:
        job_id = world.job()
        world.ctx.job_queues.set_paused(NAMESPACE, QUEUE, True)
        assert claim(world) == claim(world, claim_id="c") == []
        world.ctx.job_queues.set_paused(NAMESPACE, QUEUE, False)
        assert [job.job_id for job in claim(world, claim_id="c")] == [job_id]

    def test_repeated_claim_returns_jobs_granted_before_the_pause(self, world: World) -> None:
        ids = {world.job(), world.job(), world.job()}
        first = claim(world, 2, claim_id="c")
        world.ctx.job_queues.set_paused(NAMESPACE, QUEUE, True)
        assert [job.lease for job in claim(world, 2, claim_id="c")] == [job.lease for job in first]
        assert len(ids - {job.job_id for job in first}) == 1


class TestLeases:
    def test_reports_without_the_current_lease_token_are_refused(self, world: World) -> None:
        job_id, token = claimed_job(world)
        before = stored(world, job_id)
        for wrong in (None, "stale"):
            for change, args in (
                (job_transitions.report, (BOOTING,)),
                (job_transitions.complete, ()),
                (job_transitions.fail, (ERROR,)),
                (job_transitions.start, ()),
                (job_transitions.release, ()),
            ):
                with pytest.raises(LeaseLost):
                    change(world.ctx, NAMESPACE, job_id, *args, actor=KEY, lease_token=wrong)
            with pytest.raises(LeaseLost):
                heartbeat(world, job_id, wrong)
        assert stored(world, job_id) == before
        job_transitions.report(world.ctx, NAMESPACE, job_id, BOOTING, actor=KEY, lease_token=token)
        completed = job_transitions.complete(
            world.ctx, NAMESPACE, job_id, actor=KEY, result={"a": 1}, lease_token=token
        )
        assert (completed.status, completed.lease) == ("completed", None)

    def test_repeated_completion_returns_the_completed_job(self, world: World) -> None:
        job_id, token = claimed_job(world)
        completed = job_transitions.complete(world.ctx, NAMESPACE, job_id, actor=KEY, result=1, lease_token=token)
        assert (
            job_transitions.complete(world.ctx, NAMESPACE, job_id, actor=KEY, result=2, lease_token=token) == completed
        )
        assert world.ctx.jobs.payloads(completed).result == "1"
        with pytest.raises(LeaseLost):
            job_transitions.fail(world.ctx, NAMESPACE, job_id, ERROR, actor=KEY, lease_token=token)

    def test_repeated_failure_report_uses_one_attempt(self, world: World) -> None:
        job_id, token = claimed_job(world, retry=RETRY_AT_ONCE)
        for _ in range(2):
            repeated = job_transitions.fail(world.ctx, NAMESPACE, job_id, ERROR, actor=KEY, lease_token=token)
            assert (repeated.status, repeated.attempt) == ("pending", 2)

    def test_heartbeat_extends_the_lease_without_an_index_write(self, world: World) -> None:
        job_id, token = claimed_job(world)
        indexed_at = stored(world, job_id).indexed_due_at
        for _ in range(5):
            world.pass_time(50)
            alive = heartbeat(world, job_id, token, progress=Decimal("0.5"), message="half")
            assert alive.lease
            assert alive.lease.expires_at == world.time + timedelta(seconds=60)
        now = stored(world, job_id)
        assert (now.status, now.progress, now.message, now.indexed_due_at) == (
            "running",
            Decimal("0.5"),
            "half",
            indexed_at,
        )

    def test_sweep_reindexes_an_extended_lease_at_its_new_end(self, world: World) -> None:
        job_id, token = claimed_job(world)
        world.pass_time(50)
        heartbeat(world, job_id, token)
        version = stored(world, job_id).version
        world.pass_time(30)
        world.sweep()
        now = stored(world, job_id)
        assert (now.status, now.version) == ("running", version)
        assert now.lease
        assert now.indexed_due_at == now.lease.expires_at

    def test_expired_lease_returns_job_to_queue_and_counts_the_attempt(self, world: World) -> None:
        job_id, token = claimed_job(world, retry=RetryPolicy(max_attempts=2))
        world.pass_time(61)
        world.sweep()
        back = stored(world, job_id)
        assert (back.status, back.attempt, back.lease, back.stage) == ("pending", 2, None, "submit")
        with pytest.raises(LeaseLost):
            job_transitions.complete(world.ctx, NAMESPACE, job_id, actor=KEY, lease_token=token)
        assert claim(world)[0].job_id == job_id
        world.pass_time(61)
        world.sweep()
        lost = stored(world, job_id)
        assert lost.error
        assert (lost.status, lost.error.code) == ("failed", "LEASE_EXPIRED")

    def test_claim_reclaims_an_expired_lease_at_once(self, world: World) -> None:
        job_id, _ = claimed_job(world, retry=RETRY_AT_ONCE)
        world.pass_time(61)
        (job,) = claim(world, worker="other")
        assert (job.job_id, job.attempt) == (job_id, 2)

    def test_expired_lease_cannot_be_extended(self, world: World) -> None:
        job_id, token = claimed_job(world)
        world.pass_time(60)
        with pytest.raises(LeaseLost):
            heartbeat(world, job_id, token)

    def test_released_job_returns_to_its_queue(self, world: World) -> None:
        job_id, token = claimed_job(world)
        job_transitions.report(world.ctx, NAMESPACE, job_id, BOOTING, actor=KEY, lease_token=token)
        heartbeat(world, job_id, token, progress=Decimal("0.7"))
        back = job_transitions.release(world.ctx, NAMESPACE, job_id, actor=KEY, lease_token=token)
        assert (back.status, back.attempt, back.stage) == ("pending", 1, "submit")
        assert stored(world, job_id).progress == 0
        assert claim(world)[0].job_id == job_id

    def test_heartbeat_without_content_writes_nothing_in_the_first_half_of_the_lease(self, world: World) -> None:
        job_id, token = claimed_job(world)
        claimed = stored(world, job_id)
        for seconds in (10, 19):
            world.pass_time(seconds)
            heartbeat(world, job_id, token)
            assert stored(world, job_id) == claimed
        world.pass_time(1)
        extended = heartbeat(world, job_id, token)
        assert stored(world, job_id).lease == extended.lease
        assert extended.lease
        assert extended.lease.expires_at == world.time + timedelta(seconds=60)

    def test_late_heartbeat_does_not_change_the_lease_of_the_next_worker(self, world: World) -> None:
        job_id, token = claimed_job(world)
        late = stored(world, job_id)
        job_transitions.release(world.ctx, NAMESPACE, job_id, actor=KEY, lease_token=token)
        (job,) = claim(world, worker="next", lease_s=600)
        assert job.lease
        world.ctx.jobs.save(late, transitions.heartbeat(late, now=world.time, lease_token=token, message="late"))
        now = stored(world, job_id)
        assert now.lease
        assert now.lease.expires_at == job.lease.expires_at

    def test_heartbeat_does_not_extend_the_lease_beyond_the_enforced_cancel(self, world: World) -> None:
        job_id, token = claimed_job(world)
        world.do(job_transitions.cancel, job_id)
        for _ in range(5):
            world.pass_time(10)
            assert heartbeat(world, job_id, token).cancel_requested_at
        world.pass_time(11)
        with pytest.raises(LeaseLost):
            heartbeat(world, job_id, token)
        world.sweep()
        assert stored(world, job_id).status == "cancelled"

    def test_heartbeat_of_a_job_that_is_not_running_is_refused(self, world: World) -> None:
        with pytest.raises(InvalidTransition):
            heartbeat(world, world.job(), None)
        with pytest.raises(JobNotFound):
            heartbeat(world, "nope", None)


class TestTime:
    def test_scheduled_job_becomes_ready_at_its_time(self, world: World) -> None:
        job_id = world.job(scheduled_at=world.time + timedelta(seconds=90))
        world.pass_time(89)
        world.sweep()
        assert (stored(world, job_id).status, claim(world)) == ("scheduled", [])
        world.pass_time(1)
        world.sweep()
        assert [job.job_id for job in claim(world)] == [job_id]

    def test_failed_attempt_is_retried_after_its_delay(self, world: World) -> None:
        retry = RetryPolicy(max_attempts=4, initial_delay=Decimal(10), max_delay=Decimal(25), jitter=False)
        job_id = world.job(retry=retry, fields={"a": 1})
        for delay in (10, 20, 25):
            (job,) = claim(world)
            assert job.lease
            failed = job_transitions.fail(world.ctx, NAMESPACE, job_id, ERROR, actor=KEY, lease_token=job.lease.token)
            assert (failed.status, failed.scheduled_at) == ("scheduled", world.time + timedelta(seconds=delay))
            assert (failed.error, failed.fields, failed.stage) == (ERROR, {"a": 1}, "submit")
            world.pass_time(delay)
            world.sweep()
        (job,) = claim(world)
        assert job.lease
        last = job_transitions.fail(world.ctx, NAMESPACE, job_id, ERROR, actor=KEY, lease_token=job.lease.token)
        assert (last.status, last.attempt, last.health) == ("failed", 4, "failed")

    def test_failure_that_is_not_retryable_ends_the_job(self, world: World) -> None:
        job_id, token = claimed_job(world, retry=RETRY_AT_ONCE)
        failed = job_transitions.fail(
            world.ctx, NAMESPACE, job_id, ERROR, actor=KEY, retryable=False, lease_token=token
        )
        assert failed.status == "failed"

    def test_finally_failed_job_completes_with_its_fallback(self, world: World) -> None:
        job_id, token = claimed_job(world, fallback={"rows": 0})
        completed = job_transitions.fail(world.ctx, NAMESPACE, job_id, ERROR, actor=KEY, lease_token=token)
        assert (completed.status, completed.stage, completed.health, completed.error) == (
            "completed",
            "complete",
            "fallback",
            ERROR,
        )
        assert world.ctx.jobs.payloads(completed).result == '{"rows":0}'

    def test_attempt_over_its_timeout_fails(self, world: World) -> None:
        job_id = world.job(timeout_s=30, retry=RetryPolicy(max_attempts=2, initial_delay=Decimal(0)))
        for attempt in (1, 2):
            (job,) = claim(world, lease_s=600)
            assert job.attempt == attempt
            world.pass_time(30)
            world.sweep()
        over = stored(world, job_id)
        assert over.error
        assert (over.status, over.health, over.error.code) == ("failed", "timed_out", "TIMED_OUT")

    def test_missing_heartbeat_fails_a_job_without_lease(self, world: World) -> None:
        job_id = world.running(heartbeat_timeout_s=30)
        for _ in range(3):
            world.pass_time(25)
            heartbeat(world, job_id, None)
            world.sweep()
        assert stored(world, job_id).status == "running"
        world.pass_time(30)
        world.sweep()
        over = stored(world, job_id)
        assert over.error
        assert (over.status, over.error.code) == ("failed", "TIMED_OUT")

    def test_repeated_timer_changes_the_job_once(self, world: World) -> None:
        job_id, _ = claimed_job(world, retry=RETRY_AT_ONCE)
        world.pass_time(61)
        for _ in range(3):
            job_transitions.apply_timers(world.ctx, NAMESPACE, job_id)
        assert stored(world, job_id).attempt == 2


class TestCounts:
    def test_queue_shows_counts_workers_and_oldest_job(self, world: World) -> None:
        world.pass_time(5)
        oldest = world.time
        world.job(priority="low")
        world.pass_time(5)
        world.job(priority="high")
        world.job(priority="high")
        world.job(scheduled_at=world.time + timedelta(hours=1))
        claim(world, worker="box")
        state = queue_state(world.ctx, NAMESPACE, QUEUE)
        assert {name: count for name, count in state.ready.items() if count} == {"low": 1, "high": 1}
        assert dict(state.timed) == {"scheduled": 1, "waiting": 0, "running": 1}
        assert (state.oldest_ready, state.running, state.paused) == (oldest, {"box": 1}, False)
        assert [(seen.worker, seen.last_claim_at) for seen in state.workers] == [("box", world.time)]

    def test_ended_jobs_leave_no_queue_entries(self, world: World) -> None:
        for end in (job_transitions.complete, job_transitions.release):
            job_id, token = claimed_job(world)
            end(world.ctx, NAMESPACE, job_id, actor=KEY, lease_token=token)
            if end is job_transitions.release:
                world.do(job_transitions.cancel, job_id)
        state = queue_state(world.ctx, NAMESPACE, QUEUE)
        assert sum(state.ready.values()) + sum(state.timed.values()) == 0

    def test_claim_makes_the_same_requests_for_any_queue_length(self, world: World, table: DynamoTable) -> None:
        def calls() -> list[str]:
            seen: list[str] = []
            client = table._client
            names = ("get_item", "query", "put_item", "update_item", "batch_get_item", "transact_write_items")

            class Counting:
                def __getattr__(self, name: str) -> object:
                    if name in names:
                        seen.append(name)
                    return getattr(client, name)

            other = World(DynamoTable(Counting(), TABLE_NAME))  # type: ignore[arg-type]
            other.time = world.time
            assert claim(other)
            return sorted(seen)

        for _ in range(3):
            world.job()
        few = calls()
        for _ in range(60):
            world.job()
        assert calls() == few
