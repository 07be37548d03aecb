"""Workflow runs on moto. All tests of a file share one table, and each test starts with an empty one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from moto import mock_aws

from tests.model.moto_table import empty_table
from tests.support.runs import RunWorld
from tests.support.table import create_table


@pytest.fixture(scope="module")
def aws() -> Iterator[None]:
    with mock_aws():
        create_table()
        yield


@pytest.fixture
def world(aws: None) -> RunWorld:
    return RunWorld(empty_table())
