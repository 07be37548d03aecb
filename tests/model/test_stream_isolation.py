"""Simulated batches of the stream, some of whose records fail in every way, against a plain model of their waits.

Each job has waits that only one of its versions meets. Whatever fails, the waits of innocent jobs are decided in the
first pass, every wait is decided by the version that the model names, which proves the order, and nothing is lost: a
wait that stays undecided has the record of its version in the dead letters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any, Literal, TypeAlias

import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from tests.model.crash_injection import CRASH_POINTS, CrashingWorld, ProcessCrashed
from tests.model.seeds import WORLDS, blocks
from tests.support.dead_letters import FUNCTION_ARN, FakeDeadLetters
from tests.support.table import create_table
from tests.support.world import NAMESPACE
from vigil.local import batch_delivery
from vigil.local.event_source_mapping import Record, StreamMapping
from vigil_core.domain.dead_letters import dead_letter_body
from vigil_core.domain.exact_json import loads
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.waits.wait import EntryOutcome, WaitEntry, parse_condition
from vigil_core.domain.waits.wait import evaluate as evaluate_condition
from vigil_core.runtime.batch_response import batch_response
from vigil_core.services.background import matcher
from vigil_core.services.background.stream_consumer import StreamConsumer, consume, retry_postponed
from vigil_core.services.waits import resolve
from vigil_core.store.jobs.job_rows import job_from_row
from vigil_core.store.stream import StreamRecord, stream_records

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]

Fault: TypeAlias = Literal["none", "poisoned entry", "poisoned row", "throttled", "throttled until healed", "kills"]
FAULTS: list[Fault] = ["none", "poisoned entry", "poisoned row", "throttled", "throttled until healed", "kills"]
MAX_DELAY_S = 12.0
"""The longest time that the records of a batch may delay the next batch, if no process ends."""
MAPPING = StreamMapping(
    uuid="mapping", function_arn=FUNCTION_ARN, stream_arn="stream", enabled=True, starting_position="TRIM_HORIZON",
    batch_size=100, batching_window_s=0, parallelization=1, patterns=(), reports_item_failures=True, bisects=True,
    maximum_retries=8, maximum_age_s=82_800, failure_destination=None,
)  # fmt: skip


class ProcessKilled(BaseException):
    """A record has ended the process."""


@dataclass
class FaultyTable:
    """A table that fails on the rows of some waits while a consumer runs."""

    table: Any
    faults: dict[str, tuple[Fault, int]] = field(default_factory=dict)
    """The fault of each wait, and the number of failures that are left of it."""
    is_active: bool = False

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.table, name)
        if name not in ("get", "put", "update"):
            return call

        def faulty(*args: Any, **kwargs: Any) -> Any:
            self._fail(repr(args))
            return call(*args, **kwargs)

        return faulty

    def _fail(self, arguments: str) -> None:
        for wait_id, (fault, left) in self.faults.items():
            if not self.is_active or f"#wait#{wait_id}" not in arguments or left == 0:
                continue
            self.faults[wait_id] = fault, left - 1
            match fault:
                case "throttled" | "throttled until healed":
                    raise ClientError({"Error": {"Code": "ThrottlingException", "Message": "slow down"}}, "GetItem")
                case "poisoned row":
                    raise ValueError("this row cannot be stored")
                case "kills":
                    raise ProcessKilled


@dataclass(frozen=True, kw_only=True)
class ModelWait:
    """A wait of the model: it is met by the version whose field `n` has this value, and unmet by the job's end."""

    wait_id: str
    job_id: str
    n: int
    fault: Fault


class IsolationSimulation(CrashingWorld):
    """Jobs with waits, whose records the matcher consumes by AWS's rules of delivery."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.chance = Random(seed)
        self.faulty = FaultyTable(self.streamed._table)
        self.streamed._table = self.faulty  # type: ignore[assignment]
        self.dead_letters = FakeDeadLetters()
        self.retries: list[Any] = []
        self.world.ctx = replace(self.world.ctx, stream_consumers=self)
        self.consumer = StreamConsumer(
            name="matcher", function_arn=FUNCTION_ARN, dead_letters=lambda: self.dead_letters
        )
        self.waits: list[ModelWait] = []
        self.counts: dict[str, int] = {}
        self.delivered: set[tuple[str, int]] = set()
        """The versions, as (job id, version), that a process without a crash has received."""
        self.has_crashed = False

    def retry_postponed(self, _: str, event: str) -> None:
        self.retries.append(loads(event))

    # The history of the jobs

    def create_job(self, fault: Fault) -> None:
        job_id = self.world.running(executor="none")
        self.counts[job_id] = 0
        for number in sorted(self.chance.sample(range(1, 7), self.chance.randint(1, 3))):
            wait_id = str(self.world.wait({job_id: {"n": number}}, wait_options={"expires_in": 86_400})["wait_id"])
            self.waits.append(ModelWait(wait_id=wait_id, job_id=job_id, n=number, fault=fault))
            failures = {"none": 0, "throttled": self.chance.randint(1, 6)}.get(fault, 1_000_000)
            self.faulty.faults[wait_id] = fault, failures

    def change_job(self) -> None:
        job_id = self.chance.choice(list(self.counts))
        if self.stored(job_id).ended:
            return
        if self.chance.random() < 0.12:
            self.world.complete(job_id)
        else:
            self.counts[job_id] += 1
            self.world.report(job_id, fields={"n": self.counts[job_id]})

    # The delivery

    def deliver(self) -> None:
        """Deliver a batch by AWS's rules, until each of its records is processed or abandoned."""
        batch = self.streamed.records[: self.chance.randint(1, 6)]
        del self.streamed.records[: len(batch)]
        if not batch:
            return
        created_at = self.world.time.timestamp()
        self.source = {
            record.sequence_number: replace(
                record, change={**record.change, "ApproximateCreationDateTime": int(created_at)}
            )
            for record in batch
        }
        records = [
            Record(sequence=number, partition="", created_at=created_at, event={}, text="") for number in self.source
        ]
        self.has_crashed, started_at = False, self.world.time
        batch_delivery.deliver(MAPPING, records, self)
        if not self.has_crashed:
            assert (self.world.time - started_at).total_seconds() <= MAX_DELAY_S

    def invoke(self, records: Sequence[Record]) -> batch_delivery.Outcome:
        batch = [self.source[record.sequence] for record in records]
        with self.consuming() as has_ended:
            process = partial(matcher.match_records, self.world.ctx)
            report = consume(self.world.ctx, self.consumer, batch, process)
        if has_ended:
            return batch_delivery.Failed("Unhandled")
        self.delivered |= {_version_of(record) for record in batch}
        self.check_innocent()
        return batch_delivery.Answered(batch_response(report.failed))

    @contextmanager
    def consuming(self) -> Iterator[list[bool]]:
        """Run a consumer with its faults, and report whether its process ended."""
        has_ended: list[bool] = []
        crash = self.chance.choice([None] * 8 + CRASH_POINTS)
        if crash is not None:
            self.crash_plan.writes_left, self.crash_plan.crash_after_write = crash
        self.faulty.is_active = True
        try:
            yield has_ended
        except (ProcessCrashed, ProcessKilled):
            has_ended.append(True)
            self.has_crashed = True
        finally:
            self.faulty.is_active = False
            self.crash_plan.writes_left, self.crash_plan.crash_after_write = None, False

    def done(self, records: Sequence[Record]) -> None:
        """Do nothing: the records are no longer in the stream."""

    def abandon(self, records: Sequence[Record], condition: str, invocations: int, function_error: str | None) -> None:
        """Store a dead letter as Lambda does. Only a record whose process ends again and again is abandoned."""
        assert self.has_crashed, condition
        for record in records:
            body = dead_letter_body(FUNCTION_ARN, "ProcessEnded", self.source[record.sequence].deliverable, error="")
            self.dead_letters.put(record.sequence, body)

    def pause(self, seconds: float) -> bool:
        self.world.pass_time(seconds)
        return True

    def now(self) -> float:
        return self.world.time.timestamp()

    def retry(self) -> None:
        """Sweep, and let the consumer retry the postponed records that are due."""
        self.world.sweep()
        self.world.pass_time(61)
        requests, self.retries = self.retries, []
        for request in requests:
            with self.consuming():
                process = partial(matcher.match_records, self.world.ctx)
                retry_postponed(self.world.ctx, self.consumer, **request["postponed"], process=process)

    # The model

    def expected(self, wait: ModelWait, *, through: int | None = None) -> tuple[str, int] | None:
        """Return the status and the version of the first version that decides a wait."""
        condition = parse_condition({"n": wait.n})
        for job in self.versions_of(wait.job_id):
            status = evaluate_condition(condition, job, fail_fast=False)
            if status is not None and (through is None or job.version <= through):
                return status, job.version
        return None

    def versions_of(self, job_id: str) -> list[Job]:
        return [job for job in self.streamed.versions if job.job_id == job_id]

    def outcome(self, wait: ModelWait) -> EntryOutcome | None:
        stored = self.world.ctx.waits.find(NAMESPACE, wait.wait_id)
        assert stored is not None
        return stored.outcomes.get(0)

    def check_innocent(self) -> None:
        """Check that each wait of an innocent job is decided as soon as a process has received its version."""
        for wait in self.waits:
            decided = self.expected(wait) if wait.fault == "none" else None
            version = None if decided is None else (wait.job_id, decided[1])
            if version in self.delivered and version not in self.lost():
                outcome = self.outcome(wait)
                assert outcome is not None, wait
                assert (outcome.status, outcome.version) == decided

    def lost(self) -> dict[tuple[str, int], str]:
        """Return the versions whose records are dead letters, and the condition of each."""
        return {
            _version_of(record): letter.condition
            for letter in self.dead_letters.parsed()
            for record in stream_records(json.loads(letter.event))
        }

    def check_end(self) -> None:
        """Check every wait, after the causes of the transient errors are over and everything is processed."""
        lost = self.lost()
        for wait in self.waits:
            decided, outcome = self.expected(wait), self.outcome(wait)
            if decided is not None and (wait.job_id, decided[1]) in lost:
                # The rule for a process that ends also applies to the crashes that the simulation injects.
                condition = lost[wait.job_id, decided[1]]
                assert condition == "ProcessEnded" or (condition, wait.fault) == ("PermanentError", "poisoned row")
            elif wait.fault == "poisoned entry" and outcome is not None:
                assert (outcome.status, outcome.reason) == ("unmet", "processing_failed")
            elif decided is not None:
                assert wait.fault not in ("poisoned row", "kills"), wait
                assert outcome is not None, wait
                assert (outcome.status, outcome.version) == decided, wait

    def heal(self) -> None:
        """End the cause of the transient errors."""
        for wait_id, (fault, _) in self.faulty.faults.items():
            if fault == "throttled until healed":
                self.faulty.faults[wait_id] = fault, 0


def _version_of(record: StreamRecord) -> tuple[str, int]:
    row = record.new()
    assert row is not None
    job = job_from_row(row)
    return job.job_id, job.version


@pytest.fixture(autouse=True, scope="module")
def _table() -> Iterator[None]:
    with mock_aws():
        create_table()
        yield


@pytest.fixture
def poisoned_entries(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the waits whose entries cannot be evaluated."""
    poisoned: set[str] = set()
    evaluate = resolve.outcome_of

    def outcome_of(ctx: Any, entry: WaitEntry, job: Job) -> EntryOutcome | None:
        if entry.wait_id in poisoned:
            raise RecursionError
        return evaluate(ctx, entry, job)

    monkeypatch.setattr(matcher, "outcome_of", outcome_of)
    return poisoned


@pytest.mark.parametrize("seeds", blocks(WORLDS), ids=str)
def test_failing_record_delays_nothing_else_and_is_not_lost(seeds: range, poisoned_entries: set[str]) -> None:
    for seed in seeds:
        world = IsolationSimulation(seed)
        for fault in ("none", *world.chance.choices(FAULTS, k=4)):
            world.create_job(fault)
        poisoned_entries |= {wait.wait_id for wait in world.waits if wait.fault == "poisoned entry"}
        for _ in range(60):
            world.chance.choice([world.change_job] * 6 + [world.deliver] * 4 + [world.retry])()
        world.heal()
        for _ in range(60):
            world.deliver()
            world.retry()
        assert not world.streamed.records
        world.check_innocent()
        world.check_end()
