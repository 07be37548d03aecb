"""Retries of conditional writes."""

from __future__ import annotations

import pytest

from vigil_core.domain.errors import StoreConflict
from vigil_core.services.optimistic import MAX_ATTEMPTS, retry_on_conflict, update_with_retry
from vigil_core.store.table import ConditionFailed


class Counter:
    """A number that other writers change before the first `conflicts` writes."""

    def __init__(self, conflicts: int) -> None:
        self.value = 0
        self.reads = 0
        self.conflicts = conflicts

    def read(self) -> int:
        self.reads += 1
        return self.value

    def write(self, before: int, after: int) -> int:
        if self.conflicts:
            self.conflicts -= 1
            self.value += 10
        if before != self.value:
            raise StoreConflict("the number has changed")
        self.value = after
        return after


def test_update_reads_and_decides_again_after_a_conflict() -> None:
    counter, delays = Counter(conflicts=3), list[float]()
    written = update_with_retry(
        counter.read, lambda value: value + 1, counter.write, sleep=delays.append, subject="the number"
    )
    assert (written, counter.value, counter.reads) == (31, 31, 4)
    assert delays == [0, 0.01, 0.02]


def test_cached_state_replaces_the_first_read_only() -> None:
    counter = Counter(conflicts=1)
    written = update_with_retry(
        counter.read, lambda value: value + 1, counter.write, sleep=lambda _: None, subject="the number", cached=0
    )
    assert (written, counter.reads) == (11, 1)


def test_update_gives_up_after_the_last_attempt() -> None:
    counter = Counter(conflicts=MAX_ATTEMPTS)
    with pytest.raises(StoreConflict, match="Too many concurrent changes of the number: try again"):
        update_with_retry(
            counter.read, lambda value: value + 1, counter.write, sleep=lambda _: None, subject="the number"
        )
    assert counter.reads == MAX_ATTEMPTS


def test_conflict_in_the_decision_ends_the_update() -> None:
    counter = Counter(conflicts=0)

    def decide(_: int) -> int:
        raise StoreConflict("a nested update gave up")

    with pytest.raises(StoreConflict, match="nested"):
        update_with_retry(counter.read, decide, counter.write, sleep=lambda _: None, subject="the number")
    assert counter.reads == 1


def test_step_runs_again_after_a_conflict() -> None:
    outcomes = iter([StoreConflict("first"), StoreConflict("second"), "done"])

    def step() -> object:
        outcome = next(outcomes)
        if isinstance(outcome, StoreConflict):
            raise outcome
        return outcome

    assert retry_on_conflict(step, sleep=lambda _: None, subject="the step") == "done"


def test_conflict_of_another_kind_ends_the_update_at_once() -> None:
    calls = []

    def step() -> None:
        calls.append(1)
        raise StoreConflict("The table had retried this conflict itself")

    with pytest.raises(StoreConflict, match="retried this conflict"):
        retry_on_conflict(step, sleep=lambda _: None, subject="x", retry_on=ConditionFailed)
    assert len(calls) == 1
