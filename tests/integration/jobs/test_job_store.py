"""Jobs in the table: what goes in comes out, small, and nobody overwrites anybody."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
import uuid6

from tests.support.world import NAMESPACE, World
from vigil_core.domain.errors import JobCreationFailed, JobNotFound, PayloadTooLarge
from vigil_core.domain.jobs import job as job_rules
from vigil_core.domain.jobs.job import Job, NewJob, Report
from vigil_core.services.jobs import submit as submit_job
from vigil_core.services.jobs import transitions as change_job
from vigil_core.store import keys
from vigil_core.store.jobs import jobs as job_rows
from vigil_core.store.jobs.jobs import JobStore
from vigil_core.store.table import ConditionFailed, DynamoTable, query_all


def find(world: World, job_id: str) -> Job:
    return change_job.find_job(world.ctx, NAMESPACE, job_id)


def test_everything_survives_the_table(world: World) -> None:
    fields: dict[str, Any] = {"n": 12345678901234567890, "d": Decimal("1.10"), "list": [1, "ä"], "o": {"k": None}}
    job_id = world.running(
        name="n", queue="q", priority="high", fields=fields, tags=["t"], trace_id="tr", correlation_id="co",
        payload={"exact": Decimal("3.14159265358979323846264338327950288")}, unique_key="u", mutex_key="m",
    )  # fmt: skip
    before = world.report(job_id, stage="boot", progress=Decimal("0.25"), message="m", milestones=["a", "b"])
    assert find(world, job_id) == before
    done = world.complete(job_id, result=[Decimal("0.1")], health="odd")
    assert find(world, job_id) == done
    bodies = world.ctx.jobs.bodies(done)
    assert (bodies.payload, bodies.result) == ('{"exact":3.14159265358979323846264338327950288}', "[0.1]")


def test_progress_reported_alone_is_merged_and_stays_out_of_the_state(world: World, table: DynamoTable) -> None:
    job_id = world.running()
    state = table.get(keys.job(NAMESPACE, job_id))
    world.report(job_id, progress=Decimal("0.5"), message="half")
    assert table.get(keys.job(NAMESPACE, job_id)) == state
    assert (find(world, job_id).progress, find(world, job_id).message) == (Decimal("0.5"), "half")
    world.report(job_id, stage="boot")
    assert (find(world, job_id).progress, find(world, job_id).message) == (Decimal("0.5"), "half")
    world.fail(job_id)
    world.do(change_job.retry, job_id)
    assert (find(world, job_id).progress, find(world, job_id).message) == (Decimal(0), None)


def test_a_tracked_job_stays_within_one_write_unit(world: World, table: DynamoTable) -> None:
    """The size of what is written, as DynamoDB counts it: names and values in UTF-8."""
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


def test_a_long_history_is_kept_whole(world: World, table: DynamoTable) -> None:
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


def test_two_changes_of_one_version_do_not_both_win(world: World) -> None:
    job_id = world.running()
    seen = find(world, job_id)
    world.report(job_id, stage="boot")
    with pytest.raises(ConditionFailed):
        world.ctx.jobs.save(seen, job_rules.complete(seen, now=world.ctx.now(), by="k"))
    assert world.report(job_id, stage="setup").version == seen.version + 2


def test_a_conflict_is_decided_anew(world: World) -> None:
    """Somebody else's report lands between our read and our write: ours is applied to what theirs left."""
    job_id = world.running()
    save = world.ctx.jobs.save
    others = iter([Report(milestones=["theirs"])])

    def meddle(before: Job, after: Job, claims: Any = ()) -> None:
        for said in others:
            world.ctx.jobs.save(before, job_rules.report(before, said, now=world.ctx.now(), by="other"))
        save(before, after, claims)

    world.ctx.jobs.save = meddle  # type: ignore[method-assign]
    world.report(job_id, milestones=["ours"])
    assert find(world, job_id).milestones == ("theirs", "ours")


class TestCreation:
    def test_a_taken_id(self, world: World) -> None:
        job_id = world.job(payload=1)
        with pytest.raises(JobCreationFailed, match="already exists"):
            world.job(job_id=job_id, payload=2)
        assert world.ctx.jobs.bodies(find(world, job_id)).payload == "1"

    def test_a_creation_that_is_resumed_creates_once(self, world: World) -> None:
        new = NewJob(job_id=str(uuid6.uuid7()), job_type="t", mutex_key="m")
        first = submit_job.submit(world.ctx, NAMESPACE, new, by="k")
        again = submit_job.submit(world.ctx, NAMESPACE, new, by="k", resumed=True)
        assert again == first

    def test_a_payload_over_the_limit(self, world: World) -> None:
        with pytest.raises(PayloadTooLarge, match="/payload"):
            world.job(payload="x" * job_rows.MAX_BODY_BYTES)

    def test_unique_key_gives_the_live_job(self, world: World) -> None:
        first = world.job(unique_key="nightly")
        assert world.job(unique_key="nightly") == first
        world.do(change_job.start, first)
        world.complete(first)
        second = world.job(unique_key="nightly")
        assert second != first
        assert world.job(unique_key="nightly") == second

    def test_mutex_refuses_while_another_lives(self, world: World) -> None:
        holder = world.running(mutex_key="cache")
        with pytest.raises(JobCreationFailed, match=r"^Another operation is already running$"):
            world.job(mutex_key="cache")
        world.fail(holder)
        second = world.job(mutex_key="cache")
        with pytest.raises(JobCreationFailed):
            world.do(change_job.retry, holder)
        world.do(change_job.cancel, second)
        world.do(change_job.retry, holder)
        with pytest.raises(JobCreationFailed):
            world.job(mutex_key="cache")

    def test_of_two_takers_at_once_one_wins(self, world: World) -> None:
        create = world.ctx.jobs.create
        rivals = iter([NewJob(job_id=str(uuid6.uuid7()), job_type="t", mutex_key="m")])

        def meddle(job: Job, claims: Any = ()) -> None:
            for rival in rivals:
                submit_job.submit(world.ctx, NAMESPACE, rival, by="rival")
            create(job, claims)

        world.ctx.jobs.create = meddle  # type: ignore[method-assign]
        with pytest.raises(JobCreationFailed, match="already running"):
            world.job(mutex_key="m")


class TestDeletion:
    def test_only_a_tombstone_is_left_and_the_id_stays_taken(self, world: World, table: DynamoTable) -> None:
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

    def test_cancel_is_enforced_by_the_sweeper(self, world: World) -> None:
        job_id = world.running()
        world.do(change_job.cancel, job_id)
        world.pass_time(59)
        assert world.sweep() == 0
        world.pass_time(2)
        assert world.sweep() == 1
        assert find(world, job_id).status == "cancelled"
        assert world.sweep() == 0


def test_another_namespace_sees_nothing(world: World) -> None:
    job_id = world.job(unique_key="u", mutex_key="m")
    with pytest.raises(JobNotFound):
        change_job.find_job(world.ctx, "other", job_id)
    other = NewJob(job_id=str(uuid6.uuid7()), job_type="t", unique_key="u", mutex_key="m")
    assert not submit_job.submit(world.ctx, "other", other, by="k").existing


def test_rows_are_inverse_to_jobs(world: World, table: DynamoTable) -> None:
    job_id = world.running(fields={"a": [Decimal("1.0")]})
    row = table.get(keys.job(NAMESPACE, job_id))
    assert row is not None
    job = job_rows.job_from_row(row)
    assert {name: value for name, value in job_rows.job_to_row(job).items() if value is not None} == row


class TestWhoeverIsWaitedFor:
    """From its first wait on a job is shown to the matcher, whatever else happens to it at that moment."""

    def test_a_job_that_nobody_waits_for_is_kept_from_the_matcher(self, world: World, table: DynamoTable) -> None:
        job_id = world.running()
        state = table.get(keys.job(NAMESPACE, job_id))
        assert state is not None
        assert "for_matcher" not in state
        world.wait({job_id: {"job_stage": "boot"}})
        state = table.get(keys.job(NAMESPACE, job_id))
        assert state is not None
        assert state["for_matcher"] is True

    def test_a_change_that_read_it_without_the_mark_is_decided_anew(self, world: World) -> None:
        before = find(world, world.running())
        late = job_rules.report(before, Report(stage="boot"), now=world.time, by="k")
        marked = world.ctx.jobs.mark_awaited(before)
        assert marked is not None
        assert (marked.version, marked.awaited) == (before.version, True)
        with pytest.raises(ConditionFailed):
            world.ctx.jobs.save(before, late)
        assert world.report(before.job_id, stage="boot").awaited

    def test_who_follows_a_job_marks_it_the_same_way(self, world: World) -> None:
        before = find(world, world.running())
        late = job_rules.report(before, Report(stage="boot"), now=world.time, by="k")
        marked = world.ctx.jobs.mark_followed(before)
        assert marked is not None
        assert (marked.version, marked.followed, marked.awaited) == (before.version, True, False)
        with pytest.raises(ConditionFailed):
            world.ctx.jobs.save(before, late)
        assert world.report(before.job_id, stage="boot").followed

    def test_the_version_that_marking_met_counts(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        job_id = world.running()
        read = JobStore.find_many

        def read_and_be_overtaken(store: JobStore, *args: Any, **kwargs: Any) -> dict[str, Job]:
            found = read(store, *args, **kwargs)
            if find(world, job_id).stage == "submit":
                world.report(job_id, stage="boot")
            return found

        monkeypatch.setattr(JobStore, "find_many", read_and_be_overtaken)
        assert world.wait({job_id: {"job_stage": "boot"}})["status"] == "met"

    def test_a_wait_that_is_met_at_once_leaves_no_mark(self, world: World) -> None:
        job_id = world.running()
        world.wait({job_id: {"job_stage": "submit"}})
        assert not find(world, job_id).awaited

    def test_of_a_job_that_is_gone_nothing_is_marked(self, world: World) -> None:
        job = find(world, world.running())
        nobody = replace(job, job_id=str(uuid6.uuid7()))
        assert world.ctx.jobs.mark_awaited(nobody) is None
        with pytest.raises(JobNotFound):
            find(world, nobody.job_id)
