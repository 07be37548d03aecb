"""Lists of jobs: the pages are those of a naive filter, and their cost does not grow with the namespace."""

from __future__ import annotations

from datetime import timedelta
from random import Random
from typing import Any

import pytest

from tests.model.moto_table import empty_table
from tests.support.runs import RunWorld
from tests.support.world import NAMESPACE, World
from vigil_core.domain.ids import workflow_job_id
from vigil_core.domain.jobs.batch import item_id
from vigil_core.domain.jobs.job import Job
from vigil_core.services.jobs import transitions
from vigil_core.services.jobs.listing import JobFilter, list_jobs
from vigil_core.store import listing
from vigil_core.store.table import DynamoTable


@pytest.fixture
def table(table: DynamoTable) -> DynamoTable:
    """Return the table without boto3."""
    del table
    return empty_table()


def all_pages(world: World, job_filter: JobFilter, page_size: int = 50) -> list[Job]:
    jobs: list[Job] = []
    cursor: str | None = None
    while True:
        page, cursor = list_jobs(world.ctx, NAMESPACE, job_filter, before_cursor=cursor, page_size=page_size)
        assert len(page) <= page_size
        jobs += page
        if cursor is None:
            return jobs


def run_all(world: World) -> None:
    while world.unmatched or world.queues.fan_out_messages:
        world.run_matcher()
        world.unmatched.clear()
        world.run_fan_out()


def random_job(world: World, random: Random) -> str:
    attributes: dict[str, Any] = {
        "job_type": random.choice(["a", "b"]),
        "queue": random.choice(["default", "q", "r"]),
        "executor": "none",
    }
    if random.random() < 0.5:
        attributes["correlation_id"] = random.choice(["c", "c#1", "d"])
    if random.random() < 0.2:
        attributes["unique_key"] = random.choice(["u", "v"])
    return world.job(**attributes)


@pytest.mark.parametrize("seed", range(6))
def test_pages_are_those_of_a_naive_filter(world: World, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(seed)
    monkeypatch.setattr(listing, "FILTERED_ROWS", random.randrange(1, 5))
    batch_id = world.job(executor="none", payload=[1, 2, 3], batch_size=3, queue="q", correlation_id="c")
    run_all(world)
    job_ids = [batch_id, *(item_id(batch_id, 1, index) for index in range(3))]
    start = world.time
    for _ in range(30):
        job_ids.append(random_job(world, random))
        if random.random() < 0.5:
            world.pass_time(random.choice([0.001, 3_600, 40_000]))
        if random.random() < 0.3 and (open_ids := [job_id for job_id in job_ids[4:] if _is_open(world, job_id)]):
            world.do(transitions.cancel, random.choice(open_ids))
        if random.random() < 0.2 and (ended := [job_id for job_id in job_ids[4:] if _ended(world, job_id)]):
            world.delete(random.choice(ended))
    for _ in range(25):
        job_filter = random_filter(random, batch_id, start)
        jobs = world.ctx.jobs.find_many(NAMESPACE, job_ids).values()
        expected = {job.job_id for job in jobs if not job.deleted and job_filter.matches(job)}
        listed = all_pages(world, job_filter, page_size=random.randrange(1, 9))
        assert len(listed) == len({job.job_id for job in listed})
        assert {job.job_id for job in listed} == expected, job_filter
        if job_filter.batch_id is None:
            order = [(job.created_at, job.job_id) for job in listed]
            assert order == sorted(order, reverse=True)


def _is_open(world: World, job_id: str) -> bool:
    job = world.ctx.jobs.find(NAMESPACE, job_id)
    return job is not None and not job.ended and not job.deleted


def _ended(world: World, job_id: str) -> bool:
    job = world.ctx.jobs.find(NAMESPACE, job_id)
    return job is not None and job.ended and not job.deleted


def random_filter(random: Random, batch_id: str, start: Any) -> JobFilter:
    choices: dict[str, list[Any]] = {
        "job_type": ["a", "b", "test"],
        "queue": ["default", "q", "none"],
        "correlation_id": ["c", "c#1", "x"],
        "unique_key": ["u", "v"],
        "batch_id": [batch_id],
        "statuses": [("pending",), ("cancelled",)],
        "created_after": [start + timedelta(hours=8)],
        "created_before": [start + timedelta(hours=30)],
    }
    names = random.sample(sorted(choices), random.randrange(0, 4))
    return JobFilter(**{name: random.choice(choices[name]) for name in names})


FILTERS = ("workflow_id", "batch_id", "correlation_id", "unique_key", "queue", "job_type")


def requests_of(world: World, monkeypatch: pytest.MonkeyPatch, job_filter: JobFilter) -> tuple[int, list[str]]:
    """List one page, and return the number of requests to the table with the listed ids."""
    count = 0

    def counted(name: str) -> Any:
        call = getattr(DynamoTable, name)

        def count_call(*args: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            return call(*args, **named)

        return count_call

    with monkeypatch.context() as patched:
        for name in ("get", "query_page", "batch_get"):
            patched.setattr(DynamoTable, name, counted(name))
        page, cursor = list_jobs(world.ctx, NAMESPACE, job_filter, before_cursor=None, page_size=50)
    assert cursor is None
    return count, [job.job_id for job in page]


def test_requests_do_not_grow_with_the_namespace(table: DynamoTable, monkeypatch: pytest.MonkeyPatch) -> None:
    world = RunWorld(table)
    run_id = world.run({"name": "a"}, {"name": "b", "depends_on": ["a"]})
    world.run_until_idle()
    batch_id = world.job(executor="none", payload=[1, 2], batch_size=2)
    run_all(world)
    job_id = world.job(executor="none", correlation_id="c", unique_key="u", queue="q", job_type="t")
    expected: dict[str, tuple[Any, list[str]]] = {
        "workflow_id": (run_id, [workflow_job_id(run_id, name) for name in "ba"]),
        "batch_id": (batch_id, [item_id(batch_id, 1, index) for index in (1, 0)]),
        "correlation_id": ("c", [job_id]),
        "unique_key": ("u", [job_id]),
        "queue": ("q", [job_id]),
        "job_type": ("t", [job_id]),
    }
    counts: list[dict[str, int]] = []
    for others in (20, 300):
        for _ in range(others):
            world.job(executor="none", correlation_id="other", job_type="other")
        counts.append({})
        for name in FILTERS:
            value, ids = expected[name]
            counts[-1][name], listed = requests_of(world, monkeypatch, JobFilter(**{name: value}))
            assert listed == ids, name
    assert counts[0] == counts[1]
    assert max(counts[0].values()) <= 8, counts[0]
