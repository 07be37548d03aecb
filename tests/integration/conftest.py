"""A table on moto, made as the template says, and the use cases on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from moto import mock_aws

from tests.support.table import create_table
from tests.support.world import World
from vigil_core.store.table import DynamoTable


@pytest.fixture
def table() -> Iterator[DynamoTable]:
    with mock_aws():
        yield create_table()


@pytest.fixture
def world(table: DynamoTable) -> World:
    return World(table)
