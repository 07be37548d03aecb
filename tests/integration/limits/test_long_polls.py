"""Long polls need slots, and a crashed process frees its slot after a time."""

from __future__ import annotations

from datetime import timedelta
from random import Random
from typing import Any

import pytest

from tests.support.api import Client, run_at_each_pause
from tests.support.world import NAMESPACE, World
from vigil_core import wiring
from vigil_core.domain.limits import default_limit, max_long_polls
from vigil_core.services.long_poll import SLOT_MARGIN, SlotRequest, long_poll
from vigil_core.store.limits import LongPollStore
from vigil_core.store.slot_rows import Slot
from vigil_core.store.table import DynamoTable

HOLD = {"prefer": "wait=5"}


def store_of(table: DynamoTable, concurrency: int, seed: int = 1) -> LongPollStore:
    return LongPollStore(table=table, concurrency=concurrency, choose=Random(seed).randrange)


def acquire(store: LongPollStore, world: World, namespace: str, seconds: float = 25) -> Slot | None:
    limit = default_limit("long_polls", store.concurrency)
    return store.acquire(namespace, limit, until=world.time + timedelta(seconds=seconds), now=world.time)


@pytest.mark.parametrize("concurrency", [2, 10, 12, 100])
def test_namespaces_together_have_slots_for_half_of_the_concurrency(
    world: World, table: DynamoTable, concurrency: int
) -> None:
    store = store_of(table, concurrency)
    first = [acquire(store, world, "first") for _ in range(concurrency)]
    granted = [slot for slot in first if slot]
    rows = -(-max_long_polls(concurrency) // 32)
    assert 1 <= len(granted) <= default_limit("long_polls", concurrency) + rows
    assert store.used("first", world.time) == len(granted)
    others = [acquire(store, world, f"other{number}") for number in range(concurrency)]
    assert len(granted) + sum(slot is not None for slot in others) <= max_long_polls(concurrency)


def test_released_slot_is_free_again(world: World, table: DynamoTable) -> None:
    store = store_of(table, 4)
    slot = acquire(store, world, "team")
    assert slot
    assert acquire(store, world, "team") is None
    store.release(slot)
    again = acquire(store, world, "team")
    assert again
    store.release(slot)  # A repeated release does not free the slot of the next request.
    assert acquire(store, world, "team") is None


def test_slot_of_a_crashed_process_becomes_free(world: World, table: DynamoTable) -> None:
    store = store_of(table, 4)
    assert acquire(store, world, "team", seconds=25)
    world.pass_time(24.9)
    assert acquire(store, world, "team") is None
    world.pass_time(0.2)
    assert acquire(store, world, "team")


@pytest.mark.parametrize("seed", range(12))
def test_any_order_of_requests_and_crashes_keeps_the_limits(world: World, table: DynamoTable, seed: int) -> None:
    random = Random(seed)
    concurrency = random.choice([4, 10, 12, 40])
    store = store_of(table, concurrency, seed)
    open_slots: list[tuple[str, Any, Slot]] = []
    for _ in range(40):
        open_slots = [entry for entry in open_slots if entry[1] >= world.time]
        action = random.random()
        if action < 0.6:
            namespace = random.choice(["a", "b", "c"])
            until = world.time + timedelta(seconds=random.randint(1, 30))
            limit = default_limit("long_polls", concurrency)
            slot = store.acquire(namespace, limit, until=until, now=world.time)
            used = sum(entry[0] == namespace for entry in open_slots)
            if slot:
                open_slots.append((namespace, until, slot))
            else:
                assert used >= limit or len(open_slots) >= max_long_polls(concurrency)
        elif action < 0.8 and open_slots:
            store.release(open_slots.pop(random.randrange(len(open_slots)))[2])
        else:  # Time passes; a process that crashed releases nothing.
            world.pass_time(random.uniform(0, 10))
            open_slots = [entry for entry in open_slots if entry[1] >= world.time]
        for namespace in "abc":
            used = sum(entry[0] == namespace for entry in open_slots)
            assert used <= default_limit("long_polls", concurrency)
            assert store.used(namespace, world.time) == used
        assert len(open_slots) <= max_long_polls(concurrency)


def test_long_poll_that_need_not_wait_needs_no_slot(world: World) -> None:
    request = SlotRequest(namespace=NAMESPACE)
    until = world.time + timedelta(seconds=5)
    assert long_poll(world.ctx, list, is_done=lambda _: True, until=until, latest=[1], slot=request) == [1]
    assert long_poll(world.ctx, list, is_done=bool, until=world.time, latest=[], slot=request) == []
    assert world.ctx.limits.long_polls.used(NAMESPACE, world.time) == 0
    assert not request.refused


def test_long_poll_has_a_slot_while_it_waits_and_frees_it_after_an_error(world: World) -> None:
    slots = world.ctx.limits.long_polls
    used: list[int] = []

    def poll() -> int:
        used.append(slots.used(NAMESPACE, world.time))
        if len(used) == 3:
            raise ValueError("the read fails")
        return 0

    request = SlotRequest(namespace=NAMESPACE)
    until = world.time + timedelta(seconds=5)
    with pytest.raises(ValueError, match="the read fails"):
        long_poll(world.ctx, poll, is_done=bool, until=until, latest=0, slot=request)
    assert used == [1, 1, 1]
    assert slots.used(NAMESPACE, world.time) == 0


def test_command_without_a_slot_waits_a_short_time(world: World) -> None:
    while acquire(world.ctx.limits.long_polls, world, NAMESPACE):
        pass
    began = world.time
    request = SlotRequest(namespace=NAMESPACE, wait_without=timedelta(seconds=1))
    long_poll(world.ctx, int, is_done=bool, until=began + timedelta(seconds=20), latest=0, slot=request)
    assert (world.time - began).total_seconds() == pytest.approx(1, abs=0.01)
    assert request.refused


def use_all_slots(namespace: str) -> None:
    ctx = wiring.context()
    until = ctx.now() + timedelta(minutes=1) + SLOT_MARGIN
    while ctx.limits.long_polls.acquire(namespace, 100, until=until, now=ctx.now()):
        pass


def test_routes_without_a_slot_return_the_current_state_at_once(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = client.create()["job_id"]
    run_id = client.post("/v1/workflows", {"name": "w", "jobs": [{"name": "a"}]}).ok(202)["workflow_id"]
    wait_id = client.post("/v1/waits", {"wait_on": {job_id: None}}, headers={"prefer": "wait=0"}).ok()["wait_id"]
    use_all_slots(client.namespace)
    run_at_each_pause(monkeypatch, lambda _: pytest.fail("the request waits"))
    for method, path, body, status in (
        ("GET", f"/v1/jobs/{job_id}", None, 200),
        ("GET", f"/v1/waits/{wait_id}", None, 200),
        ("GET", f"/v1/workflows/{run_id}", None, 200),
        ("POST", "/v1/jobs", {"job_type": "t", "queue": "elsewhere"}, 202),
        ("POST", "/v1/waits", {"wait_on": {job_id: None}}, 200),
        ("POST", "/scheduler/wait-jobs", {"wait_on": {job_id: None}}, 200),
        ("POST", "/v1/queues/empty/claim", {}, 200),
        ("POST", "/v1/workflows", {"name": "w", "jobs": [{"name": "a"}]}, 202),
    ):
        reply = client.call(method, path, body, headers=HOLD)
        assert reply.status == status, (method, path, reply.text)
        assert (reply.headers["preference-applied"], reply.headers["retry-after"]) == ("wait=0", "2"), (method, path)
    # The default long poll of a wait without `Prefer` needs a slot too.
    assert client.post("/v1/waits", {"wait_on": {job_id: None}}).headers["preference-applied"] == "wait=0"


def test_request_without_wait_needs_no_slot(client: Client) -> None:
    ended = client.ended()["job_id"]
    use_all_slots(client.namespace)
    for headers in ({}, {"prefer": "wait=0"}, HOLD):
        reply = client.get(f"/v1/jobs/{ended}", headers=headers)
        assert "retry-after" not in reply.headers
        assert reply.headers.get("preference-applied") == headers.get("prefer")


def test_another_namespace_waits_while_one_has_used_its_slots(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = Client(namespace="other").create()["job_id"]
    ctx = wiring.context()
    until = ctx.now() + timedelta(minutes=1)
    limit = ctx.limits.namespaces.limit(client.namespace, "long_polls")
    while ctx.limits.long_polls.acquire(client.namespace, limit, until=until, now=ctx.now()):
        pass
    pauses: list[float] = []

    def end(pause_s: float) -> None:
        pauses.append(pause_s)
        Client(namespace="other").post(f"/v1/jobs/{job_id}/start").ok()
        Client(namespace="other").post(f"/v1/jobs/{job_id}/complete").ok()

    run_at_each_pause(monkeypatch, end)
    reply = Client(namespace="other").get(f"/v1/jobs/{job_id}", headers=HOLD)
    assert reply.ok()["status"] == "completed"
    assert reply.headers["preference-applied"] == "wait=5"
    assert len(pauses) == 1
