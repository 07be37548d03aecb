"""Hypothesis draws that depend only on their seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from hypothesis.internal.cache import LRUCache
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants


@contextmanager
def no_constants_of_modules() -> Iterator[None]:
    """Prevent Hypothesis from drawing the numbers and texts of loaded modules.

    The loaded modules depend on the collected tests. The same seed would therefore draw other values in another
    selection of tests.
    """
    with (
        mock.patch.object(providers, "_get_local_constants", Constants),
        mock.patch.object(providers, "CONSTANTS_CACHE", LRUCache(1_024)),
    ):
        yield
