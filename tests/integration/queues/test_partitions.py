"""A queue with several partitions of the index behaves as one queue, on moto."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support.world import KEY, NAMESPACE, World
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.status import JobStatus
from vigil_core.services.jobs import transitions
from vigil_core.services.queues.claim import ClaimRequest, claim_jobs
from vigil_core.services.queues.stats import queue_state
from vigil_core.services.queues.sweep import sweep_queue
from vigil_core.store import keys
from vigil_core.store.table import DynamoTable

PARTITIONS = 4


@pytest.fixture
def spread(table: DynamoTable) -> World:
    return World(table, queue_partitions=PARTITIONS)


def claim(world: World, limit: int = 10) -> list[Job]:
    request = ClaimRequest(queue="default", worker="w", limit=limit, lease_s=60, claim_id=None)
    return claim_jobs(world.ctx, NAMESPACE, request, actor=KEY, until=world.time)


def status(world: World, job_id: str) -> JobStatus:
    job = world.ctx.jobs.find(NAMESPACE, job_id)
    assert job is not None
    return job.status


def test_priority_and_age_order_claims_across_partitions(spread: World) -> None:
    created: list[tuple[str, str]] = []
    for number in range(20):
        spread.pass_time(1)
        priority = ("low", "normal", "high")[number % 3]
        created.append((spread.job(priority=priority), priority))
    used = {keys.partition_of(job_id, PARTITIONS) for job_id, _ in created}
    assert len(used) > 1, "the test needs jobs in several partitions"
    expected = [
        job_id
        for expected_priority in ("high", "normal", "low")
        for job_id, priority in created
        if priority == expected_priority
    ]
    assert [job.job_id for _ in range(2) for job in claim(spread)] == expected


def test_queue_counts_cover_all_partitions(spread: World) -> None:
    for _ in range(12):
        spread.job()
    spread.job(scheduled_at=spread.time + timedelta(hours=1))
    claim(spread, 5)
    state = queue_state(spread.ctx, NAMESPACE, "default")
    assert state.ready["normal"] == 7
    assert dict(state.timed) == {"scheduled": 1, "waiting": 0, "running": 5}
    assert dict(state.running) == {"w": 5}


def test_sweep_processes_due_jobs_of_every_partition(spread: World) -> None:
    running = [job.job_id for _ in range(12) if spread.job() for job in claim(spread)]
    later = [spread.job(scheduled_at=spread.time + timedelta(seconds=30)) for _ in range(12)]
    spread.pass_time(61)
    assert sweep_queue(spread.ctx, NAMESPACE, "default") == 24
    assert {status(spread, job_id) for job_id in running} == {"failed"}, "their leases have expired"
    assert {status(spread, job_id) for job_id in later} == {"pending"}


def test_partitions_can_be_added_while_jobs_are_open(table: DynamoTable) -> None:
    before = World(table)
    old = [before.job() for _ in range(6)]
    (leased,) = claim(before, 1)
    spread = World(table, queue_partitions=PARTITIONS)
    new = [spread.job() for _ in range(6)]
    claimed_ids = [job.job_id for _ in range(2) for job in claim(spread)]
    assert sorted([leased.job_id, *claimed_ids]) == sorted([*old, *new])
    assert leased.lease is not None
    transitions.complete(spread.ctx, NAMESPACE, leased.job_id, actor=KEY, lease_token=leased.lease.token)
    spread.pass_time(61)
    assert sweep_queue(spread.ctx, NAMESPACE, "default") == len(claimed_ids)
