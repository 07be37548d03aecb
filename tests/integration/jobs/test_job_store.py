"""Jobs in the table: they are read back unchanged, take little space, and concurrent writes overwrite nothing."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
import uuid6

from tests.support.world import NAMESPACE, World
from vigil_core.domain.errors import JobCreationFailed, JobNotFound, PayloadTooLarge
from vigil_core.domain.jobs import transitions
from vigil_core.domain.jobs.job import Job, NewJob, Report
from vigil_core.services.jobs import submit as submit_job
from vigil_core.services.jobs import transitions as job_transitions
from vigil_core.store import keys
from vigil_core.store.jobs import job_rows
from vigil_core.store.jobs.jobs import JobStore
from vigil_core.store.jobs.payloads import MAX_PAYLOAD_BYTES
from vigil_core.store.table import ConditionFailed, DynamoTable, query_all


def find(world: World, job_id: str) -> Job:
    return job_transitions.find_job(world.ctx, NAMESPACE, job_id)


def test_stored_job_is_read_back_unchanged(world: World) -> None:
    fields: dict[str, Any] = {"n": 12345678901234567890, "d": Decimal("1.10"), "list": [1, "ä"], "o": {"k": None}}
    job_id = world.running(
        name="n", queue="q", priority="high", fields=fields, tags=["t"], trace_id="tr", correlation_id="co",
        payload={"exact": Decimal("3.14159265358979323846264338327950288")}, unique_key="u", mutex_key="m",
    )  # fmt: skip
    before = world.report(job_id, stage="boot", progress=Decimal("0.25"), message="m", milestones=["a", "b"])
    assert find(world, job_id) == before
    completed = world.complete(job_id, result=[Decimal("0.1")], health="odd")
    assert find(world, job_id) == completed
    bodies = world.ctx.jobs.payloads(completed)
    assert (bodies.payload, bodies.result) == ('{"exact":3.14159265358979323846264338327950288}', "[0.1]")


def test_progress_alone_is_stored_outside_the_state_row_and_merged(world: World, table: DynamoTable) -> None:
    job_id = world.running()
    state = table.get(keys.job(NAMESPACE, job_id))
    world.report(job_id, progress=Decimal("0.5"), message="half")
    assert table.get(keys.job(NAMESPACE, job_id)) == state
    assert (find(world, job_id).progress, find(world, job_id).message) == (Decimal("0.5"), "half")
    world.report(job_id, stage="boot")
    assert (find(world, job_id).progress, find(world, job_id).message) == (Decimal("0.5"), "half")
    world.fail(job_id)
    world.do(job_transitions.retry, job_id)
    assert (find(world, job_id).progress, find(world, job_id).message) == (Decimal(0), None)


def test_row_of_a_tracked_job_fits_one_write_unit(world: World, table: DynamoTable) -> None:
    """Check the row size as DynamoDB counts it: attribute names and values in UTF-8."""
    job_id = world.running(name="boot test", tags=["nightly"], payload={"x": 1})
    for stage in ("download", "boot", "setup", "running", "finish"):
        world.report(job_id, stage=stage, progress=Decimal("0.5"), fields={"boot_seconds": 45}, milestones=[stage])
    world.complete(job_id, result={"ok": True})
    row = table.get(keys.job(NAMESPACE, job_id))
    assert row is not None
    assert sum(len(name) + size_of(value) for name, value in row.items()) <= 1024
    assert not list(query_all(table, keys.job(NAMESPACE, job_id).pk, begins="L#"))


def size_of(value: Any) -> int:
    if isinstance(value, bool) or value is None:
        return 1
    if isinstance(value, int | Decimal):
        return len(str(value)) // 2 + 2
    if isinstance(value, list):
        return 3 + sum(size_of(item) + 1 for item in value)
    return len(str(value).encode())


def test_long_history_is_stored_completely(world: World, table: DynamoTable) -> None:
    job_id = world.running()
    for n in range(40):
        world.report(job_id, fields={"n": n})
    job = world.complete(job_id)
    history = world.ctx.jobs.history(job)
    assert [line.version for line in history] == list(range(1, 44))
    assert [line.kind for line in history][:3] == ["created", "started", "updated"]
    row = table.get(keys.job(NAMESPACE, job_id))
    assert row is not None
    assert len(row["log"]) < 1024


def test_second_save_of_the_same_version_fails(world: World) -> None:
    job_id = world.running()
    seen = find(world, job_id)
    world.report(job_id, stage="boot")
    with pytest.raises(ConditionFailed):
        world.ctx.jobs.save(seen, transitions.complete(seen, now=world.ctx.now(), actor="k"))
    assert world.report(job_id, stage="setup").version == seen.version + 2


def test_conflicting_report_is_applied_again_to_the_new_version(world: World) -> None:
    """Save another report between the read and the write of the first one: the first is applied to the new version."""
    job_id = world.running()
    save = world.ctx.jobs.save
    others = iter([Report(milestones=["theirs"])])

    def write_after_another(before: Job, after: Job, acquisitions: Any = ()) -> None:
        for other_report in others:
            world.ctx.jobs.save(before, transitions.report(before, other_report, now=world.ctx.now(), actor="other"))
        save(before, after, acquisitions)

    world.ctx.jobs.save = write_after_another  # type: ignore[method-assign]
    world.report(job_id, milestones=["ours"])
    assert find(world, job_id).milestones == ("theirs", "ours")


class TestCreation:
    def test_creation_with_a_taken_id_is_refused(self, world: World) -> None:
        job_id = world.job(payload=1)
        with pytest.raises(JobCreationFailed, match="already exists"):
            world.job(job_id=job_id, payload=2)
        assert world.ctx.jobs.payloads(find(world, job_id)).payload == "1"

    def test_resumed_creation_creates_one_job(self, world: World) -> None:
        new = NewJob(job_id=str(uuid6.uuid7()), job_type="t", mutex_key="m")
        first = submit_job.submit(world.ctx, NAMESPACE, new, actor="k")
        resumed = submit_job.submit(world.ctx, NAMESPACE, new, actor="k", resumed=True)
        assert resumed == first

    def test_payload_over_the_limit_is_refused(self, world: World) -> None:
        with pytest.raises(PayloadTooLarge, match="/payload"):
            world.job(payload="x" * MAX_PAYLOAD_BYTES)

    def test_unique_key_returns_the_live_job(self, world: World) -> None:
        first = world.job(unique_key="nightly")
        assert world.job(unique_key="nightly") == first
        world.do(job_transitions.start, first)
        world.complete(first)
        second = world.job(unique_key="nightly")
        assert second != first
        assert world.job(unique_key="nightly") == second

    def test_mutex_refuses_a_job_while_another_is_open(self, world: World) -> None:
        owner = world.running(mutex_key="cache")
        with pytest.raises(JobCreationFailed, match=r"^Another operation is already running$"):
            world.job(mutex_key="cache")
        world.fail(owner)
        second = world.job(mutex_key="cache")
        with pytest.raises(JobCreationFailed):
            world.do(job_transitions.retry, owner)
        world.do(job_transitions.cancel, second)
        world.do(job_transitions.retry, owner)
        with pytest.raises(JobCreationFailed):
            world.job(mutex_key="cache")

    def test_one_of_two_concurrent_creations_acquires_the_mutex(self, world: World) -> None:
        create = world.ctx.jobs.create
        rivals = iter([NewJob(job_id=str(uuid6.uuid7()), job_type="t", mutex_key="m")])

        def write_after_another(job: Job, acquisitions: Any = ()) -> None:
            for rival in rivals:
                submit_job.submit(world.ctx, NAMESPACE, rival, actor="rival")
            create(job, acquisitions)

        world.ctx.jobs.create = write_after_another  # type: ignore[method-assign]
        with pytest.raises(JobCreationFailed, match="already running"):
            world.job(mutex_key="m")


class TestDeletion:
    def test_deleted_job_leaves_a_tombstone_that_reserves_its_id(self, world: World, table: DynamoTable) -> None:
        job_id = world.running(payload=1)
        world.report(job_id, progress=Decimal("0.5"))
        world.complete(job_id, result=2)
        world.delete(job_id)
        world.run_matcher()
        with pytest.raises(JobNotFound):
            find(world, job_id)
        assert [row["sk"] for row in query_all(table, keys.job(NAMESPACE, job_id).pk)] == ["A"]
        with pytest.raises(JobCreationFailed):
            world.job(job_id=job_id)

    def test_sweeper_enforces_a_cancel_after_its_grace(self, world: World) -> None:
        job_id = world.running()
        world.do(job_transitions.cancel, job_id)
        world.pass_time(59)
        assert world.sweep() == 0
        world.pass_time(2)
        assert world.sweep() == 1
        assert find(world, job_id).status == "cancelled"
        assert world.sweep() == 0


def test_jobs_and_keys_of_another_namespace_are_separate(world: World) -> None:
    job_id = world.job(unique_key="u", mutex_key="m")
    with pytest.raises(JobNotFound):
        job_transitions.find_job(world.ctx, "other", job_id)
    other = NewJob(job_id=str(uuid6.uuid7()), job_type="t", unique_key="u", mutex_key="m")
    assert not submit_job.submit(world.ctx, "other", other, actor="k").existing


def test_job_and_row_mappers_are_inverse(world: World, table: DynamoTable) -> None:
    job_id = world.running(fields={"a": [Decimal("1.0")]})
    row = table.get(keys.job(NAMESPACE, job_id))
    assert row is not None
    job = job_rows.job_from_row(row)
    assert {name: value for name, value in job_rows.job_to_row(job).items() if value is not None} == row


class TestWaitMark:
    """The waiter mark: from its first wait on, a job's changes reach the matcher, even if it changes at that moment."""

    def test_only_a_job_with_waits_is_sent_to_the_matcher(self, world: World, table: DynamoTable) -> None:
        job_id = world.running()
        state = table.get(keys.job(NAMESPACE, job_id))
        assert state is not None
        assert "needs_matching" not in state
        world.wait({job_id: {"job_stage": "boot"}})
        state = table.get(keys.job(NAMESPACE, job_id))
        assert state is not None
        assert state["needs_matching"] is True

    def test_change_based_on_an_unmarked_job_is_retried(self, world: World) -> None:
        before = find(world, world.running())
        late = transitions.report(before, Report(stage="boot"), now=world.time, actor="k")
        marked = world.ctx.jobs.mark_has_waits(before)
        assert marked is not None
        assert (marked.version, marked.has_waits) == (before.version, True)
        with pytest.raises(ConditionFailed):
            world.ctx.jobs.save(before, late)
        assert world.report(before.job_id, stage="boot").has_waits

    def test_subscription_marks_the_job_like_a_wait(self, world: World) -> None:
        before = find(world, world.running())
        late = transitions.report(before, Report(stage="boot"), now=world.time, actor="k")
        marked = world.ctx.jobs.mark_has_subscribers(before)
        assert marked is not None
        assert (marked.version, marked.has_subscribers, marked.has_waits) == (before.version, True, False)
        with pytest.raises(ConditionFailed):
            world.ctx.jobs.save(before, late)
        assert world.report(before.job_id, stage="boot").has_subscribers

    def test_version_found_while_marking_is_evaluated(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        job_id = world.running()
        read = JobStore.find_many

        def read_then_change(store: JobStore, *args: Any, **kwargs: Any) -> dict[str, Job]:
            job = read(store, *args, **kwargs)
            if find(world, job_id).stage == "submit":
                world.report(job_id, stage="boot")
            return job

        monkeypatch.setattr(JobStore, "find_many", read_then_change)
        assert world.wait({job_id: {"job_stage": "boot"}})["status"] == "met"

    def test_wait_met_at_registration_leaves_no_mark(self, world: World) -> None:
        job_id = world.running()
        world.wait({job_id: {"job_stage": "submit"}})
        assert not find(world, job_id).has_waits

    def test_missing_job_is_not_marked(self, world: World) -> None:
        job = find(world, world.running())
        missing_job = replace(job, job_id=str(uuid6.uuid7()))
        assert world.ctx.jobs.mark_has_waits(missing_job) is None
        with pytest.raises(JobNotFound):
            find(world, missing_job.job_id)
