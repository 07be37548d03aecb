"""Retrying, splitting and giving up, told as stories of a function that fails in some way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from tests.integration.local.streams import NOON, mapping, records
from vigil.local.batch_delivery import (
    LONGEST_PAUSE_S,
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
class Story:
    """A courier that writes everything down, for a function given as what it does with sequence numbers."""

    function: Function
    sent: list[list[str]] = field(default_factory=list)
    handled: list[str] = field(default_factory=list)
    given_up: list[tuple[list[str], str, int, str | None]] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    time: float = NOON.timestamp()
    stops_after: int = 1_000

    def invoke(self, batch: Sequence[Record]) -> Outcome:
        sequences = [record.sequence for record in batch]
        self.sent.append(sequences)
        return self.function(sequences)

    def done(self, batch: Sequence[Record]) -> None:
        self.handled += [record.sequence for record in batch]

    def give_up(self, batch: Sequence[Record], condition: str, invocations: int, function_error: str | None) -> None:
        self.given_up.append(([record.sequence for record in batch], condition, invocations, function_error))

    def pause(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        self.time += seconds
        return len(self.pauses) < self.stops_after

    def now(self) -> float:
        return self.time


def failing_on(*bad: str) -> Function:
    """Reports the first bad record of a batch, and handles what comes before it."""

    def function(sequences: list[str]) -> Outcome:
        failures = [{"itemIdentifier": sequence} for sequence in sequences if sequence in bad]
        return Answered({"batchItemFailures": failures})

    return function


def raising_on(*bad: str) -> Function:
    return lambda sequences: Failed("Unhandled") if set(bad) & set(sequences) else Answered(None)


def test_a_batch_that_is_handled_is_sent_once() -> None:
    story = Story(failing_on())
    deliver(mapping(), records(3), story)
    assert story.sent == [["1", "2", "3"]]
    assert story.handled == ["1", "2", "3"]


def test_a_partial_failure_resumes_at_the_lowest_failed_record() -> None:
    answers = iter(
        [Answered({"batchItemFailures": [{"itemIdentifier": "4"}, {"itemIdentifier": "2"}]}), Answered(None)]
    )
    story = Story(lambda _: next(answers))
    deliver(mapping(MaximumRetryAttempts=0), records(5), story)
    assert story.sent == [["1", "2", "3", "4", "5"], ["2", "3", "4", "5"]]
    assert story.handled == ["1", "2", "3", "4", "5"]
    assert story.given_up == []


def test_without_reporting_a_partial_answer_is_a_success() -> None:
    story = Story(failing_on("2"))
    deliver(mapping(FunctionResponseTypes=[]), records(3), story)
    assert story.handled == ["1", "2", "3"]
    assert len(story.sent) == 1


def test_a_poisoned_record_is_isolated_by_splitting_and_costs_nobody_else() -> None:
    story = Story(raising_on("6"))
    deliver(mapping(BisectBatchOnFunctionError=True, MaximumRetryAttempts=2), records(8), story)
    assert story.given_up == [(["6"], RETRIES_EXHAUSTED, 3, "Unhandled")]
    assert story.handled == [str(sequence) for sequence in range(1, 9)]
    # Splitting uses up no try: the record alone has all of its three.
    assert story.sent.count(["6"]) == 3


def test_a_poisoned_record_that_is_reported_is_isolated_too() -> None:
    story = Story(failing_on("3"))
    deliver(mapping(BisectBatchOnFunctionError=True, MaximumRetryAttempts=1), records(6), story)
    assert story.given_up == [(["3"], RETRIES_EXHAUSTED, 2, None)]
    assert story.handled == [str(sequence) for sequence in range(1, 7)]


def test_without_splitting_all_that_is_left_is_given_up() -> None:
    story = Story(failing_on("2"))
    deliver(mapping(MaximumRetryAttempts=1), records(3), story)
    assert story.sent == [["1", "2", "3"], ["2", "3"], ["2", "3"]]
    assert story.given_up == [(["2", "3"], RETRIES_EXHAUSTED, 2, None)]
    assert story.handled == ["1", "2", "3"]


def test_without_a_limit_it_goes_on_until_it_works() -> None:
    answers = iter([Failed("Unhandled")] * 40)
    story = Story(lambda _: next(answers, Answered(None)))
    deliver(mapping(), records(1), story)
    assert len(story.sent) == 41
    assert max(story.pauses) == LONGEST_PAUSE_S
    assert story.pauses == sorted(story.pauses)


def test_throttling_uses_up_no_try_and_splits_nothing() -> None:
    answers = iter([NotInvoked("TooManyRequestsException")] * 5)
    story = Story(lambda _: next(answers, Answered(None)))
    deliver(mapping(BisectBatchOnFunctionError=True, MaximumRetryAttempts=0), records(2), story)
    assert story.sent == [["1", "2"]] * 6
    assert story.handled == ["1", "2"]
    assert story.given_up == []


def test_a_record_that_grows_too_old_is_given_up() -> None:
    story = Story(raising_on("1"))
    deliver(mapping(MaximumRecordAgeInSeconds=60), records(1), story)
    ((sequences, condition, invocations, _),) = story.given_up
    assert (sequences, condition) == (["1"], TOO_OLD)
    assert invocations == len(story.sent) > 10
    assert story.handled == ["1"]


def test_a_record_that_is_too_old_from_the_start_is_never_sent() -> None:
    story = Story(failing_on(), time=NOON.timestamp() + 61)
    deliver(mapping(MaximumRecordAgeInSeconds=60), records(1), story)
    assert story.sent == []
    assert story.given_up == [(["1"], TOO_OLD, 0, None)]


def test_when_the_pump_stops_what_is_open_stays_open() -> None:
    story = Story(raising_on("2"), stops_after=1)
    deliver(mapping(BisectBatchOnFunctionError=True), records(2), story)
    assert story.handled == []
    assert story.given_up == []


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
def test_what_an_answer_means(body: object, resume: int | None) -> None:
    """https://docs.aws.amazon.com/lambda/latest/dg/services-ddb-batchfailurereporting.html"""
    assert first_failure(records(3), body) == resume
