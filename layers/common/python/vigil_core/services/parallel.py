"""Run calls to AWS side by side on a pool of threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

POOL_THREADS = 8
"""Threads of the pool that one process uses for calls to AWS."""


def thread_pool_map(threads: int) -> Callable[[Callable[[T], R], Iterable[T]], list[R]]:
    """A map that keeps order and runs on a pool of threads: what waits for AWS may as well wait together.

    Work on the pool that maps in its turn does so by itself: waiting for the pool, all threads might wait for ever.
    """
    thread_state = threading.local()
    pool = ThreadPoolExecutor(max_workers=threads, initializer=lambda: setattr(thread_state, "on_the_pool", True))

    def map_in_order(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        item_list = list(items)
        if len(item_list) < 2 or hasattr(thread_state, "on_the_pool"):
            return [function(item) for item in item_list]
        return list(pool.map(function, item_list))

    return map_in_order
