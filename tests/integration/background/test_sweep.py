"""The sweep is fair: the work of one namespace delays no other, and no queue is left out."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from random import Random
from typing import Any

import pytest

from tests.model.moto_table import empty_table
from tests.support.world import World
from vigil_core.domain.exact_json import loads
from vigil_core.domain.jobs.job import NewJob
from vigil_core.services.background import sweep as sweeps
from vigil_core.services.background import sweeper
from vigil_core.services.background.sweep import SweepFailed
from vigil_core.services.fair_order import FairRun, Step, in_turn
from vigil_core.services.jobs.submit import submit
from vigil_core.services.messages import Sweep, SweepQueues
from vigil_core.services.queues.sweep import find_due_steps
from vigil_core.store import keys
from vigil_core.store.due_index import DueItem
from vigil_core.store.table import DynamoTable

pytestmark = pytest.mark.thorough

HOSTILE, HONEST = "a-hostile", "z-honest"
"""The hostile namespace comes first in every order by name."""


@pytest.fixture
def table(table: DynamoTable) -> DynamoTable:
    """Return the table without boto3."""
    del table
    return empty_table()


def scheduled(world: World, namespace: str, queue: str) -> str:
    """Create a job that starts in a minute."""
    new = NewJob(
        job_id=world.ctx.new_id(), job_type="test", queue=queue, scheduled_at=world.time + timedelta(seconds=60)
    )
    return submit(world.ctx, namespace, new, actor="key1").job.job_id


def status(world: World, namespace: str, job_id: str) -> str:
    job = world.ctx.jobs.find(namespace, job_id)
    assert job is not None
    return job.status


def messages(world: World) -> list[Any]:
    """Take the messages to the sweeper."""
    taken: list[Any] = [loads(text) for text, _ in world.queues.sweeper_messages]
    world.queues.sweeper_messages.clear()
    return [message for message in taken if message["kind"] in (Sweep.KIND, SweepQueues.KIND)]


def record_swept_queues(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return the list to which each sweep of a queue adds its namespace and name."""
    swept: list[tuple[str, str]] = []

    def recorded(ctx: Any, namespace: str, queue: str) -> list[Step]:
        swept.append((namespace, queue))
        return find_due_steps(ctx, namespace, queue)

    monkeypatch.setattr(sweeps, "find_due_steps", recorded)
    return swept


def tick(world: World) -> int:
    """Run the sweep of a minute with all its messages, and return the number of invocations."""
    sweeper.start_sweep(world.ctx)
    invocations = 0
    while pending := messages(world):
        for message in pending:
            sweeper.on_message(world.ctx, message)
            invocations += 1
    return invocations


def test_thousand_queues_of_one_namespace_do_not_delay_another(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = [scheduled(world, HOSTILE, f"q{number}") for number in range(0, 1_000, 25)]
    for number in range(1_000):
        world.ctx.job_queues.register(HOSTILE, f"q{number}")
    honest = scheduled(world, HONEST, "images")
    world.pass_time(61)
    swept = record_swept_queues(monkeypatch)
    sweeper.start_sweep(world.ctx)
    first_messages = messages(world)
    for message in first_messages:
        sweeper.on_message(world.ctx, message)
    assert status(world, HONEST, honest) == "pending"
    assert len(swept) <= keys.DUE_PARTITIONS * sweeps.INLINE_QUEUES + 1
    chains = messages(world)
    assert {message["namespace"] for message in chains} == {HOSTILE}
    assert len(chains) == keys.DUE_PARTITIONS, "one chain in each partition"
    while chains:
        for message in chains:
            sweeper.on_message(world.ctx, message)
        chains = messages(world)
    assert all(status(world, HOSTILE, job_id) == "pending" for job_id in hostile)
    assert len(swept) == len(set(swept)) == 1_001, "each queue is swept once"


def test_reads_of_the_sweep_do_not_grow_with_the_queues_of_a_namespace(world: World, table: DynamoTable) -> None:
    def reads(partition: int) -> int:
        listed = list(world.ctx.due_index.first_queues(partition, after_namespace=None, limit=3))
        assert [entry.namespace for entry in listed] == sorted({entry.namespace for entry in listed})
        return len(queries)

    queries: list[str] = []
    query_page = DynamoTable.query_page

    def counted(self: DynamoTable, pk: str, **bounds: Any) -> Any:
        queries.append(pk)
        return query_page(self, pk, **bounds)

    for number in range(2_000):
        world.ctx.job_queues.register(HOSTILE, f"q{number}")
    world.ctx.job_queues.register(HONEST, "images")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(DynamoTable, "query_page", counted)
        assert all(reads(partition) <= 2 * (partition + 1) for partition in range(keys.DUE_PARTITIONS))


@pytest.mark.parametrize("seed", range(5))
def test_every_queue_is_swept_once_in_each_minute(world: World, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(seed)
    registered: set[tuple[str, str]] = set()
    for _ in range(random.randrange(1, 400)):
        name = "".join(random.choice("ab#$!~é ") for _ in range(random.randrange(1, 5)))
        registered.add((random.choice(["a", "a-b", "ab", "b", "b1", "c"]), name))
    for namespace, queue in registered:
        world.ctx.job_queues.register(namespace, queue)
    swept = record_swept_queues(monkeypatch)
    monkeypatch.setattr(sweeps, "INLINE_QUEUES", random.randrange(1, 5))
    monkeypatch.setattr(sweeps, "QUEUES_AT_ONCE", random.randrange(1, 9))
    if random.random() < 0.5:
        # No time is left after each part, so every part is passed on.
        monkeypatch.setattr(sweeps, "CHAIN_TIME", timedelta())
        monkeypatch.setattr(sweeps, "QUEUES_TIME", timedelta())
        monkeypatch.setattr(FairRun, "run", run_without_deadline)
    for _ in range(2):
        swept.clear()
        tick(world)
        assert sorted(swept) == sorted(registered)
        world.pass_time(60)


def run_without_deadline(run: FairRun, ctx: Any, steps: Iterable[Step], *, until: object) -> None:
    del run, ctx, until
    for step in in_turn(steps):
        step.run()


def test_overdue_rows_of_namespaces_take_turns(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    older = [DueItem(kind="run", namespace=HOSTILE, entity_id=str(n), at=world.time) for n in range(1_000)]
    younger = [DueItem(kind="run", namespace=HONEST, entity_id=str(n), at=world.time) for n in range(3)]
    monkeypatch.setattr(world.ctx.due_index, "overdue", lambda *_: iter(older + younger))
    processed: list[str] = []

    def process(_: Any, due: DueItem) -> int:
        processed.append(due.namespace)
        world.pass_time(1)
        return 1

    monkeypatch.setattr(sweeper, "process_due", process)
    sweeper.sweep(world.ctx, 0)
    assert processed[:6] == [HOSTILE, HONEST] * 3
    assert len(processed) < 60, "the sweep ends in time, and the next one continues"


def test_slow_namespace_continues_after_all_others(world: World) -> None:
    order: list[str] = []

    def step(namespace: str, seconds: float) -> Step:
        def run() -> int:
            order.append(namespace)
            world.pass_time(seconds)
            return 1

        return Step(namespace=namespace, label=namespace, run=run)

    run = FairRun(namespace_time=timedelta(seconds=30))
    steps = [step("slow", 10) for _ in range(40)] + [step("fast", 0) for _ in range(40)]
    run.run(world.ctx, steps, until=world.time + timedelta(hours=1))
    assert order.index("slow") == 0
    assert order.count("slow") == order.count("fast") == 40
    last_fast = len(order) - 1 - order[::-1].index("fast")
    assert order[:last_fast].count("slow") <= 8, "half of the first chunk"


def test_due_rows_come_before_queues_and_deliveries_after_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    due_items = [
        DueItem(kind="delivery", namespace=HONEST, entity_id="d", at=world.time),
        DueItem(kind="run", namespace=HONEST, entity_id="r", at=world.time),
    ]
    world.ctx.job_queues.register(HONEST, "images")
    monkeypatch.setattr(world.ctx.due_index, "overdue", lambda *_: iter(due_items))

    def process(_: Any, due: DueItem) -> int:
        order.append(due.kind)
        return 1

    def find(*_: Any) -> list[Step]:
        order.append("queue")
        return []

    monkeypatch.setattr(sweeper, "process_due", process)
    monkeypatch.setattr(sweeps, "find_due_steps", find)
    for partition in range(keys.DUE_PARTITIONS):
        sweeper.sweep(world.ctx, partition)
    assert order.count("queue") == 1
    position = order.index("queue")
    assert order[position - 1 : position + 2] == ["run", "queue", "delivery"]


def test_crashed_chain_starts_again_after_its_lease(world: World) -> None:
    for number in range(200):
        world.ctx.job_queues.register(HOSTILE, f"q{number}")
    world.sweep()
    lost = messages(world)
    assert lost
    world.sweep()
    assert messages(world) == [], "the chain may still run"
    world.pass_time(60)
    world.sweep()
    again = messages(world)
    assert len(again) == len(lost)
    sweeper.on_message(world.ctx, lost[0])
    assert messages(world) == [], "the old chain has lost its lease"


def test_sweep_without_enough_time_is_passed_to_another_invocation(world: World) -> None:
    message = loads(Sweep(partition=2).to_json())
    assert sweeper.on_message(world.ctx, message, time_left=timedelta(seconds=20)) == 0
    assert messages(world) == [message]


def test_failing_rows_of_one_namespace_do_not_stop_the_rows_of_another(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    due_items = [
        DueItem(kind="run", namespace=namespace, entity_id=str(n), at=world.time)
        for namespace in (HOSTILE, HONEST)
        for n in range(50)
    ]
    monkeypatch.setattr(world.ctx.due_index, "overdue", lambda *_: iter(due_items))
    processed: list[str] = []

    def process(_: Any, due: DueItem) -> int:
        if due.namespace == HOSTILE:
            raise ValueError("broken")
        processed.append(due.entity_id)
        return 1

    monkeypatch.setattr(sweeper, "process_due", process)
    with pytest.raises(SweepFailed) as failed:
        sweeper.sweep(world.ctx, 0)
    assert len(failed.value.errors) == 50
    assert len(processed) == 50
