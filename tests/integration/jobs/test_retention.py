"""Ended jobs and waits are retained for a time and then removed with all their rows. Open ones are never lost."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from tests.support.live import stored
from tests.support.world import NAMESPACE, World
from vigil_core.domain.errors import JobNotFound
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.retention import OPEN_JOB_TTL
from vigil_core.services.jobs import transitions
from vigil_core.services.jobs.listing import JobFilter, list_jobs
from vigil_core.services.pagination import MAX_DAYS_READ
from vigil_core.services.queues.renew_ttl import MINUTES_PER_DAY, renew_queue_ttl
from vigil_core.services.waits import requests
from vigil_core.store import keys
from vigil_core.store.jobs.jobs import JobStore
from vigil_core.store.table import DynamoTable

RETENTION = timedelta(days=30)
DAY = 86_400


def ttls(table: DynamoTable, job_id: str) -> dict[str, datetime]:
    """Return the expiry time of each row of a job by the row's entity."""
    rows = [row for row in stored(table) if row["pk"]["S"] == keys.job(NAMESPACE, job_id).pk]
    return {row["entity"]["S"]: datetime.fromtimestamp(int(row["ttl"]["N"]), UTC) for row in rows}


def expire(world: World, table: DynamoTable) -> None:
    """Remove the expired rows, as DynamoDB does after some delay."""
    for row in list(stored(table)):
        if "ttl" in row and int(row["ttl"]["N"]) <= world.time.timestamp():
            table.batch_write(deletes=[keys.Key(row["pk"]["S"], row["sk"]["S"])])


def find(world: World, job_id: str) -> Job:
    return transitions.find_job(world.ctx, NAMESPACE, job_id)


def listed(world: World) -> list[str]:
    listed_jobs, cursor = list_jobs(world.ctx, NAMESPACE, JobFilter(), before_cursor=None, page_size=50)
    assert cursor is None
    return [job.job_id for job in listed_jobs]


def payload_of(world: World, job_id: str) -> str | None:
    return world.ctx.jobs.payloads(find(world, job_id)).payload


def many_reports(world: World, job_id: str) -> None:
    """Send enough reports that part of the history moves from the state row to other rows."""
    for number in range(10):
        world.report(job_id, fields={"n": number})


def test_all_rows_of_an_ended_job_expire_together(world: World, table: DynamoTable) -> None:
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


def test_expired_job_is_hidden_before_its_rows_are_removed(world: World) -> None:
    job_id = world.running(unique_key="one")
    world.complete(job_id)
    world.pass_time(30 * DAY)
    with pytest.raises(JobNotFound):
        find(world, job_id)
    assert world.ctx.jobs.find_many(NAMESPACE, [job_id]) == {}
    assert listed(world) == []
    assert world.job(unique_key="one") != job_id


def test_retried_job_does_not_expire(world: World, table: DynamoTable) -> None:
    job_id = world.running(payload={"a": 1})
    many_reports(world, job_id)
    world.fail(job_id)
    world.pass_time(29 * DAY)
    world.do(transitions.retry, job_id)
    world.pass_time(100 * DAY)
    expire(world, table)
    assert payload_of(world, job_id) == '{"a":1}'
    assert len(world.ctx.jobs.history(find(world, job_id))) == 14
    world.do(transitions.start, job_id)
    world.complete(job_id)
    assert set(ttls(table, job_id).values()) == {world.time + RETENTION}


def test_late_expiry_write_of_an_earlier_end_does_not_affect_a_retried_job(world: World, table: DynamoTable) -> None:
    """Retry the job between the write of its end and the follow-up writes, all within one second."""
    job_id = world.running(payload={"a": 1})
    before = find(world, job_id)
    world.fail(job_id)
    ended = find(world, job_id)
    world.do(transitions.retry, job_id)
    expiry_times = ttls(table, job_id)
    world.ctx.jobs._expire_side_rows(before, ended)
    assert ttls(table, job_id) == expiry_times


def test_crash_after_the_end_leaves_only_rows_that_expire_later(
    world: World, table: DynamoTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = world.running(payload={"a": 1})
    monkeypatch.setattr(JobStore, "_expire_side_rows", lambda *_: None)
    world.complete(job_id)
    expiry_times = ttls(table, job_id)
    assert expiry_times["job"] < expiry_times["payload"] <= world.time + OPEN_JOB_TTL + RETENTION + timedelta(minutes=1)
    world.pass_time(30 * DAY)
    with pytest.raises(JobNotFound):
        find(world, job_id)


@pytest.mark.parametrize("sign", ["report", "progress"])
def test_job_open_for_years_retains_all_its_rows(world: World, table: DynamoTable, sign: str) -> None:
    job_id = world.running(payload={"a": 1}, fallback=2)
    many_reports(world, job_id)
    reports: list[Any] = [{"fields": {"n": n}} if sign == "report" else {"message": str(n)} for n in range(8)]
    for report in reports:
        world.pass_time(170 * DAY)
        expire(world, table)
        world.report(job_id, **report)
    assert payload_of(world, job_id) == '{"a":1}'
    assert listed(world) == [job_id]
    assert {"job", "payload", "result", "log"} <= ttls(table, job_id).keys()
    world.fail(job_id)
    assert world.ctx.jobs.payloads(find(world, job_id)).result == "2"


def test_ttl_is_renewed_twice_a_year_and_not_with_each_report(world: World, table: DynamoTable) -> None:
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


def test_job_scheduled_years_ahead_exists_on_that_day(world: World, table: DynamoTable) -> None:
    job_id = world.job(payload={"a": 1}, scheduled_at=world.time + timedelta(days=1_000))
    for _ in range(50):
        world.pass_time(20 * DAY)
        expire(world, table)
        for minute in range(MINUTES_PER_DAY):
            renew_queue_ttl(world.ctx, NAMESPACE, "default", world.time + timedelta(minutes=minute))
    world.sweep()
    assert find(world, job_id).status == "pending"
    assert payload_of(world, job_id) == '{"a":1}'
    assert listed(world) == [job_id]


def test_queued_job_is_renewed_and_does_not_expire(world: World, table: DynamoTable) -> None:
    job_id = world.job(payload={"a": 1}, queue="slow")
    for _ in range(5):
        world.pass_time(150 * DAY)
        expire(world, table)
        for _ in range(MINUTES_PER_DAY):
            world.pass_time(60)
            renew_queue_ttl(world.ctx, NAMESPACE, "slow", world.time)
    assert payload_of(world, job_id) == '{"a":1}'


def test_job_without_reports_for_a_year_expires(world: World, table: DynamoTable) -> None:
    job_id = world.running()
    world.pass_time(366 * DAY)
    with pytest.raises(JobNotFound):
        find(world, job_id)


def test_list_continues_past_days_without_jobs(world: World, table: DynamoTable) -> None:
    old = world.running()
    for _ in range(MAX_DAYS_READ + 10):
        world.pass_time(DAY)
        world.complete(world.running())
    world.pass_time(30 * DAY)
    expire(world, table)
    pages, cursor = 0, None
    listed_ids: list[str] = []
    while pages == 0 or cursor is not None:
        jobs, cursor = list_jobs(world.ctx, NAMESPACE, JobFilter(), before_cursor=cursor, page_size=50)
        listed_ids += [job.job_id for job in jobs]
        pages += 1
    assert (listed_ids, pages) == ([old], 2)


def test_day_rows_of_a_list_expire(world: World, table: DynamoTable) -> None:
    world.complete(world.running())
    world.pass_time(3 * 366 * DAY)
    expire(world, table)
    assert table.get(keys.day_mark(NAMESPACE, "jobs", date(2026, 1, 31))) is None


@pytest.mark.parametrize("jobs", [1, 6])
def test_ended_wait_is_retained_and_then_expires(table: DynamoTable, jobs: int) -> None:
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
    assert requests.list_waits(world.ctx, NAMESPACE, status=None, before_cursor=None, page_size=50) == ([], None)
    world.pass_time(2 * DAY)
    expire(world, table)
    assert not [row for row in stored(table) if wait_id in row["pk"]["S"] + row["sk"]["S"]]
