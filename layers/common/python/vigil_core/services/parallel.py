"""Run calls to AWS in parallel on a pool of threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

POOL_THREADS = 8
"""Number of threads in the pool that a process uses for calls to AWS."""


def thread_pool_map(threads: int) -> Callable[[Callable[[T], R], Iterable[T]], list[R]]:
    """Create a `map` function that runs on a pool of threads and returns the results in order.

    A nested call, made by a function that already runs on the pool, runs in its own thread. If it waited for the pool,
    all threads of the pool could wait for each other forever.
    """
    thread_state = threading.local()
    pool = ThreadPoolExecutor(max_workers=threads, initializer=lambda: setattr(thread_state, "in_pool", True))

    def map_in_order(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        item_list = list(items)
        if len(item_list) < 2 or hasattr(thread_state, "in_pool"):
            return [function(item) for item in item_list]
        return list(pool.map(function, item_list))

    return map_in_order
