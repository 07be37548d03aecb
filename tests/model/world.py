"""A small world in which Vigil's functions run one AWS call at a time, in any order and with any fault.

Every process is an actor in a greenlet of its own. An actor yields control before each AWS call and before its
response. The history decides which actor continues, and whether the next call succeeds, is throttled, meets a
transaction conflict, is repeated by the SDK because its first response was lost, or ends with a crash.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

import greenlet
from boto3.dynamodb.types import TypeSerializer
from botocore.exceptions import ClientError

from tests.model.moto_table import empty_table
from tests.support.world import FakePayloadStore, FakeTimers
from vigil_core.api.schedules.models import parse_scheduled_job
from vigil_core.api.workflows.models import parse_workflow
from vigil_core.domain.errors import StoreConflict, VigilError
from vigil_core.domain.exact_json import loads
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.waits.wait import Wait
from vigil_core.services.background import matcher as match
from vigil_core.services.background import sweeper as sweep
from vigil_core.services.background.fan_out import fan_out
from vigil_core.services.context import Context
from vigil_core.services.ports import FanOutMessage
from vigil_core.store import keys
from vigil_core.store.connections import ConnectionStore
from vigil_core.store.due_index import DueStore
from vigil_core.store.idempotency import IdempotencyStore
from vigil_core.store.jobs.batches import BatchStore
from vigil_core.store.jobs.dependencies import DependencyStore
from vigil_core.store.jobs.job_rows import job_from_row
from vigil_core.store.jobs.job_types import JobTypeStore
from vigil_core.store.jobs.jobs import JobStore
from vigil_core.store.keys import Key
from vigil_core.store.limits import LimitStores
from vigil_core.store.listing import ListingStore
from vigil_core.store.locks import LockStore
from vigil_core.store.postponed_records import PostponedRecordStore
from vigil_core.store.queues import QueueStore
from vigil_core.store.schedules import ScheduleStore
from vigil_core.store.stream import StreamRecord
from vigil_core.store.table import Action, Delete, DynamoTable, Put, QueryPage, Row, Table, Update
from vigil_core.store.waits.wait_rows import wait_from_row
from vigil_core.store.waits.waits import WaitStore
from vigil_core.store.webhooks import WebhookStore
from vigil_core.store.work_slots import WorkSlotStore
from vigil_core.store.workflows.runs import RunStore

T = TypeVar("T")
R = TypeVar("R")

Fate: TypeAlias = Literal["goes on", "dies", "is throttled", "meets a transaction", "is sent twice"]
"""The result of an actor's next call. Only writes meet transaction conflicts or are repeated."""
SHARDS = 2
"""The shards of the table's stream. All records of one job are in one shard, in order."""
MAX_ROUNDS = 12

_to_dynamo = TypeSerializer()


class Deviation(AssertionError):
    """The world differs from the reference."""


class ProcessCrashed(BaseException):
    """The process of an actor crashes between two of its calls. The actor's code cannot catch it."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How far an actor runs before another one continues, and the result of its next call then.

    Counted in calls, or in moves: all reads up to the next write are one move, and all writes up to the next read.
    """

    calls: int | None = None
    moves: int | None = None
    then: Fate | None = None


UNINTERRUPTED = Pace()


@dataclass(frozen=True)
class Call:
    """An AWS call that an actor is about to make."""

    what: str
    write: bool


NO_CALL = Call("", False)


@dataclass(eq=False, kw_only=True)
class Actor:
    """One invocation of a function: an API call, a batch for the matcher, a message, a sweep."""

    name: str
    what: str
    begun: int
    greenlet: greenlet.greenlet
    when_over: Callable[[Actor], None]
    next_call: Call = NO_CALL
    ended: int | None = None
    had_fault: bool = False
    value: Any = None
    error: Exception | None = None
    crashed: bool = False

    @property
    def answered(self) -> bool:
        """Whether it ended without an error, and its client knows."""
        return self.ended is not None and self.error is None and not self.crashed


@dataclass(frozen=True)
class RowImage:
    """A version of a wait's row, and the tick at which its writer began."""

    tick: int
    at: datetime
    wait: Wait
    writer_begun: int


@dataclass(eq=False)
class Shard:
    """A shard of the stream: its records, and the position up to which Lambda has processed them."""

    records: list[StreamRecord] = field(default_factory=list)
    done: int = 0
    reader: Actor | None = None


@dataclass(eq=False)
class Group:
    """Ordered messages for the fan-out function."""

    messages: deque[str] = field(default_factory=deque)
    reader: Actor | None = None


class World:
    """The table, its stream, the queues, the time, and all actors."""

    START = datetime(2026, 1, 1, tzinfo=UTC)

    def __init__(self, *, spec_page_entries: int) -> None:
        self.tick = 0
        """The number of AWS calls so far: the order of all events."""
        self.now = self.START
        self.actors: list[Actor] = []
        self.shards = [Shard() for _ in range(SHARDS)]
        self.groups: dict[str, Group] = {}
        self.wake_ups: list[str] = []
        self.versions: list[tuple[int, Job]] = []
        """Every version of every job, with the tick of its write."""
        self.images: list[RowImage] = []
        """Every version of every wait's row."""
        self.idle_ticks: list[int] = []
        """The ticks at which no actor was running."""
        self.had_fault = False
        """Whether any fault has happened."""
        self.trace: list[tuple[str, str]] = []
        self.plain_table = empty_table()
        self._main = greenlet.getcurrent()
        self._current: Actor | None = None
        self._begun = 0
        self._ids = 0
        table = _InterceptedTable(self, self.plain_table)
        self.ctx = self._context(table, spec_page_entries)
        self.observer = self._context(self.plain_table, spec_page_entries)
        """Return a context to inspect the world; its calls belong to no actor."""

    def _context(self, table: Table, spec_page_entries: int) -> Context:
        job_types = JobTypeStore(table, now=lambda: self.now)
        return Context(
            jobs=JobStore(table, FakePayloadStore(), now=lambda: self.now),
            job_types=job_types,
            dependencies=DependencyStore(table),
            batches=BatchStore(table),
            locks=LockStore(table),
            waits=WaitStore(table, now=lambda: self.now, spec_page_entries=spec_page_entries),
            idempotency=IdempotencyStore(table),
            listing=ListingStore(table),
            due_index=DueStore(table),
            job_queues=QueueStore(table, now=lambda: self.now),
            connections=ConnectionStore(table),
            webhooks=WebhookStore(table),
            work_slots=WorkSlotStore(table),
            schedules=ScheduleStore(table),
            runs=RunStore(table, FakePayloadStore(), now=lambda: self.now),
            postponed_records=PostponedRecordStore(table),
            limits=LimitStores.over(table, now=lambda: self.now, concurrency=10, choose=lambda _: 0),
            message_queues=_Queues(self),
            timers=FakeTimers(),
            parse_job=partial(parse_scheduled_job, find_type=job_types.find),
            parse_run=lambda namespace, body, workflow_id, now, schedule: parse_workflow(
                namespace, body, workflow_id, now=now, find_types=job_types.find_many, schedule=schedule
            ),
            clock=lambda: self.now,
            new_id=self.new_id,
            sleep=lambda seconds: self.call(f"sleeps {seconds:g} s", lambda: None),
            in_parallel=_map_in_sequence,
        )

    def new_id(self) -> str:
        """Return a UUIDv7 that is the same in every repetition of a history."""
        self._ids += 1
        return uuid7(self.now, self._ids)

    # Actors

    def begin(self, who: str, what: str, work: Callable[[str], Any], when_over: Callable[[Actor], None]) -> Actor:
        """Start an actor, which stops before its first call."""
        self._begun += 1
        name = f"{who}-{self._begun}"

        def life(_: Fate) -> None:
            try:
                actor.value = work(name)
                if self._main.switch(Call("answers", False)) == "dies":
                    raise ProcessCrashed
            except ProcessCrashed:
                actor.crashed = True
            except greenlet.GreenletExit:
                raise
            except Exception as error:
                actor.error = error

        actor = Actor(
            name=name, what=what, begun=self.tick, greenlet=greenlet.greenlet(life, self._main), when_over=when_over
        )
        self.actors.append(actor)
        self.log(name, f"begins: {what}")
        self._resume(actor, "goes on")
        return actor

    def advance(self, actor: Actor, pace: Pace = UNINTERRUPTED) -> None:
        """Let an actor run this far."""
        calls, moves = pace.calls, pace.moves
        while actor.ended is None and calls != 0 and moves != 0:
            writes = actor.next_call.write
            self._resume(actor, "goes on")
            calls = None if calls is None else calls - 1
            if moves is not None and actor.next_call.write != writes:
                moves -= 1
        if actor.ended is None and pace.then is not None:
            actor.had_fault = self.had_fault = True
            self.log(actor.name, f"{pace.then} when it {actor.next_call.what}")
            self._resume(actor, pace.then)
            self.advance(actor)

    def _resume(self, actor: Actor, fate: Fate) -> None:
        self._current = actor
        actor.next_call = actor.greenlet.switch(fate) or NO_CALL
        self._current = None
        if actor.greenlet.dead:
            actor.ended = self.tick
            self.actors.remove(actor)
            if not actor.crashed:
                self.log(actor.name, f"fails: {actor.error!r}" if actor.error else "is done")
            actor.when_over(actor)

    def call(self, what: str, effect: Callable[[], T], *, write: bool = False) -> T:
        """Perform one AWS call of the running actor, or of the inspecting test."""
        actor = self._current
        if actor is None:
            return effect()
        fate: Fate = self._main.switch(Call(what, write))
        if fate == "dies":
            raise ProcessCrashed
        self.tick += 1
        self.now += timedelta(milliseconds=1)
        if fate == "is throttled":
            self.log(actor.name, f"  {what} -> throttled")
            raise ClientError(
                {"Error": {"Code": "ProvisionedThroughputExceededException", "Message": "too much at once"}}, "Any"
            )
        if fate == "meets a transaction" and write:
            self.log(actor.name, f"  {what} -> a transaction has that row")
            raise StoreConflict("a transaction has that row, try after try")
        if fate == "is sent twice" and write:
            effect()
            self.log(actor.name, f"  {what} -> done, but the answer is lost and the SDK sends it again")
        try:
            result = effect()
        except Exception as error:
            self.log(actor.name, f"  {what} -> {error}")
            raise
        self.log(actor.name, f"  {what} -> {_abbreviated(result)}")
        return result

    def log(self, who: str, what: str) -> None:
        """Add a line to the description of the history."""
        self.trace.append((who, what))

    # Stream

    def record_write(self, row: Row) -> None:
        """Record a row change: pass job versions to the stream's readers that match, and store versions and waits."""
        if row["entity"] == "job":
            job = job_from_row(row)
            if any(job.version == v.version for _, v in self.versions if (v.namespace, v.job_id) == job_key(job)):
                return
            self.versions.append((self.tick, job))
            if not row.get("needs_matching"):
                return
            image = {name: _to_dynamo.serialize(value) for name, value in row.items()}
            record = StreamRecord(sequence_number=f"{self.tick:09}", change={"NewImage": image})
            self.shard_of(row["pk"]).records.append(record)
        elif row["entity"] == "wait":
            assert self._current is not None
            self.images.append(RowImage(self.tick, self.now, wait_from_row(row), self._current.begun))

    def shard_of(self, pk: str) -> Shard:
        """Return the shard of a partition."""
        return self.shards[zlib.crc32(pk.encode()) % SHARDS]

    def match(self, shard: Shard, first: int, count: int) -> Actor:
        """Deliver a batch of records to a matcher.

        If the batch is the shard's next one, success advances the shard, and failure returns the records from the first
        failed one, as Lambda does.
        """
        records = shard.records[first : first + count]
        numbers = [record.sequence_number for record in records]

        def over(actor: Actor) -> None:
            if shard.reader is not actor:
                return
            shard.reader = None
            if actor.answered:
                failed = [n for n, number in enumerate(numbers) if number in actor.value]
                shard.done = max(shard.done, first + min(failed, default=len(records)))

        told = [job_from_row(row) for record in records if (row := record.new())]
        what = ", ".join(f"{job.namespace} {job.job_id} v{job.version}" for job in told)
        actor = self.begin("matcher", what, lambda _: match.match_records(self.ctx, records), over)
        if first == shard.done and actor.ended is None:
            # Lambda has abandoned a matcher that still runs: it continues, but its result is ignored.
            shard.reader = actor
        return actor

    # Queues

    def run_fan_out(self, group: Group, *, patient: bool = True) -> Actor:
        """Deliver the first message of a group to the fan-out function; success deletes the message."""
        body = group.messages[0]

        def work(_: str) -> bool:
            return fan_out(self.ctx, loads(body), has_time_left=lambda: patient)

        def over(actor: Actor) -> None:
            if group.reader is not actor:
                return
            group.reader = None
            if actor.answered and actor.value:
                group.messages.popleft()

        actor = self.begin("fan_out", body[:150], work, over)
        if actor.ended is None:
            group.reader = actor
        return actor

    def run_sweeper_message(self, message: str) -> Actor:
        """Deliver a message to the sweeper."""
        return self.begin("sweeper", message, lambda _: sweep.on_message(self.ctx, loads(message)), lambda _: None)

    def sweep(self) -> Actor:
        """Run the sweeper's scheduled sweep."""

        def work(_: str) -> None:
            for shard in range(keys.DUE_PARTITIONS):
                sweep.sweep(self.ctx, shard)

        return self.begin("sweeper", "sweeps", work, lambda _: None)

    # End of work

    def run_until_idle(self) -> None:
        """Let every actor finish, and process all records and messages without faults."""
        for _ in range(MAX_ROUNDS * 100):
            if self.actors:
                self.advance(self.actors[0])
                continue
            shard = next((shard for shard in self.shards if shard.done < len(shard.records)), None)
            group = next((group for group in self.groups.values() if group.messages), None)
            if shard is not None:
                self._must_succeed(self.match(shard, shard.done, 10))
            elif group is not None:
                self._must_succeed(self.run_fan_out(group))
            else:
                self.idle_ticks.append(self.tick)
                self.log("world", "nothing is under way any more")
                return
        raise Deviation("stream and queues never come to rest")

    def _must_succeed(self, actor: Actor) -> None:
        self.advance(actor)
        failed = actor.value if isinstance(actor.value, dict) else {}
        error = actor.error or next(iter(failed.values()), None)
        if error is not None:
            raise Deviation(f"{actor.name} fails though nothing was done to it: {error!r}") from error

    def run_until_nothing_is_due(self) -> None:
        """Settle, and sweep until nothing is due."""
        self.run_until_idle()
        for _ in range(MAX_ROUNDS):
            self.now += timedelta(seconds=61)
            self.log("world", "a minute passes")
            self._must_succeed(self.sweep())
            self.run_until_idle()
            if not self.overdue():
                return
        raise Deviation(f"still due after {MAX_ROUNDS} sweeps: {self.overdue()}")

    def overdue(self) -> list[str]:
        """Return the work that the sweeper has missed."""
        found: list[str] = []
        for each in (
            due for shard in range(keys.DUE_PARTITIONS) for due in self.observer.due_index.overdue(shard, self.now)
        ):
            if each.kind == "queue":
                queue = (each.namespace, each.entity_id)
                found += self.observer.job_queues.overdue(*queue, "running", self.now, 100)
            else:
                found.append(f"{each.kind} of {each.namespace} {each.entity_id}")
        return found

    def stop(self) -> None:
        """Stop every actor: the history has ended."""
        for actor in self.actors:
            actor.greenlet.throw()
        self.actors.clear()


class _InterceptedTable:
    """The real table on moto, with the world between any two calls. Implements `Table`."""

    def __init__(self, world: World, table: DynamoTable) -> None:
        self._world = world
        self._table = table

    def get(self, key: Key) -> Row | None:
        return self._world.call(f"reads {_name(key)}", lambda: self._table.get(key))

    def batch_get(self, keys: Sequence[Key], *, consistent: bool = True) -> dict[Key, Row]:
        # Not a snapshot: each row is read at a different moment.
        found: dict[Key, Row] = {}
        for key in dict.fromkeys(keys):
            found |= self._world.call(
                f"reads {_name(key)} in a batch",
                lambda key=key: self._table.batch_get([key]),  # type: ignore[misc]
            )
        return found

    def query_page(self, pk: str, **bounds: Any) -> QueryPage:
        return self._world.call(f"queries {pk} {_bounds(bounds)}", lambda: self._table.query_page(pk, **bounds))

    def count(self, pk: str, **bounds: Any) -> int:
        return self._world.call(f"counts {pk} {_bounds(bounds)}", lambda: self._table.count(pk, **bounds))

    def put(self, put: Put) -> None:
        self._world.call(f"puts {_row_name(put.row)}", lambda: self._put(put), write=True)

    def update(self, update: Update) -> Row:
        return self._world.call(
            f"updates {_name(update.key)} {update.expression.split('=')[0]}…", lambda: self._update(update), write=True
        )

    def delete(self, delete: Delete) -> None:
        self._world.call(f"deletes {_name(delete.key)}", lambda: self._table.delete(delete), write=True)

    def batch_write(self, puts: Sequence[Row] = (), deletes: Sequence[Key] = ()) -> None:
        # Not a transaction: each row is written at a different moment, in any order.
        for row in puts:
            self._world.call(
                f"puts {_row_name(row)} in a batch",
                lambda row=row: self._table.batch_write(puts=[row]),  # type: ignore[misc]
                write=True,
            )
        for key in deletes:
            self._world.call(
                f"deletes {_name(key)} in a batch",
                lambda key=key: self._table.batch_write(deletes=[key]),  # type: ignore[misc]
                write=True,
            )

    def transact(self, actions: Sequence[Action]) -> None:
        what = ", ".join(_row_name(a.row) if isinstance(a, Put) else _name(a.key) for a in actions)
        # boto3 gives each transaction a token, so a repeated request takes effect once.
        self._world.call(f"writes in a transaction {what}", lambda: self._transact(actions))

    def _put(self, put: Put) -> None:
        watched = put.row["entity"] in ("job", "wait")
        before = self._table.get(Key(put.row["pk"], put.row["sk"])) if watched else None
        self._table.put(put)
        if watched:
            after = self._table.get(Key(put.row["pk"], put.row["sk"]))
            if after is not None and after != before:
                self._world.record_write(after)

    def _update(self, update: Update) -> Row:
        before = self._table.get(update.key)
        after = self._table.update(update)
        if after != before:
            self._world.record_write(after)
        return after

    def _transact(self, actions: Sequence[Action]) -> None:
        self._table.transact(actions)
        for action in actions:
            if isinstance(action, Put):
                row = self._table.get(Key(action.row["pk"], action.row["sk"]))
                assert row is not None
                self._world.record_write(row)


class _Queues:
    """Messages between functions, stored in the world. Implements `MessageQueues`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def send_fan_out(self, messages: Sequence[FanOutMessage]) -> None:
        for message in messages:
            group = self._world.groups.setdefault(message.group, Group())
            self._world.call(
                f"sends the fan-out function {message.body[:60]}…",
                lambda group=group, body=message.body: group.messages.append(body),  # type: ignore[misc]
            )

    def send_to_sweeper(self, message: str, delay_s: int) -> None:
        self._world.call(f"asks to be woken in {delay_s} s for {message}", lambda: self._world.wake_ups.append(message))

    def send_deliveries(self, messages: Sequence[str], *, delay_s: int = 0) -> None:
        raise AssertionError("nobody has a webhook here")


def job_key(job: Job) -> tuple[str, str]:
    """Return the job whose version this is."""
    return job.namespace, job.job_id


def uuid7(at: datetime, number: int) -> str:
    """Return a UUIDv7 made of a time and a number."""
    ms = f"{int(at.timestamp() * 1000):012x}"
    return f"{ms[:8]}-{ms[8:]}-7000-8000-{number:012x}"


def is_server_error(error: Exception) -> bool:
    """Return whether a client would see an unexpected 5xx; the API maps every error of its own."""
    return not isinstance(error, VigilError | ClientError)


def _map_in_sequence(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    return [work(item) for item in items]


def _bounds(bounds: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in bounds.items() if value is not None)


def _name(key: Key) -> str:
    return f"{key.pk} {key.sk}"


def _row_name(row: Row) -> str:
    seen = f" v{row['version']}" if "version" in row else ""
    return f"{row['entity']} {row['pk']} {row['sk']}{seen}" + (f" {row['status']}" if "status" in row else "")


def _abbreviated(result: object) -> str:
    if result is None:
        return "done"
    if isinstance(result, QueryPage):
        return f"{len(result.rows)} rows" + (", and more" if result.cursor else "")
    if isinstance(result, dict):
        if not result:
            return "nothing"
        rows: Iterator[Any] = iter([result] if "pk" in result else result.values())
        return ", ".join(_row_name(row) for row in rows)
    return str(result)
