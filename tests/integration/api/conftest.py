"""The HTTP API on moto."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.api import Client, deployed


@pytest.fixture
def client() -> Iterator[Client]:
    """A key with every scope, in an empty namespace."""
    with deployed():
        yield Client()
