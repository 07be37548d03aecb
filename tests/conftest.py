"""What every test has: no way to a real AWS account, one order of the suites, and one manner of generating."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

E2E = Path(__file__).parent / "e2e"

AWS_OF_NOBODY = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}

# A deadline per example would measure the machine, not the code: pytest-timeout bounds the whole test.
settings.register_profile("vigil", deadline=None, print_blob=True)
settings.load_profile("vigil")


def pytest_configure() -> None:
    """Before any test module is imported: whatever account the caller's shell points at is out of reach."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(AWS_OF_NOBODY)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of the local stack begin at once, and beside them all others, the longest first."""
    for item in items:
        if item.path.is_relative_to(E2E):
            item.add_marker(pytest.mark.e2e)
    items.sort(key=_turn)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """How tests are spread over processes."""
    return OneStack(config, log)


class OneStack(LoadScopeScheduling):  # type: ignore[misc]
    """The tests of the local stack, which share one, go to one process, and each of the rest to whichever is free."""

    def _split_scope(self, nodeid: str) -> str:
        return "the local stack" if nodeid.startswith("tests/e2e/") else nodeid


def _turn(item: pytest.Item) -> int:
    if item.get_closest_marker("e2e"):
        return 0
    return 1 if item.get_closest_marker("model") else 2


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What runs beside the local stack gives way to it, for its tests look at times."""
    if "PYTEST_XDIST_WORKER" in os.environ and not item.get_closest_marker("e2e"):
        os.nice(19)  # As far as it goes, however often.
