"""Draws of Hypothesis that depend on their seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from hypothesis.internal.cache import LRUCache
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants


@contextmanager
def no_constants_of_modules() -> Iterator[None]:
    """Keep Hypothesis from trying the numbers and texts of loaded modules.

    The loaded modules depend on the collected tests, so the same seed would draw other values in another selection.
    """
    with (
        mock.patch.object(providers, "_get_local_constants", Constants),
        mock.patch.object(providers, "CONSTANTS_CACHE", LRUCache(1_024)),
    ):
        yield
