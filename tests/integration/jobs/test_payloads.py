"""Payloads and results that are too large for a row: they are S3 objects, and live as long as their job."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.support.world import NAMESPACE, World
from vigil_core.domain.errors import PayloadTooLarge, ValidationFailed
from vigil_core.domain.jobs.job import Job
from vigil_core.services.jobs import transitions
from vigil_core.services.jobs.response_payloads import MAX_TOTAL_BYTES, payloads_of_jobs
from vigil_core.store import keys
from vigil_core.store.jobs.jobs import JobStore
from vigil_core.store.jobs.payloads import MAX_PAYLOAD_BYTES, MAX_RESPONSE_PAYLOAD_BYTES, MAX_ROW_BYTES
from vigil_core.store.table import DynamoTable

DAY = 86_400
LARGE = "x" * (1024 * 1024)
LARGEST = "x" * (MAX_PAYLOAD_BYTES - 2)


def find(world: World, job_id: str) -> Job:
    return transitions.find_job(world.ctx, NAMESPACE, job_id)


def retention_classes(world: World, job_id: str) -> dict[str, str]:
    """Return the retention class of each object of a job by its kind: P for the payload, R for results."""
    prefix = f"payloads/{NAMESPACE}/{job_id}/"
    return {key[len(prefix)]: how for key, (_, how) in world.objects.stored.items() if key.startswith(prefix)}


def upload(world: World, size: int, namespace: str = NAMESPACE) -> str:
    """Upload an object of this size and return its reference."""
    reference = world.ctx.new_id()
    world.objects.put(keys.upload_name(namespace, reference), "{" * size, retention_class="long")
    return reference


def test_large_payload_and_result_are_stored_in_s3_and_read_back(world: World, table: DynamoTable) -> None:
    job_id = world.running(payload={"text": LARGE})
    completed = world.complete(job_id, result=[LARGE])
    bodies = world.ctx.jobs.payloads(find(world, job_id))
    assert (bodies.payload, bodies.result) == (f'{{"text":"{LARGE}"}}', f'["{LARGE}"]')
    assert (bodies.payload_url, bodies.result_url) == (None, None)
    assert retention_classes(world, job_id) == {"P": "ended", "R": "ended"}
    assert completed.payload_ref != completed.result_ref
    row = table.get(keys.job(NAMESPACE, job_id))
    assert row is not None
    assert len(str(row)) < 2_000


@pytest.mark.parametrize(("size", "objects"), [(MAX_ROW_BYTES, 0), (MAX_ROW_BYTES + 1, 1)])
def test_payload_up_to_the_row_limit_is_stored_in_a_row(world: World, size: int, objects: int) -> None:
    text = "x" * (size - 2)
    job_id = world.job(payload=text)
    assert len(world.objects.stored) == objects
    assert world.ctx.jobs.payloads(find(world, job_id)).payload == f'"{text}"'


def test_maximum_payload_and_result_fit_one_response_and_more_is_refused(world: World) -> None:
    job_id = world.running(payload=LARGEST)
    world.complete(job_id, result=LARGEST)
    bodies = world.ctx.jobs.payloads(find(world, job_id))
    assert len(bodies.payload or "") + len(bodies.result or "") == MAX_RESPONSE_PAYLOAD_BYTES
    with pytest.raises(PayloadTooLarge, match="/payload"):
        world.job(payload=LARGEST + "x")
    with pytest.raises(PayloadTooLarge, match="/result"):
        world.complete(world.running(), result=LARGEST + "x")


def test_wait_collects_a_large_result_from_s3(world: World) -> None:
    job_id = world.running(payload=LARGE)
    answer = world.wait({job_id: None}, wait_options={"get_fields": {"result": None}})
    world.complete(job_id, result="y" * (MAX_ROW_BYTES + 10))
    world.run_matcher()
    (values,) = world.show(answer)["waited_jobs"].values()
    assert values["result"].startswith("yyy")


def test_response_of_many_jobs_has_urls_for_payloads_over_its_limit(world: World) -> None:
    jobs = [find(world, world.job(payload=payload)) for payload in (LARGEST, 1, LARGEST, LARGE)]
    first, small, second, third = payloads_of_jobs(world.ctx, jobs)
    assert [len(each.payload or "") for each in (first, small, third)] == [MAX_PAYLOAD_BYTES, 1, len(LARGE) + 2]
    assert second.payload is None
    assert second.payload_url is not None
    assert sum(len(each.payload or "") for each in (first, small, second, third)) <= MAX_TOTAL_BYTES


def test_retried_job_retags_its_objects_as_open(world: World) -> None:
    job_id = world.running(payload=LARGE)
    assert retention_classes(world, job_id) == {"P": "open"}
    world.fail(job_id)
    assert retention_classes(world, job_id) == {"P": "ended"}
    world.do(transitions.retry, job_id)
    assert retention_classes(world, job_id) == {"P": "open"}


def test_retry_during_the_end_leaves_the_object_tagged_as_open(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry the job between the write of its end and the follow-up writes."""
    job_id = world.running(payload=LARGE)
    expire_side_rows: Any = JobStore._expire_side_rows

    def later(store: JobStore, before: Job, after: Job) -> None:
        monkeypatch.undo()
        world.do(transitions.retry, job_id)
        expire_side_rows(store, before, after)

    monkeypatch.setattr(JobStore, "_expire_side_rows", later)
    world.fail(job_id)
    assert find(world, job_id).status == "pending"
    assert retention_classes(world, job_id) == {"P": "open"}


def test_object_is_renewed_with_its_job(world: World) -> None:
    job_id = world.running(payload=LARGE)
    (name,) = world.objects.stored
    world.objects.stored[name] = LARGE, "ended"
    world.pass_time(200 * DAY)
    world.report(job_id, message="alive")
    assert retention_classes(world, job_id) == {"P": "open"}


def test_object_of_a_far_scheduled_job_is_retained_until_then(world: World) -> None:
    job_id = world.job(payload=LARGE, scheduled_at=world.time + timedelta(days=1_000))
    assert retention_classes(world, job_id) == {"P": "long"}
    world.do(transitions.cancel, job_id)
    assert retention_classes(world, job_id) == {"P": "ended"}


def test_deleted_job_removes_its_objects(world: World) -> None:
    job_id = world.running(payload=LARGE, fallback=[LARGE])
    world.complete(job_id, result={"n": LARGE})
    other = world.job(payload=LARGE)
    world.delete(job_id)
    world.run_matcher()
    assert (retention_classes(world, job_id), retention_classes(world, other)) == ({}, {"P": "open"})


def test_large_fallback_becomes_a_large_result(world: World) -> None:
    job_id = world.running(fallback={"text": LARGE})
    world.fail(job_id)
    assert len(world.ctx.jobs.payloads(find(world, job_id)).result or "") > len(LARGE)
    assert retention_classes(world, job_id) == {"R": "ended"}


class TestUploads:
    def test_upload_is_passed_on_without_parsing(self, world: World) -> None:
        """Check an upload that is not valid JSON."""
        reference = upload(world, 10)
        job_id = world.running(payload_upload=reference)
        world.complete(job_id, result_upload=upload(world, 3 * MAX_PAYLOAD_BYTES))
        world.objects.remove([keys.upload_name(NAMESPACE, reference)])
        bodies = world.ctx.jobs.payloads(find(world, job_id))
        assert (bodies.payload, bodies.result) == (None, None)
        assert bodies.payload_url is not None
        assert bodies.result_url is not None
        assert world.objects.get(bodies.payload_url.removeprefix("https://objects/")) == "{" * 10
        assert retention_classes(world, job_id) == {"P": "ended", "R": "ended"}

    def test_upload_of_another_namespace_is_refused(self, world: World) -> None:
        with pytest.raises(ValidationFailed, match="/payload_ref"):
            world.job(payload_upload=upload(world, 10, namespace="other"))

    def test_missing_upload_is_refused(self, world: World) -> None:
        with pytest.raises(ValidationFailed, match="/payload_ref"):
            world.job(payload_upload=world.ctx.new_id())
        job_id = world.running()
        with pytest.raises(ValidationFailed, match="/result_ref"):
            world.complete(job_id, result_upload=world.ctx.new_id())
        assert find(world, job_id).status == "running"

    def test_uploaded_result_is_marked_as_not_collected(self, world: World) -> None:
        job_id = world.running()
        answer = world.wait({job_id: None}, wait_options={"get_fields": {"result": None}})
        world.complete(job_id, result_upload=upload(world, 10))
        world.run_matcher()
        assert world.show(answer)["waited_jobs"] == {
            job_id: {"job_stage": "complete", "result": "", "truncated": "result"}
        }
