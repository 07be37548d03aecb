"""A world in which the process crashes between any two writes; streams and queues then redeliver the work."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count
from random import Random
from typing import Any, TypeAlias

from boto3.dynamodb.types import TypeSerializer

from tests.model.moto_table import empty_table
from tests.support.world import NAMESPACE, FakeQueues, World
from vigil_core.domain.exact_json import loads
from vigil_core.domain.ids import derive_id_at
from vigil_core.domain.jobs.job import Job
from vigil_core.services.background.fan_out import fan_out
from vigil_core.services.background.matcher import match_records
from vigil_core.services.background.sweep import SweepFailed
from vigil_core.services.ports import FanOutMessage
from vigil_core.store.jobs.job_rows import job_from_row
from vigil_core.store.keys import Key
from vigil_core.store.stream import StreamRecord
from vigil_core.store.table import Action, DynamoTable, Put, Row, Update

CRASH_POINTS = [None, None, None, None, (0, False), (0, True), (1, False), (1, True), (2, False), (4, True)]
"""The number of writes before a crash, and whether the last write was applied."""
DEDUPLICATION_INTERVAL = timedelta(minutes=5)
"""A FIFO queue drops a message with the text of an earlier message for this long."""
WRITES = frozenset({"put", "update", "delete", "batch_write", "transact"})

_to_dynamo = TypeSerializer()


class ProcessCrashed(BaseException):
    """The process has crashed."""


class CrashPlan:
    """Decides when the process crashes."""

    def __init__(self) -> None:
        self.writes_left: int | None = None
        self.crash_after_write = False

    def carry_out(self, write: Callable[[], Any]) -> Any:
        """Perform a write, which may be the last one."""
        last = self.writes_left == 0
        if last and not self.crash_after_write:
            raise ProcessCrashed
        done = write()
        if last:
            self.crash_after_write = False
            raise ProcessCrashed
        if self.writes_left is not None:
            self.writes_left -= 1
        return done


class CrashingProxy:
    """A proxy that crashes the process before or after one of its writes."""

    def __init__(self, written_to: object, writes: Collection[str], mortality: CrashPlan) -> None:
        self._written_to, self._writes, self._mortality = written_to, writes, mortality

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._written_to, name)
        if name not in self._writes:
            return call
        return lambda *args, **kwargs: self._mortality.carry_out(lambda: call(*args, **kwargs))


class StreamedTable:
    """The table, which records the job versions that its stream delivers."""

    def __init__(self, table: DynamoTable) -> None:
        self._table = table
        self._record_count = 0
        self.versions: list[Job] = []
        self.records: list[StreamRecord] = []
        """Return the records that pass the matcher's filter."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def put(self, put: Put) -> None:
        with self._recording([put]):
            self._table.put(put)

    def update(self, update: Update) -> Row:
        with self._recording([update]):
            return self._table.update(update)

    def transact(self, actions: Sequence[Action]) -> None:
        with self._recording(actions):
            self._table.transact(actions)

    @contextmanager
    def _recording(self, actions: Sequence[Action]) -> Iterator[None]:
        """Record the states of jobs before and after the block."""
        keys = [Key(each.row["pk"], each.row["sk"]) if isinstance(each, Put) else each.key for each in actions]
        before = {key: self._table.get(key) for key in keys if "#job#" in key.pk and key.sk == "A"}
        yield
        for key, old in before.items():
            row = self._table.get(key)
            if row is not None and row != old:
                self._changed(old, row)

    def _changed(self, old: Row | None, row: Row) -> None:
        self._record_count += 1
        if old is None or old["version"] != row["version"]:
            self.versions.append(job_from_row(row))
        if row.get("needs_matching"):
            images = {"NewImage": _image(row), **({} if old is None else {"OldImage": _image(old)})}
            self.records.append(StreamRecord(sequence_number=f"{self._record_count:09}", change=images))


class FifoQueues(FakeQueues):
    """Queues whose fan-out queue drops a message that was sent within the last minutes."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__()
        self._now = now
        self._sent: dict[str, datetime] = {}

    def send_fan_out(self, messages: Sequence[FanOutMessage]) -> None:
        for message in messages:
            sent = self._sent.get(message.body)
            if sent is None or self._now() - sent >= DEDUPLICATION_INTERVAL:
                self._sent[message.body] = self._now()
                self.fan_out_messages.append(message)


class CrashingWorld:
    """A world with its stream and its queues. The seed determines every id; each step has a seed of its own."""

    def __init__(self, seed: int) -> None:
        self.crash_plan = CrashPlan()
        self.streamed = StreamedTable(empty_table())
        self.table: Any = CrashingProxy(self.streamed, WRITES, self.crash_plan)
        self.world = World(self.table)
        self.queues = FifoQueues(lambda: self.world.time)
        numbers = count()
        self.world.ctx = replace(
            self.world.ctx,
            jitter=lambda: 0.5,
            new_id=lambda: derive_id_at(self.world.time, f"{seed}/{next(numbers)}"),
            message_queues=CrashingProxy(self.queues, {"send_fan_out"}, self.crash_plan),
            timers=CrashingProxy(self.world.timers, {"start", "cancel"}, self.crash_plan),
        )
        self.ids: list[str] = []

    def stored(self, job_id: str) -> Job:
        job = self.world.ctx.jobs.find(NAMESPACE, job_id)
        assert job
        return job

    def with_crashes(self, chance: Random, work: Callable[[], Any]) -> Any:
        """Perform work that a crash may end; return None after a crash."""
        death = chance.choice(CRASH_POINTS)
        if death is not None:
            self.crash_plan.writes_left, self.crash_plan.crash_after_write = death
        try:
            return work()
        except ProcessCrashed:
            return None
        finally:
            self.crash_plan.writes_left, self.crash_plan.crash_after_write = None, False

    # Steps

    def time_passes(self, chance: Random) -> None:
        self.world.pass_time(chance.choice([1, 9, 31, 61]))

    def sweep(self, chance: Random) -> None:
        with suppress(SweepFailed):
            self.with_crashes(chance, self.world.sweep)
        # The sweep lease of a crashed sweep expires a minute later.
        self.world.pass_time(56)

    def stream(self, chance: Random) -> None:
        """Deliver the next records to the matcher, and again the records that it failed or did not acknowledge."""
        batch = self.streamed.records[: chance.randint(1, 4)]
        failed = self.with_crashes(chance, lambda: match_records(self.world.ctx, batch))
        if failed is not None and chance.random() < 0.8:
            for error in failed.values():
                _assert_crashed(error)
            undone = [n for n, record in enumerate(batch) if record.sequence_number in failed]
            del self.streamed.records[: min(undone, default=len(batch))]

    def fan_out(self, chance: Random) -> None:
        """Deliver the first message of a group to the fan-out function, and again if it was not acknowledged."""
        groups = list(dict.fromkeys(message.group for message in self.queues.fan_out_messages))
        if groups:
            group = chance.choice(groups)
            message = next(message for message in self.queues.fan_out_messages if message.group == group)
            done = self.with_crashes(
                chance, lambda: fan_out(self.world.ctx, loads(message.body), has_time_left=lambda: True)
            )
            if done and chance.random() < 0.8:
                self.queues.fan_out_messages.remove(message)

    # End of the simulation

    def run_until_idle(self) -> None:
        """Process the stream and the queues to the end, without crashes."""
        for _ in range(1000):
            if records := self.streamed.records[:10]:
                assert match_records(self.world.ctx, records) == {}
                del self.streamed.records[: len(records)]
            elif self.queues.fan_out_messages:
                assert fan_out(
                    self.world.ctx, loads(self.queues.fan_out_messages.pop(0).body), has_time_left=lambda: True
                )
            else:
                return
        raise AssertionError("stream and queue never come to rest")

    def pass_minutes(self, minutes: int) -> None:
        """Run only the sweeper, the matcher and the fan-out function."""
        self.run_until_idle()
        for _ in range(minutes):
            self.world.pass_time(61)
            self.world.sweep()
            self.run_until_idle()

    def check_invariants(self) -> None:
        """Check the invariants that hold after every step."""

    def check_end(self) -> None:
        """Check the invariants that hold at the end."""


def simulate(
    made: Callable[[int], CrashingWorld], steps: Sequence[str], seeds: range, *, length: int = 40, shorten: bool = True
) -> None:
    """Simulate one world for each seed, with this number of random steps.

    A seed always gives the same world. A failure carries the shortest list of steps found that also fails, unless
    `shorten` is false.

    Raises: AssertionError if an invariant does not hold.
    """
    for seed in seeds:
        chance = Random(seed)
        steps_with_seeds = [(chance.choice(steps), chance.getrandbits(32)) for _ in range(length)]
        try:
            _simulate(made(seed), steps_with_seeds)
        except AssertionError as error:
            if shorten:
                error.add_note(f"Seed {seed}; these steps fail: {_shorten(made, seed, steps_with_seeds)}")
            raise


Steps: TypeAlias = Sequence[tuple[str, int]]
"""Return the steps, each with the seed of its random choices."""


def _simulate(world: CrashingWorld, steps_with_seeds: Steps) -> None:
    for step, number in steps_with_seeds:
        getattr(world, step)(Random(number))
        world.check_invariants()
    world.check_end()


def _shorten(made: Callable[[int], CrashingWorld], seed: int, steps_with_seeds: Steps) -> Steps:
    """Return the steps that remain when no run of steps can be left out without a success."""
    size = len(steps_with_seeds) // 2
    while size:
        for start in range(len(steps_with_seeds) - size, -1, -size):
            shorter = [*steps_with_seeds[:start], *steps_with_seeds[start + size :]]
            try:
                _simulate(made(seed), shorter)
            except AssertionError:
                steps_with_seeds = shorter
        size //= 2
    return steps_with_seeds


def _image(row: Row) -> dict[str, Any]:
    return {name: _to_dynamo.serialize(value) for name, value in row.items()}


def _assert_crashed(error: BaseException | None) -> None:
    """Report an error only if no crash caused it."""
    while error is not None and not isinstance(error, ProcessCrashed):
        error = error.__cause__ or error.__context__
    assert error is not None
