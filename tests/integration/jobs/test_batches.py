"""Batches: the items run, the batch ends with its last item, and no item and no end is created twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.world import KEY, NAMESPACE, World
from vigil_core.domain.errors import InvalidTransition, JobCreationFailed
from vigil_core.domain.exact_json import loads
from vigil_core.domain.jobs import batch
from vigil_core.domain.jobs.batch import item_id
from vigil_core.domain.jobs.job import Job
from vigil_core.services.background import matcher
from vigil_core.services.background.fan_out import fan_out
from vigil_core.services.jobs import batches, transitions
from vigil_core.services.jobs.listing import JobFilter, list_jobs
from vigil_core.services.queues.claim import ClaimRequest, claim_jobs
from vigil_core.store.keys import Key
from vigil_core.store.table import Action, Delete, DynamoTable, Put, Row, Update


class ProcessCrashed(BaseException):
    """Error that simulates a crash before a write."""


class CrashingTable(DynamoTable):
    """Table that crashes the process after `writes_left` writes. With None, it never crashes."""

    writes_left: int | None = None

    def put(self, put: Put) -> None:
        self._live()
        super().put(put)

    def update(self, update: Update) -> Row:
        self._live()
        return super().update(update)

    def delete(self, delete: Delete) -> None:
        self._live()
        super().delete(delete)

    def batch_write(self, puts: Sequence[Row] = (), deletes: Sequence[Key] = ()) -> None:
        self._live()
        super().batch_write(puts, deletes)

    def transact(self, actions: Sequence[Action]) -> None:
        self._live()
        super().transact(actions)

    def _live(self) -> None:
        if self.writes_left == 0:
            raise ProcessCrashed
        if self.writes_left is not None:
            self.writes_left -= 1


def at_once(step: Callable[[], object]) -> None:
    step()


def run_until_idle(world: World, take: Callable[[Callable[[], object]], None] = at_once) -> None:
    """Process every record by the matcher and every message by the fan-out function, until none is left."""
    while world.unmatched or world.queues.fan_out_messages:
        records = [job for job in world.unmatched if job.needs_matching]
        world.unmatched.clear()
        for job in records:
            take(lambda job=job: process_record(world, job))  # type: ignore[misc]
        messages = [loads(message.body) for message in world.queues.fan_out_messages]
        world.queues.fan_out_messages.clear()
        for message in messages:
            take(lambda message=message: fan_out(world.ctx, message, has_time_left=lambda: True))  # type: ignore[misc]


def process_record(world: World, job: Job) -> None:
    matcher.handle_job_change(world.ctx, job)
    matcher.match_versions(world.ctx, [job])


def stored(world: World, job_id: str) -> Job:
    return transitions.find_job(world.ctx, NAMESPACE, job_id)


def batch_of(world: World, size: int, **attributes: Any) -> str:
    """Create a batch of executor `none`, whose items need no claim."""
    known = {"executor": "none", "payload": list(range(size)), "batch_size": size}
    return world.job(**{**known, **attributes})


def item_ids(batch_id: str, size: int, attempt: int = 1) -> list[str]:
    return [item_id(batch_id, attempt, index) for index in range(size)]


def result(world: World, job_id: str) -> Any:
    text = world.ctx.jobs.payloads(stored(world, job_id)).result
    return None if text is None else loads(text)


@pytest.mark.parametrize(
    ("mode", "status", "last"),
    [("continue", "failed", "completed"), ("fail_fast", "failed", "cancelled"), ("collect", "completed", "completed")],
)
def test_failed_item_ends_the_batch_by_its_failure_mode(world: World, mode: str, status: str, last: str) -> None:
    job_id = batch_of(world, 3, on_item_failure=mode, name="nightly")
    run_until_idle(world)
    first, second, third = item_ids(job_id, 3)
    assert stored(world, job_id).status == "running"
    world.complete(first, result={"rows": 3})
    world.fail(second)
    run_until_idle(world)
    if last == "completed":
        assert stored(world, job_id).status == "running"
        world.complete(third)
        run_until_idle(world)
    ended = stored(world, job_id)
    assert (ended.status, ended.stage) == (status, "complete" if status == "completed" else "incomplete")
    assert result(world, job_id) == [
        {"index": 0, "job_id": first, "status": "completed", "result": {"rows": 3}, "error": None},
        {
            "index": 1, "job_id": second, "status": "failed", "result": None,
            "error": {"code": "BROKEN", "message": "it broke"},
        },
        {"index": 2, "job_id": third, "status": last, "result": None, "error": None},
    ]  # fmt: skip
    bad = 1 if last == "completed" else 2
    if status == "failed":
        assert ended.error
        assert (ended.error.code, ended.error.message) == ("ITEMS_FAILED", f"{bad} of 3 items did not complete")
    else:
        assert (ended.error, ended.health) == (None, "success")


@pytest.mark.parametrize("mode", ["continue", "fail_fast", "collect"])
def test_batch_completes_when_all_items_complete(world: World, mode: str) -> None:
    job_id = batch_of(world, 2, on_item_failure=mode)
    run_until_idle(world)
    for each in item_ids(job_id, 2):
        world.complete(each, result=1)
    run_until_idle(world)
    assert stored(world, job_id).status == "completed"
    assert [entry["result"] for entry in result(world, job_id)] == [1, 1]
    assert [line.kind for line in world.ctx.jobs.history(stored(world, job_id))] == ["created", "started", "completed"]


def test_items_inherit_the_settings_of_the_batch(world: World) -> None:
    job_id = world.job(
        payload=[{"n": 1}, None], batch_size=2, name="nightly", job_type="flash", queue="boards", priority="high",
        fields={"lab": "west"}, tags=("t",), timeout_s=30, heartbeat_timeout_s=20, trace_id="tr", correlation_id="co",
        unique_key="u",
    )  # fmt: skip
    run_until_idle(world)
    first, second = (stored(world, each) for each in item_ids(job_id, 2))
    assert (first.batch.batch_id, first.batch.index, second.batch.index) == (job_id, 0, 1)
    assert (first.job_type, first.queue, first.priority, first.name) == ("flash", "boards", "high", None)
    assert (first.fields, first.tags, first.timeouts.attempt_s, first.timeouts.heartbeat_s) == (
        {"lab": "west"},
        ("t",),
        30,
        20,
    )
    assert (first.trace_id, first.correlation_id, first.unique_key, first.status) == ("tr", "co", None, "pending")
    assert [world.ctx.jobs.payloads(each).payload for each in (first, second)] == ['{"n":1}', None]
    listed, _ = list_jobs(world.ctx, NAMESPACE, JobFilter(batch_id=job_id), before_cursor=None, page_size=50)
    assert {each.job_id for each in listed} == set(item_ids(job_id, 2))


def test_claims_return_items_and_never_the_batch(world: World) -> None:
    job_id = batch_of(world, 2, executor="worker")
    request = ClaimRequest(queue="default", worker="w", limit=10, lease_s=60, claim_id=None)
    assert claim_jobs(world.ctx, NAMESPACE, request, actor=KEY, until=world.time) == []
    run_until_idle(world)
    claimed = claim_jobs(world.ctx, NAMESPACE, request, actor=KEY, until=world.time)
    assert {each.job_id for each in claimed} == set(item_ids(job_id, 2))


@pytest.mark.parametrize("executor", ["worker", "http", "none"])
def test_batch_rejects_start_complete_and_fail(world: World, executor: str) -> None:
    job_id = batch_of(world, 1, executor=executor)
    for change in (world.complete, world.fail, lambda item_id: world.do(transitions.start, item_id)):
        with pytest.raises(InvalidTransition):
            change(job_id)
    if executor != "http":
        run_until_idle(world)
    for change in (world.complete, world.fail):
        with pytest.raises(InvalidTransition):
            change(job_id)


def test_retry_and_timeout_apply_to_items_and_not_to_the_batch(world: World) -> None:
    from vigil_core.domain.jobs.retry import RetryPolicy

    job_id = world.job(payload=[1], batch_size=1, retry=RetryPolicy(max_attempts=2), timeout_s=10, executor="none")
    run_until_idle(world)
    (only,) = item_ids(job_id, 1)
    assert (stored(world, job_id).max_attempts, stored(world, only).max_attempts) == (1, 2)
    world.do(transitions.start, only)
    world.pass_time(11)
    world.sweep()
    assert (stored(world, job_id).status, stored(world, only).attempt) == ("running", 2)
    run_until_idle(world)
    assert stored(world, job_id).status == "running"


def test_fallback_applies_to_each_failed_item(world: World) -> None:
    job_id = batch_of(world, 2, fallback={"none": True})
    run_until_idle(world)
    first, second = item_ids(job_id, 2)
    world.complete(first, result=1)
    world.fail(second)
    run_until_idle(world)
    assert stored(world, job_id).status == "completed"
    assert [(each["status"], each["result"]) for each in result(world, job_id)] == [
        ("completed", 1),
        ("completed", {"none": True}),
    ]


def test_repeated_records_and_messages_change_a_batch_once(world: World) -> None:
    def twice(step: Callable[[], object]) -> None:
        step()
        step()

    job_id = batch_of(world, 3, on_item_failure="fail_fast")
    run_until_idle(world, twice)
    first, second, third = item_ids(job_id, 3)
    world.complete(first)
    world.fail(second)
    run_until_idle(world, twice)
    assert [stored(world, each).version for each in (job_id, first, second, third)] == [3, 2, 2, 2]
    assert stored(world, job_id).status == "failed"


@pytest.mark.parametrize("mode", ["continue", "fail_fast"])
def test_batch_ends_correctly_after_a_crash_before_any_write(table: DynamoTable, mode: str) -> None:
    crashing_table = CrashingTable(table._client, table._name)
    world = World(crashing_table)
    deaths = 0

    def crash_each_step(step: Callable[[], object]) -> None:
        nonlocal deaths
        for writes in range(100):
            crashing_table.writes_left = writes
            try:
                step()
            except ProcessCrashed:
                deaths += 1
            else:
                crashing_table.writes_left = None
                return

    job_id = batch_of(world, 4, on_item_failure=mode, mutex_key="m")
    run_until_idle(world, crash_each_step)
    first, *others = item_ids(job_id, 4)
    world.fail(first)
    if mode == "continue":
        for each in others:
            world.complete(each, result=each)
    run_until_idle(world, crash_each_step)
    assert stored(world, job_id).status == "failed"
    assert [each["job_id"] for each in result(world, job_id)] == [first, *others]
    assert [stored(world, each).version for each in (job_id, first, *others)] == [3, 2, 2, 2, 2]
    assert deaths > 10


def test_batch_of_several_pages_runs_every_item_in_order(world: World) -> None:
    job_id = batch_of(world, 250)
    world.run_matcher()
    assert len(world.queues.fan_out_messages) == 3
    run_until_idle(world)
    expected = item_ids(job_id, 250)
    payloads = [world.ctx.jobs.payloads(stored(world, expected[index])).payload for index in (0, 99, 100, 249)]
    assert payloads == ["0", "99", "100", "249"]
    for each in reversed(expected[1:]):
        world.complete(each)
    run_until_idle(world)
    assert stored(world, job_id).status == "running"
    world.complete(expected[0], result="last")
    run_until_idle(world)
    assert stored(world, job_id).status == "completed"
    entries = result(world, job_id)
    assert [entry["job_id"] for entry in entries] == expected
    assert [entry["index"] for entry in entries] == list(range(250))
    assert entries[0]["result"] == "last"


def test_fail_fast_cancels_items_of_pages_created_after_the_failure(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vigil_core.domain.jobs.batch.PAGE_SIZE", 2)
    job_id = batch_of(world, 5, on_item_failure="fail_fast")
    world.run_matcher()
    first_page, *_ = world.queues.fan_out_messages
    world.queues.fan_out_messages.clear()  # The other pages fail and become dead letters.
    fan_out(world.ctx, loads(first_page.body), has_time_left=lambda: True)
    first, *others = item_ids(job_id, 5)
    world.fail(first)
    run_until_idle(world)
    assert stored(world, job_id).status == "failed"
    assert [entry["status"] for entry in result(world, job_id)] == ["failed", *["cancelled"] * 4]
    assert [stored(world, each).status for each in others] == ["cancelled"] * 4


def test_cancelled_batch_ends_after_its_running_items(world: World) -> None:
    job_id = batch_of(world, 3)
    run_until_idle(world)
    first, second, third = item_ids(job_id, 3)
    world.complete(first, result=1)
    world.do(transitions.start, second)
    assert world.do(transitions.cancel, job_id).status == "running"
    run_until_idle(world)
    assert stored(world, second).cancel_requested_at is not None
    assert (stored(world, third).status, stored(world, job_id).status) == ("cancelled", "running")
    world.fail(second)
    run_until_idle(world)
    assert stored(world, job_id).status == "cancelled"
    assert [entry["status"] for entry in result(world, job_id)] == ["completed", "cancelled", "cancelled"]


def test_cancel_after_the_last_item_leaves_the_batch_completed(world: World) -> None:
    job_id = batch_of(world, 1)
    run_until_idle(world)
    world.complete(item_ids(job_id, 1)[0])
    world.do(transitions.cancel, job_id)
    run_until_idle(world)
    assert stored(world, job_id).status == "completed"


def test_sweeper_ends_a_cancelled_batch_after_its_items(world: World) -> None:
    job_id = batch_of(world, 1)
    run_until_idle(world)
    (only,) = item_ids(job_id, 1)
    world.do(transitions.start, only)
    world.do(transitions.cancel, job_id)
    run_until_idle(world)
    world.pass_time(61)
    world.sweep()
    assert (stored(world, only).status, stored(world, job_id).status) == ("cancelled", "running")
    world.pass_time(120)
    world.sweep()  # The stream record of the item's end is lost.
    assert stored(world, job_id).status == "cancelled"
    run_until_idle(world)
    assert (stored(world, job_id).status, result(world, job_id)) == ("cancelled", None)


def test_batch_cancelled_before_start_creates_no_items(world: World) -> None:
    job_id = batch_of(world, 2)
    assert world.do(transitions.cancel, job_id).status == "cancelled"
    run_until_idle(world)
    assert world.ctx.jobs.find_many(NAMESPACE, item_ids(job_id, 2)) == {}


def test_page_processed_after_the_end_creates_no_items(world: World) -> None:
    job_id = batch_of(world, 2)
    world.run_matcher()
    world.do(transitions.cancel, job_id)
    world.pass_time(181)
    world.sweep()
    world.run_fan_out()
    assert world.ctx.jobs.find_many(NAMESPACE, item_ids(job_id, 2)) == {}


def test_retried_batch_runs_new_items(world: World) -> None:
    job_id = batch_of(world, 2)
    run_until_idle(world)
    for each in item_ids(job_id, 2):
        world.fail(each)
    late = list(world.unmatched)
    run_until_idle(world)
    with pytest.raises(InvalidTransition, match=job_id):
        world.do(transitions.retry, item_ids(job_id, 2)[0])
    retried = world.do(transitions.retry, job_id)
    assert (retried.status, retried.attempt, retried.result_ref) == ("pending", 2, None)
    world.unmatched += late  # Stream records of the first attempt are delivered again.
    run_until_idle(world)
    assert stored(world, job_id).status == "running"
    for each in item_ids(job_id, 2, attempt=2):
        world.complete(each, result=2)
    run_until_idle(world)
    assert stored(world, job_id).status == "completed"
    assert [entry["job_id"] for entry in result(world, job_id)] == item_ids(job_id, 2, attempt=2)


@given(
    outcomes=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4),
    page_size=st.integers(1, 5),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_retried_batch_keeps_its_completed_items(world: World, outcomes: list[list[bool]], page_size: int) -> None:
    """Check several retries: each runs only the items that have not completed, and the result has all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "PAGE_SIZE", page_size)
        job_id = batch_of(world, 5)
        expected: dict[int, str] = {}
        for attempt, succeeds in enumerate([*outcomes, [True] * 5], 1):
            run_until_idle(world)
            ids = item_ids(job_id, 5, attempt)
            created = world.ctx.jobs.find_many(NAMESPACE, ids)
            assert set(created) == {ids[index] for index in range(5) if index not in expected}
            for index, each in enumerate(ids):
                if each in created and succeeds[index]:
                    world.complete(each, result=index)
                    expected[index] = each
                elif each in created:
                    world.fail(each)
            run_until_idle(world)
            assert stored(world, job_id).status == ("completed" if len(expected) == 5 else "failed")
            entries = result(world, job_id)
            shown = {entry["index"]: entry["job_id"] for entry in entries if entry["status"] == "completed"}
            assert shown == expected
            assert all(entry["result"] == entry["index"] for entry in entries if entry["index"] in expected)
            if len(expected) == 5:
                break
            world.do(transitions.retry, job_id)


def test_batch_releases_its_mutex_when_the_last_item_ends(world: World) -> None:
    job_id = batch_of(world, 2, mutex_key="m")
    behind = world.job(mutex_key="m", queue_on_conflict=True)
    run_until_idle(world)
    first, second = item_ids(job_id, 2)
    world.fail(first)
    run_until_idle(world)
    assert stored(world, behind).status == "waiting"
    with pytest.raises(JobCreationFailed):
        world.job(mutex_key="m")
    world.complete(second)
    run_until_idle(world)
    assert (stored(world, job_id).status, stored(world, behind).status) == ("failed", "pending")


def test_batch_creates_items_after_its_start_time_dependencies_and_mutex(world: World) -> None:
    owner, first = world.running(mutex_key="m"), world.running()
    job_id = batch_of(
        world,
        1,
        depends_on=[first],
        scheduled_at=world.time + timedelta(seconds=60),
        mutex_key="m",
        queue_on_conflict=True,
    )
    after = world.job(depends_on=[job_id])
    steps: list[Callable[[], object]] = [
        lambda: None,
        lambda: world.complete(first),
        lambda: world.pass_time(61),
        world.sweep,
    ]
    for step in steps:
        step()
        run_until_idle(world)
        assert world.ctx.jobs.find_many(NAMESPACE, item_ids(job_id, 1)) == {}
    world.complete(owner)
    run_until_idle(world)
    world.complete(item_ids(job_id, 1)[0])
    run_until_idle(world)
    assert (stored(world, job_id).status, stored(world, after).status) == ("completed", "pending")


def test_unique_key_of_a_batch_is_free_after_its_end(world: World) -> None:
    job_id = batch_of(world, 1, unique_key="u")
    run_until_idle(world)
    assert batch_of(world, 1, unique_key="u") == job_id
    world.complete(item_ids(job_id, 1)[0])
    run_until_idle(world)
    assert batch_of(world, 1, unique_key="u") != job_id


def test_item_results_over_the_size_limit_are_truncated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_RESULT_BYTES", 12)
    job_id = batch_of(world, 3)
    run_until_idle(world)
    for each, item_result in zip(item_ids(job_id, 3), ["12345678", "123456", 1], strict=True):
        world.complete(each, result=item_result)
    run_until_idle(world)
    item_results = [(entry["result"], entry.get("truncated")) for entry in result(world, job_id)]
    assert item_results == [("12345678", None), (None, True), (1, None)]


def test_deleted_item_counts_as_ended_without_result(world: World) -> None:
    job_id = batch_of(world, 2)
    run_until_idle(world)
    first, second = item_ids(job_id, 2)
    world.complete(first, result=1)
    world.delete(first)
    run_until_idle(world)
    world.complete(second, result=2)
    run_until_idle(world)
    assert stored(world, job_id).status == "completed"
    assert [(entry["status"], entry["result"]) for entry in result(world, job_id)] == [
        ("completed", None),
        ("completed", 2),
    ]


# Deletion


@pytest.mark.parametrize("repetitions", [0, 1, 3])
def test_deleted_batch_deletes_the_items_of_all_attempts(world: World, repetitions: int) -> None:
    batch_id = batch_of(world, 3)
    run_until_idle(world)
    for attempt in (1, 2):
        for job_id in item_ids(batch_id, 3, attempt):
            world.do(transitions.cancel, job_id)
        run_until_idle(world)
        if attempt == 1:
            world.do(transitions.retry, batch_id)
            run_until_idle(world)
    other = world.job()
    world.delete(batch_id)
    remaining = repetitions

    def take(step: Callable[[], object]) -> None:
        nonlocal remaining
        if remaining:
            # The process crashes after the step, and the record or message is delivered again.
            remaining -= 1
            step()
        step()

    run_until_idle(world, take)
    listed, _ = list_jobs(world.ctx, NAMESPACE, JobFilter(), before_cursor=None, page_size=200)
    assert [job.job_id for job in listed] == [other]
