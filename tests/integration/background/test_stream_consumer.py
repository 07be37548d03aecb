"""Records that cannot be processed: delivered again, postponed, retried, or stored as dead letters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tests.support.dead_letters import FUNCTION_ARN, FakeDeadLetters
from tests.support.table import TABLE_NAME, aws
from tests.support.world import NAMESPACE, World
from vigil_core.domain.exact_json import loads
from vigil_core.services.background.stream_consumer import (
    MAX_POSTPONED,
    ConsumeReport,
    RecordQueued,
    StreamConsumer,
    consume,
    retry_postponed,
)
from vigil_core.services.background.sweeper import on_message
from vigil_core.store.stream import StreamRecord


class ProcessEnded(BaseException):
    """The process has ended during an attempt."""


@dataclass
class Consumption:
    """A consumer whose records fail as the test says. Each record is a change of one job: `a`, `b` or `c`."""

    world: World
    errors: dict[str, BaseException] = field(default_factory=dict)
    """The error of each job's records."""
    processed: list[str] = field(default_factory=list)
    requests: list[tuple[str, Any]] = field(default_factory=list)
    dead_letters: FakeDeadLetters = field(default_factory=FakeDeadLetters)
    count: int = 0

    def __post_init__(self) -> None:
        self.world.ctx = replace(self.world.ctx, stream_consumers=self)

    @property
    def consumer(self) -> StreamConsumer:
        return StreamConsumer(name="matcher", function_arn=FUNCTION_ARN, dead_letters=lambda: self.dead_letters)

    def retry_postponed(self, consumer: str, event: str) -> None:
        self.requests.append((consumer, loads(event)))

    def record(self, job_id: str) -> StreamRecord:
        """Return the next record, which was created now."""
        self.count += 1
        image = {"pk": {"S": f"{NAMESPACE}#job#{job_id}"}, "sk": {"S": "A"}, "binary": {"B": "AAE="}}
        created_at = int(self.world.time.timestamp())
        change = {"Keys": image, "NewImage": image, "ApproximateCreationDateTime": created_at}
        return StreamRecord(sequence_number=str(100 + self.count), change=change)

    def process(self, records: Sequence[StreamRecord], *, is_retry: bool) -> dict[str, Exception]:
        errors: dict[str, Exception] = {}
        for record in records:
            job_id = record.key.pk.rsplit("#", 1)[1]
            error = self.errors.get(job_id)
            if isinstance(error, Exception) and not (is_retry and isinstance(error, RecordQueued)):
                errors[record.sequence_number] = error
            elif isinstance(error, ProcessEnded):
                raise error
            else:
                self.processed.append(record.sequence_number)
        return errors

    def consume(self, *records: StreamRecord) -> ConsumeReport:
        return consume(self.world.ctx, self.consumer, records, self.process)

    def sweep(self) -> list[ConsumeReport]:
        """Sweep, and retry what the sweeper requests."""
        self.requests.clear()
        self.world.sweep()
        return self.retry()

    def retry(self) -> list[ConsumeReport]:
        return [
            retry_postponed(self.world.ctx, self.consumer, **request["postponed"], process=self.process)
            for _, request in self.requests
        ]

    def conditions(self) -> list[str]:
        return [letter.condition for letter in self.dead_letters.parsed()]


@pytest.fixture
def it(world: World) -> Consumption:
    return Consumption(world)


def stored_rows() -> list[dict[str, Any]]:
    """Return the rows about postponed records and attempts."""
    items = aws("dynamodb").scan(TableName=TABLE_NAME)["Items"]
    return [item for item in items if item["entity"]["S"] in ("postponed_record", "record_attempts")]


def test_processed_batch_makes_no_request(it: Consumption, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(it.world.ctx.postponed_records, "_table", None)
    assert it.consume(it.record("a"), it.record("b")) == ConsumeReport()
    assert it.consume(it.record("a")) == ConsumeReport()


def test_batch_that_fails_as_a_whole_is_delivered_again(it: Consumption) -> None:
    it.errors = {"a": TimeoutError(), "b": TimeoutError()}
    assert list(it.consume(it.record("a"), it.record("b")).failed) == ["101", "102"]
    assert list(it.consume(it.record("a")).failed) == ["103"]
    assert stored_rows() == []


def test_record_that_fails_alone_is_postponed_and_retried_by_the_sweep(it: Consumption) -> None:
    it.errors = {"a": TimeoutError()}
    report = it.consume(it.record("a"), it.record("b"), it.record("a"))
    assert (report.failed, report.postponed, it.processed) == ({}, 2, ["102"])
    assert all("ttl" in row and "g1pk" in row for row in stored_rows())
    ((message, delay), _) = it.world.queues.sweeper_messages
    assert delay == 5
    it.world.pass_time(5)
    assert on_message(it.world.ctx, loads(message)) == 1
    assert [name for name, _ in it.requests] == ["matcher"]
    (failed_again,) = it.retry()
    assert failed_again == ConsumeReport()
    it.errors.clear()
    assert it.sweep() == [], "the next attempt is later"
    it.world.pass_time(61)
    (report,) = it.sweep()
    assert (report.retried, it.processed) == (2, ["102", "101", "103"])
    assert stored_rows() == []


def test_only_the_first_record_of_a_group_is_requested(it: Consumption) -> None:
    it.errors = {"a": TimeoutError(), "b": TimeoutError()}
    it.consume(it.record("a"), it.record("a"), it.record("a"), it.record("b"), it.record("c"))
    it.world.pass_time(61)
    it.requests.clear()
    it.world.sweep()
    assert sorted(request["postponed"]["group"] for _, request in it.requests) == ["matcher#job#a", "matcher#job#b"]


def test_record_behind_a_postponed_one_is_postponed_even_alone(it: Consumption) -> None:
    it.errors = {"a": RecordQueued()}
    assert it.consume(it.record("a")).postponed == 1
    it.world.pass_time(61)
    (report,) = it.sweep()
    assert report.retried == 1


def test_late_record_alone_in_its_batch_is_postponed(it: Consumption) -> None:
    it.errors = {"a": TimeoutError()}
    record = it.record("a")
    assert list(it.consume(record).failed) == ["101"]
    it.world.pass_time(5)
    assert it.consume(record).postponed == 1


def test_record_that_cannot_be_postponed_is_delivered_again(it: Consumption, monkeypatch: pytest.MonkeyPatch) -> None:
    def throttled(_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(it.world.ctx.postponed_records, "add", throttled)
    it.errors = {"a": TimeoutError()}
    assert list(it.consume(it.record("a"), it.record("b")).failed) == ["101"]


def test_postponing_twice_stores_one_record(it: Consumption) -> None:
    it.errors = {"a": TimeoutError()}
    batch = it.record("a"), it.record("b")
    it.consume(*batch)
    it.consume(*batch)
    assert len(stored_rows()) == 1


def test_permanent_error_becomes_a_dead_letter_at_once(it: Consumption) -> None:
    it.errors = {"a": ValueError("bad")}
    report = it.consume(it.record("a"))
    assert (report.failed, report.dead_letters, it.conditions()) == ({}, 1, ["PermanentError"])


def test_postponed_record_with_a_permanent_error_becomes_a_dead_letter(it: Consumption) -> None:
    it.errors = {"a": TimeoutError()}
    it.consume(it.record("a"), it.record("b"), it.record("a"))
    it.errors = {"a": ValueError("bad")}
    it.world.pass_time(61)
    (report,) = it.sweep()
    assert (report.dead_letters, it.conditions()) == (2, ["PermanentError"] * 2)
    assert stored_rows() == []


def test_record_that_is_postponed_for_too_long_becomes_a_dead_letter(it: Consumption) -> None:
    it.errors = {"a": TimeoutError()}
    it.consume(it.record("a"), it.record("b"))
    it.world.pass_time(MAX_POSTPONED.total_seconds())
    (report,) = it.sweep()
    assert (report.dead_letters, it.conditions()) == (1, ["RetriesExhausted"])
    assert stored_rows() == []


def end_process(attempt: Callable[[], object]) -> None:
    with pytest.raises(ProcessEnded):
        attempt()


def test_record_that_ends_the_process_twice_alone_becomes_a_dead_letter(it: Consumption) -> None:
    it.errors = {"a": ProcessEnded()}
    record = it.record("a")
    end_process(lambda: it.consume(record))
    it.world.pass_time(5)
    for _ in range(2):
        end_process(lambda: it.consume(record))
    assert it.consume(record).dead_letters == 1
    assert it.conditions() == ["ProcessEnded"]
    assert "ttl" in stored_rows()[0]


def test_attempt_that_the_process_survives_forgets_the_ones_before(it: Consumption) -> None:
    record = it.record("a")
    it.world.pass_time(5)
    for _ in range(2):
        it.errors = {"a": ProcessEnded()}
        end_process(lambda: it.consume(record))
        it.errors = {}
        assert it.consume(record).dead_letters == 0
        assert stored_rows() == []


def test_postponed_record_that_ends_the_process_twice_becomes_a_dead_letter(it: Consumption) -> None:
    it.errors = {"a": TimeoutError()}
    it.consume(it.record("a"), it.record("b"), it.record("a"))
    it.errors = {"a": ProcessEnded()}
    for _ in range(2):
        it.world.pass_time(301)
        end_process(it.sweep)
    it.errors.clear()
    it.world.pass_time(301)
    (report,) = it.sweep()
    assert (report.dead_letters, report.retried, it.conditions()) == (1, 2, ["ProcessEnded"])


def test_two_processes_with_the_same_group_process_each_record_once(it: Consumption) -> None:
    it.errors = {"a": TimeoutError()}
    it.consume(it.record("a"), it.record("b"))
    it.world.pass_time(61)
    it.world.sweep()
    (_, request), *_ = it.requests
    first = it.world.ctx.postponed_records.first(NAMESPACE, request["postponed"]["group"])
    assert first is not None
    assert it.world.ctx.postponed_records.start_attempt(first, next_attempt_at=it.world.ctx.now())
    assert not it.world.ctx.postponed_records.start_attempt(first, next_attempt_at=it.world.ctx.now())
