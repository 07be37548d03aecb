"""Counters follow a plain model, with crashes and repeated records: the drift is small, and the recount removes it."""

from __future__ import annotations

from contextlib import suppress
from random import Random
from typing import Any
from unittest import mock

import pytest

from tests.support.world import KEY, NAMESPACE, World
from vigil_core.domain.errors import StoreConflict
from vigil_core.services.jobs import transitions
from vigil_core.services.limits.admission import reserve_jobs
from vigil_core.services.limits.counting import count_ends
from vigil_core.services.limits.recount import recount
from vigil_core.services.waits import resolve as resolve_wait
from vigil_core.store import keys
from vigil_core.store.counters import CounterStore
from vigil_core.store.stream import StreamRecord
from vigil_core.store.table import DynamoTable


class Crash(BaseException):
    """The process ends here."""


class Record(StreamRecord):
    """A stream record of two rows of this test."""

    def old(self) -> Any:
        return self.change["old"]

    def new(self) -> Any:
        return self.change["new"]


class Model:
    """The open jobs and waits, and the stream of their changes, which is delivered in batches."""

    def __init__(self, world: World, table: DynamoTable, random: Random) -> None:
        self.world, self.table, self.random = world, table, random
        self.open_jobs: list[str] = []
        self.ended_jobs: list[str] = []
        self.open_waits: list[str] = []
        self.stream: list[Record] = []
        self.rows: dict[str, Any] = {}
        self.crashes = 0

    def record(self, entity_id: str, row: Any) -> None:
        change = {"old": self.rows.get(entity_id), "new": row}
        self.stream.append(Record(sequence_number=f"{len(self.stream):09}", change=change))
        self.rows[entity_id] = row

    def changed(self, job_id: str) -> None:
        self.record(job_id, self.table.get(keys.job(NAMESPACE, job_id)))

    def create(self) -> None:
        crashes = self.random.random() < 0.02
        failing = mock.patch.object(type(self.world.ctx.limits.counters), "_add", side_effect=Crash)
        before = {job.job_id for job in self.world.unmatched}
        with suppress(Crash), failing if crashes else mock.MagicMock():
            self.world.job()
        self.crashes += crashes
        (job,) = [job for job in self.world.unmatched if job.job_id not in before]
        self.open_jobs.append(job.job_id)
        self.changed(job.job_id)

    def end(self) -> None:
        if self.open_jobs:
            job_id = self.open_jobs.pop(self.random.randrange(len(self.open_jobs)))
            self.world.do(transitions.cancel, job_id)
            self.ended_jobs.append(job_id)
            self.changed(job_id)

    def reopen(self) -> None:
        if self.ended_jobs:
            job_id = self.ended_jobs.pop(self.random.randrange(len(self.ended_jobs)))
            self.world.do(transitions.retry, job_id)
            self.open_jobs.append(job_id)
            self.changed(job_id)

    def wait(self) -> None:
        if self.open_jobs:
            answer = self.world.wait({self.open_jobs[0]: None})
            wait_id = str(answer["wait_id"])
            self.open_waits.append(wait_id)
            self.wait_changed(wait_id)

    def end_wait(self) -> None:
        if self.open_waits:
            wait_id = self.open_waits.pop(self.random.randrange(len(self.open_waits)))
            resolve_wait.cancel(self.world.ctx, NAMESPACE, wait_id)
            self.wait_changed(wait_id)

    def wait_changed(self, wait_id: str) -> None:
        self.record(wait_id, self.table.get(keys.wait(NAMESPACE, wait_id)))

    def deliver(self) -> None:
        """Deliver the stream in batches. Some batches fail as a whole, and a record of others is postponed."""
        position = 0
        postponed: list[Record] = []
        while position < len(self.stream):
            batch = self.stream[position : position + 10]
            failing = self.random.choice([batch, [self.random.choice(batch)], [], [], [], []])
            failed = {record.sequence_number for record in failing}
            count_ends(self.world.ctx, batch, failed)
            if self.random.random() < 0.02:  # The process crashes before it answers: the batch is delivered again.
                self.crashes += 1
                continue
            if len(failing) < len(batch):
                postponed += failing
                position += len(batch)
        for record in postponed:
            count_ends(self.world.ctx, [record], set())
        self.stream = []


@pytest.mark.parametrize("seed", range(4))
def test_counters_drift_little_and_are_exact_after_the_recount(world: World, table: DynamoTable, seed: int) -> None:
    random = Random(seed)
    model = Model(world, table, random)
    actions = [model.create] * 8 + [model.end] * 3 + [model.reopen] + [model.wait] * 3 + [model.end_wait] * 2
    for step in range(150):
        random.choice(actions)()
        world.pass_time(0.5)
        if step % 25 == 0:
            model.deliver()
    model.deliver()
    counters = world.ctx.limits.counters
    counts = counters.read(NAMESPACE)
    # A crash leaves one object uncounted, or counts one batch twice: soft limits allow it until the recount.
    assert abs(counts.jobs - len(model.open_jobs)) <= 10 * model.crashes
    assert abs(counts.waits - len(model.open_waits)) <= 10 * model.crashes
    if model.crashes == 0:
        assert (counts.jobs, counts.waits) == (len(model.open_jobs), len(model.open_waits))
    world.pass_time(1)
    while not recount(world.ctx, NAMESPACE, max_rows=random.choice([1, 30, 1000])):
        pass
    counts = counters.read(NAMESPACE)
    assert (counts.jobs, counts.waits) == (len(model.open_jobs), len(model.open_waits))
    assert counts.waits_by_key == ({KEY: len(model.open_waits)} if model.open_waits else {})


def test_recount_ignores_what_changes_while_it_reads(world: World) -> None:
    first, second = world.job(), world.job()
    counters = world.ctx.limits.counters
    counters.add(NAMESPACE, jobs=5)  # A drift.
    world.pass_time(1)
    assert not recount(world.ctx, NAMESPACE, max_rows=1)
    world.pass_time(1)
    world.do(transitions.cancel, first)
    world.do(transitions.cancel, second)
    counters.add(NAMESPACE, jobs=-2)  # The stream counts the two ends.
    world.job()
    while not recount(world.ctx, NAMESPACE, max_rows=1):
        world.pass_time(1)
    assert counters.read(NAMESPACE).jobs == 1


def test_recount_of_an_idle_namespace_is_the_last_one(world: World, table: DynamoTable) -> None:
    counters = world.ctx.limits.counters
    job_id = world.job()
    world.do(transitions.cancel, job_id)
    for row in range(keys.COUNTER_ROWS):
        counters._add(NAMESPACE, row, "jobs", -1 if counters.read(NAMESPACE).jobs > 0 else 0)
    assert "g1sk" in (table.get(keys.counter(NAMESPACE, 0)) or {})
    world.pass_time(1)
    assert recount(world.ctx, NAMESPACE)
    assert "g1sk" not in (table.get(keys.counter(NAMESPACE, 0)) or {})
    counters._add(NAMESPACE, 0, "jobs", 1)
    assert "g1sk" in (table.get(keys.counter(NAMESPACE, 0)) or {})


def test_counters_are_spread_over_eight_rows(world: World, table: DynamoTable) -> None:
    for _ in range(60):
        world.ctx.limits.counters.add(NAMESPACE, jobs=1)
    used = [row for row in range(keys.COUNTER_ROWS) if table.get(keys.counter(NAMESPACE, row))]
    assert len(used) == keys.COUNTER_ROWS
    assert all("ttl" in (table.get(keys.counter(NAMESPACE, row)) or {}) for row in used)
    assert world.ctx.limits.counters.read(NAMESPACE).jobs == 60


def test_failed_creation_gives_its_jobs_back(world: World) -> None:
    def fail() -> None:
        with reserve_jobs(world.ctx, NAMESPACE, 5):
            assert world.ctx.limits.counters.read(NAMESPACE).jobs == 5
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert world.ctx.limits.counters.read(NAMESPACE).jobs == 0
    with reserve_jobs(world.ctx, NAMESPACE, 5) as reservation:
        reservation.unused = 2
    assert world.ctx.limits.counters.read(NAMESPACE).jobs == 3


def test_batch_counts_for_its_items_until_it_starts(world: World, table: DynamoTable) -> None:
    counters = world.ctx.limits.counters
    batch_id = world.job(batch_size=3, payload=[1, 2, 3])
    assert counters.read(NAMESPACE).jobs == 4
    before = table.get(keys.job(NAMESPACE, batch_id))
    world.do(transitions.cancel, batch_id)
    change = {"old": before, "new": table.get(keys.job(NAMESPACE, batch_id))}
    count_ends(world.ctx, [Record(sequence_number="1", change=change)], {})
    assert counters.read(NAMESPACE).jobs == 0


def test_failed_counter_write_after_a_creation_does_not_fail_the_request(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StoreConflict("throttled")

    monkeypatch.setattr(CounterStore, "add", refuse)
    with reserve_jobs(world.ctx, NAMESPACE, 1):
        job_id = world.job()
    assert world.ctx.jobs.find(NAMESPACE, job_id)
    with pytest.raises(ZeroDivisionError), reserve_jobs(world.ctx, NAMESPACE, 1):
        _ = 1 / 0


def test_failed_record_of_one_tenant_leaves_the_ends_of_others_counted(world: World, table: DynamoTable) -> None:
    model = Model(world, table, Random(1))
    model.create()
    model.create()
    model.end()
    model.end()
    first, *others = [record for record in model.stream if record.change["old"]]
    count_ends(world.ctx, [first, *others], {first.sequence_number})
    assert world.ctx.limits.counters.read(NAMESPACE).jobs == 1
