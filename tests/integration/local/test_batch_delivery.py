"""Delivery of batches to a function that fails in different ways: retries, bisecting and discarding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from tests.integration.local.streams import NOON, mapping, records
from vigil.local.batch_delivery import (
    MAX_BACKOFF_S,
    RETRIES_EXHAUSTED,
    TOO_OLD,
    Answered,
    Failed,
    NotInvoked,
    Outcome,
    deliver,
    first_failure,
)
from vigil.local.event_source_mapping import Record

Function = Callable[[list[str]], Outcome]


@dataclass
class RecordingCourier:
    """Courier that records its actions. Its function receives the sequence numbers of a batch."""

    function: Function
    sent: list[list[str]] = field(default_factory=list)
    handled: list[str] = field(default_factory=list)
    discarded: list[tuple[list[str], str, int, str | None]] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    time: float = NOON.timestamp()
    stops_after: int = 1_000

    def invoke(self, batch: Sequence[Record]) -> Outcome:
        sequences = [record.sequence for record in batch]
        self.sent.append(sequences)
        return self.function(sequences)

    def done(self, batch: Sequence[Record]) -> None:
        self.handled += [record.sequence for record in batch]

    def abandon(self, batch: Sequence[Record], condition: str, invocations: int, function_error: str | None) -> None:
        self.discarded.append(([record.sequence for record in batch], condition, invocations, function_error))

    def pause(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        self.time += seconds
        return len(self.pauses) < self.stops_after

    def now(self) -> float:
        return self.time


def failing_on(*bad: str) -> Function:
    """Return a function that handles the records before the first bad one and reports this one as failed."""

    def function(sequences: list[str]) -> Outcome:
        failures = [{"itemIdentifier": sequence} for sequence in sequences if sequence in bad]
        return Answered({"batchItemFailures": failures})

    return function


def raising_on(*bad: str) -> Function:
    return lambda sequences: Failed("Unhandled") if set(bad) & set(sequences) else Answered(None)


def test_successful_batch_is_sent_once() -> None:
    courier = RecordingCourier(failing_on())
    deliver(mapping(), records(3), courier)
    assert courier.sent == [["1", "2", "3"]]
    assert courier.handled == ["1", "2", "3"]


def test_partial_failure_resumes_at_the_lowest_failed_record() -> None:
    answers = iter(
        [Answered({"batchItemFailures": [{"itemIdentifier": "4"}, {"itemIdentifier": "2"}]}), Answered(None)]
    )
    courier = RecordingCourier(lambda _: next(answers))
    deliver(mapping(MaximumRetryAttempts=0), records(5), courier)
    assert courier.sent == [["1", "2", "3", "4", "5"], ["2", "3", "4", "5"]]
    assert courier.handled == ["1", "2", "3", "4", "5"]
    assert courier.discarded == []


def test_partial_response_without_report_setting_counts_as_success() -> None:
    courier = RecordingCourier(failing_on("2"))
    deliver(mapping(FunctionResponseTypes=[]), records(3), courier)
    assert courier.handled == ["1", "2", "3"]
    assert len(courier.sent) == 1


def test_bisecting_isolates_a_poisoned_record_without_loss_of_others() -> None:
    courier = RecordingCourier(raising_on("6"))
    deliver(mapping(BisectBatchOnFunctionError=True, MaximumRetryAttempts=2), records(8), courier)
    assert courier.discarded == [(["6"], RETRIES_EXHAUSTED, 3, "Unhandled")]
    assert courier.handled == [str(sequence) for sequence in range(1, 9)]
    # Bisecting uses no retry: the isolated record still gets three attempts.
    assert courier.sent.count(["6"]) == 3


def test_reported_poisoned_record_is_isolated() -> None:
    courier = RecordingCourier(failing_on("3"))
    deliver(mapping(BisectBatchOnFunctionError=True, MaximumRetryAttempts=1), records(6), courier)
    assert courier.discarded == [(["3"], RETRIES_EXHAUSTED, 2, None)]
    assert courier.handled == [str(sequence) for sequence in range(1, 7)]


def test_batch_without_bisecting_is_discarded_after_its_retries() -> None:
    courier = RecordingCourier(failing_on("2"))
    deliver(mapping(MaximumRetryAttempts=1), records(3), courier)
    assert courier.sent == [["1", "2", "3"], ["2", "3"], ["2", "3"]]
    assert courier.discarded == [(["2", "3"], RETRIES_EXHAUSTED, 2, None)]
    assert courier.handled == ["1", "2", "3"]


def test_unlimited_retries_continue_until_success() -> None:
    answers = iter([Failed("Unhandled")] * 40)
    courier = RecordingCourier(lambda _: next(answers, Answered(None)))
    deliver(mapping(), records(1), courier)
    assert len(courier.sent) == 41
    assert max(courier.pauses) == MAX_BACKOFF_S
    assert courier.pauses == sorted(courier.pauses)


def test_throttling_neither_uses_a_retry_nor_splits_the_batch() -> None:
    answers = iter([NotInvoked("TooManyRequestsException")] * 5)
    courier = RecordingCourier(lambda _: next(answers, Answered(None)))
    deliver(mapping(BisectBatchOnFunctionError=True, MaximumRetryAttempts=0), records(2), courier)
    assert courier.sent == [["1", "2"]] * 6
    assert courier.handled == ["1", "2"]
    assert courier.discarded == []


def test_record_that_exceeds_its_maximum_age_is_discarded() -> None:
    courier = RecordingCourier(raising_on("1"))
    deliver(mapping(MaximumRecordAgeInSeconds=60), records(1), courier)
    ((sequences, condition, invocations, _),) = courier.discarded
    assert (sequences, condition) == (["1"], TOO_OLD)
    assert invocations == len(courier.sent) > 10
    assert courier.handled == ["1"]


def test_record_too_old_at_first_is_never_sent() -> None:
    courier = RecordingCourier(failing_on(), time=NOON.timestamp() + 61)
    deliver(mapping(MaximumRecordAgeInSeconds=60), records(1), courier)
    assert courier.sent == []
    assert courier.discarded == [(["1"], TOO_OLD, 0, None)]


def test_open_records_stay_open_when_the_poller_stops() -> None:
    courier = RecordingCourier(raising_on("2"), stops_after=1)
    deliver(mapping(BisectBatchOnFunctionError=True), records(2), courier)
    assert courier.handled == []
    assert courier.discarded == []


@pytest.mark.parametrize(
    ("body", "resume"),
    [
        (None, None),
        ({}, None),
        ({"batchItemFailures": []}, None),
        ({"batchItemFailures": None}, None),
        ({"batchItemFailures": [{"itemIdentifier": "2"}]}, 1),
        ({"batchItemFailures": [{"itemIdentifier": "unknown"}]}, 0),
        ({"batchItemFailures": [{"itemIdentifier": ""}]}, 0),
        ({"batchItemFailures": [{"itemIdentifier": None}]}, 0),
        ({"batchItemFailures": [{}]}, 0),
        ({"batchItemFailures": ["2"]}, 0),
        ({"batchItemFailures": "2"}, 0),
        ({"other": []}, 0),
        ("text", 0),
    ],
)
def test_batch_response_determines_the_record_to_resume_at(body: object, resume: int | None) -> None:
    """Check the rules of https://docs.aws.amazon.com/lambda/latest/dg/services-ddb-batchfailurereporting.html."""
    assert first_failure(records(3), body) == resume
