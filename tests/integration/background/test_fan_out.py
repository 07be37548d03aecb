"""Many waits on one job, and a wait on many jobs. No row grows with their number.

The tests use 2,500 instead of the maximum of 10,000, because no further limit lies between the two numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import pytest
import uuid6

from benchmarks.units import item_bytes
from tests.model.moto_table import all_rows, empty_table
from tests.support.world import NAMESPACE, World
from vigil_core.domain.waits.wait import MAX_WAIT_JOBS
from vigil_core.services.background import matcher
from vigil_core.services.jobs import transitions
from vigil_core.services.waits import register as register_wait
from vigil_core.services.waits import view
from vigil_core.store import keys
from vigil_core.store.table import DynamoTable
from vigil_core.store.waits import waits

pytestmark = pytest.mark.thorough

# The sizes of the largest rows, as `docs/data_model.md` states them.
JOB_BYTES = 1024
OPEN_WAIT_BYTES = 3 * 1024
ENDED_WAIT_BYTES = 5 * 1024
BLOCK_BYTES = 600
ENTRY_BYTES = 400


@pytest.fixture
def world(table: DynamoTable) -> World:
    """Return a world that writes to the same table directly, without HTTP requests."""
    del table
    return World(empty_table())


def largest_rows() -> Counter[str]:
    """Return the size of the largest row of each entity in bytes."""
    sizes: Counter[str] = Counter()
    for row in all_rows():
        entity = row["entity"]["S"]
        sizes[entity] = max(sizes[entity], item_bytes(row))
    return sizes


def waits_on(world: World, job_id: str, count: int) -> list[str]:
    """Register waits on one job and return their ids."""
    return [world.wait({job_id: {"job_stage": "boot"}})["wait_id"] for _ in range(count)]


def wait_outcomes(world: World, wait_ids: Collection[str]) -> Counter[tuple[str | None, ...]]:
    """Count the waits by their status and by the stage at which their job met the condition."""
    waits_by_id = world.ctx.waits.find_many(NAMESPACE, wait_ids)
    return Counter((wait.status, *(each.stage for each in wait.outcomes.values())) for wait in waits_by_id.values())


def test_waits_up_to_the_inline_limit_are_matched_without_fan_out(world: World) -> None:
    job_id = world.running()
    world.run_matcher()
    ids = waits_on(world, job_id, matcher.MAX_INLINE_WAITS)
    world.report(job_id, stage="boot")
    world.run_matcher()
    assert not world.queues.fan_out_messages
    assert wait_outcomes(world, ids) == {("met", "boot"): matcher.MAX_INLINE_WAITS}


def test_waits_over_the_inline_limit_are_matched_by_fan_out_without_growing_rows(world: World) -> None:
    many = 12 * matcher.MAX_INLINE_WAITS + 1
    job_id = world.running()
    world.run_matcher()
    ids = waits_on(world, job_id, many)
    world.report(job_id, stage="boot")
    world.run_matcher()
    world.complete(job_id)
    world.run_matcher()
    assert len(world.queues.fan_out_messages) == 2, "each version is one message for the fan-out function"
    assert world.ctx.waits.entries_of_job(NAMESPACE, job_id, limit=1).has_backlog
    assert largest_rows()["entry"] <= ENTRY_BYTES
    world.run_fan_out()
    assert wait_outcomes(world, ids) == {("met", "boot"): many}, "the first matching version is captured"
    left = world.ctx.waits.entries_of_job(NAMESPACE, job_id, limit=1)
    assert (left.entries, left.has_backlog) == ([], False)
    assert largest_rows()["job"] <= JOB_BYTES
    assert largest_rows()["wait"] <= JOB_BYTES


def test_wait_on_thousands_of_jobs_ends_without_growing_rows(world: World) -> None:
    many = 2 * waits.SPEC_PAGE_ENTRIES + waits.SPEC_PAGE_ENTRIES // 2
    assert many > max(register_wait.MAX_SYNCHRONOUS_PAGES * waits.SPEC_PAGE_ENTRIES, view.MAX_ENTRIES)
    jobs = [str(uuid6.uuid7()) for _ in range(many)]
    answer = world.wait(dict.fromkeys(jobs), wait_options={"allow_missing": True})
    assert answer["registering"]
    assert len(world.queues.fan_out_messages) == 3, "each page is one message for the fan-out function"
    # A job that ends before its page is registered is counted too.
    world.job(job_id=jobs[0])
    world.do(transitions.cancel, jobs[0])
    world.run_matcher()
    world.run_fan_out()
    assert "registering" not in world.show(answer)
    for job_id in jobs[1:]:
        world.job(job_id=job_id)
        world.do(transitions.cancel, job_id)
        if len(world.unmatched) >= 100:
            world.run_matcher()
    assert world.unmatched, "the last jobs end the wait"
    assert world.show(answer)["status"] == "waiting"
    world.run_matcher()
    response = world.show(answer)
    assert (response["status"], response["counts"]) == ("met", {"total": many, "met": many, "unmet": 0})
    assert response["truncated"]
    assert len(response["waited_jobs"]) == view.MAX_ENTRIES
    assert all(not world.ctx.waits.entries_of_job(NAMESPACE, job_id, limit=1).entries for job_id in jobs)
    assert largest_rows()["wait"] <= ENDED_WAIT_BYTES
    assert largest_rows()["wait_block"] <= BLOCK_BYTES


def test_row_of_the_largest_wait_counts_every_block_and_stays_small(world: World) -> None:
    jobs = {str(uuid6.uuid7()): None for _ in range(MAX_WAIT_JOBS)}
    answer = world.wait(jobs, wait_options={"allow_missing": True})
    wait = world.ctx.waits.find(NAMESPACE, answer["wait_id"])
    assert wait is not None
    half = keys.BLOCK_ENTRIES // 2
    for chunk in range(-(-MAX_WAIT_JOBS // keys.BLOCK_ENTRIES)):
        wait = world.ctx.waits.update_counts(wait, chunk, met=half, unmet=half)
        assert wait is not None
    assert largest_rows()["wait"] <= OPEN_WAIT_BYTES
    assert world.ctx.waits.close_large(wait, "expired", now=world.time)
    assert largest_rows()["wait"] <= ENDED_WAIT_BYTES
