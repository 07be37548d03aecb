"""The table of limits: defaults, overrides and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from vigil_core.domain.errors import LimitExceeded, RequestLimitExceeded, ValidationFailed
from vigil_core.domain.limits import (
    LIMIT_NAMES,
    LIMITS,
    MAX_LIMIT,
    LimitName,
    NamespaceSettings,
    check_jobs_per_request,
    count_jobs,
    default_limit,
    limit_error,
    max_long_polls,
    parse_override,
)


def test_table_has_every_limit_once() -> None:
    assert tuple(LIMITS) == LIMIT_NAMES
    assert all(limit.name == name for name, limit in LIMITS.items())


@pytest.mark.parametrize("concurrency", [2, 4, 10, 12, 100, 1000])
def test_long_polls_of_two_namespaces_leave_half_of_the_concurrency(concurrency: int) -> None:
    one = default_limit("long_polls", concurrency)
    assert 1 <= one <= max_long_polls(concurrency)
    assert max_long_polls(concurrency) <= concurrency / 2
    assert one <= max(1, concurrency / 4)


@pytest.mark.parametrize("name", LIMIT_NAMES)
def test_override_replaces_the_default(name: LimitName) -> None:
    settings = NamespaceSettings(namespace="team", overrides={name: 7})
    assert settings.limit(name, 10) == 7
    assert NamespaceSettings(namespace="team", overrides={name: 0}).limit(name, 10) == 0
    others = [other for other in LIMIT_NAMES if other != name]
    assert [settings.limit(other, 10) for other in others] == [default_limit(other, 10) for other in others]


@pytest.mark.parametrize("name", LIMIT_NAMES)
def test_error_has_the_name_and_the_value_of_the_limit(name: LimitName) -> None:
    error = limit_error(name, 12_345)
    assert isinstance(error, RequestLimitExceeded if LIMITS[name].status == 422 else LimitExceeded)
    assert error.limit == name
    assert f"{name} is 12,345" in error.message


@pytest.mark.parametrize(("jobs", "refused"), [(0, False), (9_999, False), (10_000, False), (10_001, True)])
def test_jobs_of_a_request_are_limited(jobs: int, refused: bool) -> None:
    if not refused:
        check_jobs_per_request(jobs, 10_000)
        return
    with pytest.raises(RequestLimitExceeded, match="jobs_per_request"):
        check_jobs_per_request(jobs, 10_000)


def test_items_of_batches_count() -> None:
    assert count_jobs([]) == 0
    assert count_jobs([{}, {"batch": [1, 2]}, {"batch": None}, {"batch": "abc"}, 5, None, [1, 2]]) == 9


@pytest.mark.parametrize("value", [None, 0, 1, MAX_LIMIT])
def test_whole_number_or_nothing_is_a_valid_override(value: int | None) -> None:
    assert parse_override("queues", value) == ("queues", value)


@pytest.mark.parametrize(
    ("name", "value", "pointers"),
    [
        ("queues", -1, ["/value"]),
        ("queues", MAX_LIMIT + 1, ["/value"]),
        ("queues", True, ["/value"]),
        ("queues", 1.5, ["/value"]),
        ("queues", "5", ["/value"]),
        ("others", 5, ["/limit"]),
        (None, "x", ["/limit", "/value"]),
    ],
)
def test_invalid_override_is_refused(name: object, value: object, pointers: list[str]) -> None:
    with pytest.raises(ValidationFailed) as refusal:
        parse_override(name, value)
    assert [problem.pointer for problem in refusal.value.problems] == pointers


def test_page_lists_every_limit_with_its_default() -> None:
    page = (Path(__file__).parents[3] / "docs/limits.md").read_text()
    for name, limit in LIMITS.items():
        assert f"| `{name}` |" in page
        if limit.default is not None and limit.default < 10**6:
            assert f"| `{name}` | {limit.default:,} |" in page
