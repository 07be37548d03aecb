"""Payloads and results that no row can hold: objects, which come and go with their job."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.support.world import NAMESPACE, World
from vigil_core.domain.errors import PayloadTooLarge, ValidationFailed
from vigil_core.domain.jobs.job import Job
from vigil_core.services.jobs import transitions as change_job
from vigil_core.services.jobs.payloads import MANY_BYTES, bodies_of_many
from vigil_core.store import keys
from vigil_core.store.jobs.jobs import ANSWER_BYTES, MAX_BODY_BYTES, ROW_BYTES, JobStore
from vigil_core.store.table import DynamoTable

DAY = 86_400
LARGE = "x" * (1024 * 1024)
LARGEST = "x" * (MAX_BODY_BYTES - 2)


def find(world: World, job_id: str) -> Job:
    return change_job.find_job(world.ctx, NAMESPACE, job_id)


def kept(world: World, job_id: str) -> dict[str, str]:
    """How long each object of a job is kept, by its kind: P for the payload, R for results."""
    prefix = f"bodies/{NAMESPACE}/{job_id}/"
    return {key[len(prefix)]: how for key, (_, how) in world.objects.stored.items() if key.startswith(prefix)}


def upload(world: World, size: int, namespace: str = NAMESPACE) -> str:
    """Something of this size, uploaded; its reference."""
    reference = world.ctx.new_id()
    world.objects.put(keys.upload_name(namespace, reference), "{" * size, kept="long")
    return reference


def test_a_payload_and_a_result_come_back_as_they_were(world: World, table: DynamoTable) -> None:
    job_id = world.running(payload={"text": LARGE})
    done = world.complete(job_id, result=[LARGE])
    bodies = world.ctx.jobs.bodies(find(world, job_id))
    assert (bodies.payload, bodies.result) == (f'{{"text":"{LARGE}"}}', f'["{LARGE}"]')
    assert (bodies.payload_url, bodies.result_url) == (None, None)
    assert kept(world, job_id) == {"P": "ended", "R": "ended"}
    assert done.payload_ref != done.result_ref
    row = table.get(keys.job(NAMESPACE, job_id))
    assert row is not None
    assert len(str(row)) < 2_000


@pytest.mark.parametrize(("size", "objects"), [(ROW_BYTES, 0), (ROW_BYTES + 1, 1)])
def test_what_a_row_can_hold_is_in_a_row(world: World, size: int, objects: int) -> None:
    text = "x" * (size - 2)
    job_id = world.job(payload=text)
    assert len(world.objects.stored) == objects
    assert world.ctx.jobs.bodies(find(world, job_id)).payload == f'"{text}"'


def test_the_largest_of_both_is_in_one_answer_and_more_is_refused(world: World) -> None:
    job_id = world.running(payload=LARGEST)
    world.complete(job_id, result=LARGEST)
    bodies = world.ctx.jobs.bodies(find(world, job_id))
    assert len(bodies.payload or "") + len(bodies.result or "") == ANSWER_BYTES
    with pytest.raises(PayloadTooLarge, match="/payload"):
        world.job(payload=LARGEST + "x")
    with pytest.raises(PayloadTooLarge, match="/result"):
        world.complete(world.running(), result=LARGEST + "x")


def test_a_wait_collects_a_large_result(world: World) -> None:
    job_id = world.running(payload=LARGE)
    answer = world.wait({job_id: None}, wait_options={"get_fields": {"result": None}})
    world.complete(job_id, result="y" * (ROW_BYTES + 10))
    world.run_matcher()
    (values,) = world.show(answer)["waited_jobs"].values()
    assert values["result"].startswith("yyy")


def test_an_answer_of_many_has_urls_for_what_has_no_room(world: World) -> None:
    jobs = [find(world, world.job(payload=payload)) for payload in (LARGEST, 1, LARGEST, LARGE)]
    first, small, second, third = bodies_of_many(world.ctx, jobs)
    assert [len(each.payload or "") for each in (first, small, third)] == [MAX_BODY_BYTES, 1, len(LARGE) + 2]
    assert second.payload is None
    assert second.payload_url is not None
    assert sum(len(each.payload or "") for each in (first, small, second, third)) <= MANY_BYTES


def test_objects_of_a_job_that_is_retried_are_kept(world: World) -> None:
    job_id = world.running(payload=LARGE)
    assert kept(world, job_id) == {"P": "open"}
    world.fail(job_id)
    assert kept(world, job_id) == {"P": "ended"}
    world.do(change_job.retry, job_id)
    assert kept(world, job_id) == {"P": "open"}


def test_an_object_of_a_job_that_is_retried_as_it_ends_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The retry comes between the end's write and what follows it."""
    job_id = world.running(payload=LARGE)
    let_go: Any = JobStore._let_go

    def later(store: JobStore, before: Job, after: Job) -> None:
        monkeypatch.undo()
        world.do(change_job.retry, job_id)
        let_go(store, before, after)

    monkeypatch.setattr(JobStore, "_let_go", later)
    world.fail(job_id)
    assert find(world, job_id).status == "pending"
    assert kept(world, job_id) == {"P": "open"}


def test_an_object_is_kept_anew_with_its_job(world: World) -> None:
    job_id = world.running(payload=LARGE)
    (name,) = world.objects.stored
    world.objects.stored[name] = LARGE, "ended"
    world.pass_time(200 * DAY)
    world.report(job_id, message="alive")
    assert kept(world, job_id) == {"P": "open"}


def test_an_object_of_a_job_for_years_ahead_is_kept_until_then(world: World) -> None:
    job_id = world.job(payload=LARGE, scheduled_at=world.time + timedelta(days=1_000))
    assert kept(world, job_id) == {"P": "long"}
    world.do(change_job.cancel, job_id)
    assert kept(world, job_id) == {"P": "ended"}


def test_a_job_that_is_deleted_takes_its_objects_along(world: World) -> None:
    job_id = world.running(payload=LARGE, fallback=[LARGE])
    world.complete(job_id, result={"n": LARGE})
    other = world.job(payload=LARGE)
    world.delete(job_id)
    world.run_matcher()
    assert (kept(world, job_id), kept(world, other)) == ({}, {"P": "open"})


def test_a_fallback_may_be_large(world: World) -> None:
    job_id = world.running(fallback={"text": LARGE})
    world.fail(job_id)
    assert len(world.ctx.jobs.bodies(find(world, job_id)).result or "") > len(LARGE)
    assert kept(world, job_id) == {"R": "ended"}


class TestUploads:
    def test_an_upload_is_handed_on_unread(self, world: World) -> None:
        """Whatever it is: this one is no JSON."""
        reference = upload(world, 10)
        job_id = world.running(payload_upload=reference)
        world.complete(job_id, result_upload=upload(world, 3 * MAX_BODY_BYTES))
        world.objects.remove([keys.upload_name(NAMESPACE, reference)])
        bodies = world.ctx.jobs.bodies(find(world, job_id))
        assert (bodies.payload, bodies.result) == (None, None)
        assert bodies.payload_url is not None
        assert bodies.result_url is not None
        assert world.objects.get(bodies.payload_url.removeprefix("https://objects/")) == "{" * 10
        assert kept(world, job_id) == {"P": "ended", "R": "ended"}

    def test_an_upload_is_its_namespaces_own(self, world: World) -> None:
        with pytest.raises(ValidationFailed, match="/payload_ref"):
            world.job(payload_upload=upload(world, 10, namespace="other"))

    def test_an_upload_has_to_be_there(self, world: World) -> None:
        with pytest.raises(ValidationFailed, match="/payload_ref"):
            world.job(payload_upload=world.ctx.new_id())
        job_id = world.running()
        with pytest.raises(ValidationFailed, match="/result_ref"):
            world.complete(job_id, result_upload=world.ctx.new_id())
        assert find(world, job_id).status == "running"

    def test_a_result_that_was_uploaded_is_collected_as_none(self, world: World) -> None:
        job_id = world.running()
        answer = world.wait({job_id: None}, wait_options={"get_fields": {"result": None}})
        world.complete(job_id, result_upload=upload(world, 10))
        world.run_matcher()
        assert world.show(answer)["waited_jobs"] == {job_id: {"job_stage": "complete", "result": ""}}
