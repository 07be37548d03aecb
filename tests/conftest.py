"""Settings for every test: no access to a real AWS account, one order of the suites, one Hypothesis profile."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings

from vigil_core.domain.limits import LIMITS

E2E = Path(__file__).parent / "e2e"

FAKE_AWS_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}

# A deadline for each example would measure the machine, not the code. pytest-timeout limits the whole test instead.
settings.register_profile("vigil", deadline=None, print_blob=True)
settings.load_profile("vigil")


def pytest_configure() -> None:
    """Replace the AWS settings of the shell by fake ones, before any test module is imported."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(FAKE_AWS_ENVIRONMENT)
    # A test sends its requests faster than a client may. The tests of the limit set it themselves.
    LIMITS["requests_per_second"] = replace(LIMITS["requests_per_second"], default=10**9)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the longest tests first. With `--dist loadgroup`, one process runs all tests of the local stack."""
    for item in items:
        if item.path.is_relative_to(E2E):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.xdist_group("local-stack"))
    items.sort(key=_sort_key)


def _sort_key(item: pytest.Item) -> int:
    longest_first = ("e2e", "model", "generated")
    return next((turn for turn, name in enumerate(longest_first) if item.get_closest_marker(name)), len(longest_first))
