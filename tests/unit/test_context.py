"""The map on a pool of threads."""

from __future__ import annotations

import threading

import pytest

from vigil_core.services.context import threaded


def test_it_keeps_order_and_works_side_by_side() -> None:
    all_are_here = threading.Barrier(8, timeout=20)

    def work(number: int) -> int:
        all_are_here.wait()
        return number * number

    assert threaded(8)(work, range(8)) == [number * number for number in range(8)]


def test_work_that_maps_in_its_turn_does_not_wait_for_itself() -> None:
    in_parallel = threaded(2)
    assert in_parallel(lambda outer: sum(in_parallel(lambda inner: outer * inner, range(5))), range(6)) == [
        10 * outer for outer in range(6)
    ]


def test_a_failure_is_raised() -> None:
    in_parallel = threaded(2)
    with pytest.raises(ZeroDivisionError):
        in_parallel(lambda number: 1 // number, range(3))
