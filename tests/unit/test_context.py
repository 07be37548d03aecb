"""The map on a pool of threads."""

from __future__ import annotations

import threading

import pytest

from vigil_core.services.parallel import thread_pool_map


def test_threaded_map_runs_in_parallel_and_preserves_order() -> None:
    all_are_here = threading.Barrier(8, timeout=20)

    def work(number: int) -> int:
        all_are_here.wait()
        return number * number

    assert thread_pool_map(8)(work, range(8)) == [number * number for number in range(8)]


def test_nested_threaded_map_does_not_deadlock() -> None:
    in_parallel = thread_pool_map(2)
    assert in_parallel(lambda outer: sum(in_parallel(lambda inner: outer * inner, range(5))), range(6)) == [
        10 * outer for outer in range(6)
    ]


def test_exception_in_a_threaded_map_is_raised() -> None:
    in_parallel = thread_pool_map(2)
    with pytest.raises(ZeroDivisionError):
        in_parallel(lambda number: 1 // number, range(3))
