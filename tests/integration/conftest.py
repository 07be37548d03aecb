"""Fixtures: a table on moto as the template defines it, with the use cases and the HTTP API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from moto import mock_aws

from tests.support.api import Client, deployed
from tests.support.row_expiry import require_ttls
from tests.support.table import create_table
from tests.support.world import World
from vigil_core.store.table import DynamoTable


@pytest.fixture(autouse=True)
def every_row_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that writes a row without a TTL, unless the row is configuration."""
    require_ttls(monkeypatch)


@pytest.fixture
def table() -> Iterator[DynamoTable]:
    with mock_aws():
        yield create_table()


@pytest.fixture
def world(table: DynamoTable) -> World:
    return World(table)


@pytest.fixture
def client() -> Iterator[Client]:
    """Return a client with every scope in an empty namespace."""
    with deployed():
        yield Client()
