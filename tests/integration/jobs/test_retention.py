"""What has ended is kept for a while, then it is gone with all its rows; what is open is not lost."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from tests.support.live import stored
from tests.support.world import NAMESPACE, World
from vigil_core.domain.errors import JobNotFound
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.retention import LIFE
from vigil_core.services.jobs import transitions as change_job
from vigil_core.services.jobs.listing import JobFilter, list_jobs
from vigil_core.services.pagination import DAY_BUDGET
from vigil_core.services.queues.renew_ttl import MINUTES_A_DAY, keep_waiting
from vigil_core.services.waits import requests as waits_api
from vigil_core.store import keys
from vigil_core.store.jobs.jobs import JobStore
from vigil_core.store.table import DynamoTable

RETENTION = timedelta(days=30)
DAY = 86_400


def ttls(table: DynamoTable, job_id: str) -> dict[str, datetime]:
    """When DynamoDB may remove each row of a job, by the row's entity."""
    rows = [row for row in stored(table) if row["pk"]["S"] == keys.job(NAMESPACE, job_id).pk]
    return {row["entity"]["S"]: datetime.fromtimestamp(int(row["ttl"]["N"]), UTC) for row in rows}


def expire(world: World, table: DynamoTable) -> None:
    """What DynamoDB does with rows whose time has come, late as it is."""
    for row in list(stored(table)):
        if "ttl" in row and int(row["ttl"]["N"]) <= world.time.timestamp():
            table.batch_write(deletes=[keys.Key(row["pk"]["S"], row["sk"]["S"])])


def find(world: World, job_id: str) -> Job:
    return change_job.find_job(world.ctx, NAMESPACE, job_id)


def listed(world: World) -> list[str]:
    found, place = list_jobs(world.ctx, NAMESPACE, JobFilter(), before_place=None, page_size=50)
    assert place is None
    return [job.job_id for job in found]


def payload_of(world: World, job_id: str) -> str | None:
    return world.ctx.jobs.bodies(find(world, job_id)).payload


def many_reports(world: World, job_id: str) -> None:
    """So many that some of the history is moved out of the state."""
    for number in range(10):
        world.report(job_id, fields={"n": number})


def test_all_rows_of_a_job_that_has_ended_expire_together(world: World, table: DynamoTable) -> None:
    job_id = world.running(payload={"a": 1}, fallback={"b": 2})
    many_reports(world, job_id)
    world.pass_time(40 * DAY)
    world.complete(job_id, result={"c": 3})
    ended = world.time + RETENTION
    assert ttls(table, job_id) == dict.fromkeys(("job", "payload", "result", "log"), ended)
    world.time = ended - timedelta(seconds=1)
    assert payload_of(world, job_id) == '{"a":1}'
    assert listed(world) == [job_id]
    world.time = ended
    expire(world, table)
    assert not [row for row in stored(table) if job_id in row["pk"]["S"]]


def test_what_has_expired_is_hidden_before_it_is_removed(world: World) -> None:
    job_id = world.running(unique_key="one")
    world.complete(job_id)
    world.pass_time(30 * DAY)
    with pytest.raises(JobNotFound):
        find(world, job_id)
    assert world.ctx.jobs.find_many(NAMESPACE, [job_id]) == {}
    assert listed(world) == []
    assert world.job(unique_key="one") != job_id


def test_a_job_that_is_retried_does_not_vanish(world: World, table: DynamoTable) -> None:
    job_id = world.running(payload={"a": 1})
    many_reports(world, job_id)
    world.fail(job_id)
    world.pass_time(29 * DAY)
    world.do(change_job.retry, job_id)
    world.pass_time(100 * DAY)
    expire(world, table)
    assert payload_of(world, job_id) == '{"a":1}'
    assert len(world.ctx.jobs.history(find(world, job_id))) == 14
    world.do(change_job.start, job_id)
    world.complete(job_id)
    assert set(ttls(table, job_id).values()) == {world.time + RETENTION}


def test_an_end_that_is_late_to_let_go_does_not_shorten_the_life_of_a_job_that_was_retried(
    world: World, table: DynamoTable
) -> None:
    """All within one second. Between the end's write and what follows it, somebody retries the job."""
    job_id = world.running(payload={"a": 1})
    before = find(world, job_id)
    world.fail(job_id)
    ended = find(world, job_id)
    world.do(change_job.retry, job_id)
    kept = ttls(table, job_id)
    world.ctx.jobs._let_go(before, ended)
    assert ttls(table, job_id) == kept


def test_a_process_that_dies_after_the_end_leaves_only_what_expires_later(
    world: World, table: DynamoTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = world.running(payload={"a": 1})
    monkeypatch.setattr(JobStore, "_let_go", lambda *_: None)
    world.complete(job_id)
    its = ttls(table, job_id)
    assert its["job"] < its["payload"] <= world.time + LIFE + RETENTION + timedelta(minutes=1)
    world.pass_time(30 * DAY)
    with pytest.raises(JobNotFound):
        find(world, job_id)


@pytest.mark.parametrize("sign", ["report", "progress"])
def test_a_job_that_goes_on_for_years_keeps_all_its_rows(world: World, table: DynamoTable, sign: str) -> None:
    job_id = world.running(payload={"a": 1}, fallback=2)
    many_reports(world, job_id)
    told: list[Any] = [{"fields": {"n": n}} if sign == "report" else {"message": str(n)} for n in range(8)]
    for said in told:
        world.pass_time(170 * DAY)
        expire(world, table)
        world.report(job_id, **said)
    assert payload_of(world, job_id) == '{"a":1}'
    assert listed(world) == [job_id]
    assert {"job", "payload", "result", "log"} <= ttls(table, job_id).keys()
    world.fail(job_id)
    assert world.ctx.jobs.bodies(find(world, job_id)).result == "2"


def test_a_life_begins_anew_twice_a_year_and_not_with_each_report(world: World, table: DynamoTable) -> None:
    job_id = world.running(payload={"a": 1})
    first = ttls(table, job_id)
    world.pass_time(180 * DAY)
    world.report(job_id, fields={"n": 1})
    assert ttls(table, job_id) == first
    world.pass_time(10 * DAY)
    world.report(job_id, message="alive")
    renewed = ttls(table, job_id)
    assert renewed["payload"] - renewed["job"] == first["payload"] - first["job"] == RETENTION
    assert renewed["job"] - first["job"] == timedelta(days=190)
    world.pass_time(1)
    world.report(job_id, message="still")
    assert ttls(table, job_id)["payload"] == renewed["payload"]


def test_a_job_for_a_day_years_ahead_is_there_on_that_day(world: World, table: DynamoTable) -> None:
    job_id = world.job(payload={"a": 1}, scheduled_at=world.time + timedelta(days=1_000))
    world.pass_time(1_000 * DAY)
    expire(world, table)
    world.sweep()
    assert find(world, job_id).status == "pending"
    assert payload_of(world, job_id) == '{"a":1}'
    assert listed(world) == [job_id]


def test_a_job_that_waits_in_its_queue_is_not_given_up(world: World, table: DynamoTable) -> None:
    job_id = world.job(payload={"a": 1}, queue="slow")
    for _ in range(5):
        world.pass_time(150 * DAY)
        expire(world, table)
        for _ in range(MINUTES_A_DAY):
            world.pass_time(60)
            keep_waiting(world.ctx, NAMESPACE, "slow", world.time)
    assert payload_of(world, job_id) == '{"a":1}'


def test_a_job_of_which_nothing_was_heard_for_a_year_is_given_up(world: World, table: DynamoTable) -> None:
    job_id = world.running()
    world.pass_time(366 * DAY)
    with pytest.raises(JobNotFound):
        find(world, job_id)


def test_a_list_walks_on_over_days_of_which_nothing_is_left(world: World, table: DynamoTable) -> None:
    old = world.running()
    for _ in range(DAY_BUDGET + 10):
        world.pass_time(DAY)
        world.complete(world.running())
    world.pass_time(30 * DAY)
    expire(world, table)
    pages, place = 0, None
    found: list[str] = []
    while pages == 0 or place is not None:
        jobs, place = list_jobs(world.ctx, NAMESPACE, JobFilter(), before_place=place, page_size=50)
        found += [job.job_id for job in jobs]
        pages += 1
    assert (found, pages) == ([old], 2)


def test_the_days_of_a_list_expire_too(world: World, table: DynamoTable) -> None:
    world.complete(world.running())
    world.pass_time(3 * 366 * DAY)
    expire(world, table)
    assert table.get(keys.listed_day(NAMESPACE, "jobs", date(2026, 1, 31))) is None


@pytest.mark.parametrize("jobs", [1, 6])
def test_a_wait_is_kept_for_a_while_after_its_end(table: DynamoTable, jobs: int) -> None:
    world = World(table, spec_page_entries=4)
    waited = [world.running() for _ in range(jobs)]
    answer = world.wait(dict.fromkeys(waited), wait_options={"expires_in": DAY})
    world.run_fan_out()
    for job_id in waited:
        world.complete(job_id)
    world.run_matcher()
    assert world.show(answer)["status"] == "met"
    wait_id = str(answer["wait_id"])
    row = table.get(keys.wait(NAMESPACE, wait_id))
    assert row is not None
    assert row["ttl"] == (world.time + RETENTION).timestamp()
    world.pass_time(30 * DAY)
    assert world.ctx.waits.find(NAMESPACE, wait_id) is None
    assert waits_api.list_waits(world.ctx, NAMESPACE, status=None, before_place=None, page_size=50) == ([], None)
    world.pass_time(2 * DAY)
    expire(world, table)
    assert not [row for row in stored(table) if wait_id in row["pk"]["S"] + row["sk"]["S"]]
