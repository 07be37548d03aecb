"""Parsing of a request."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from vigil_core.api.request import RESPONSE_RESERVE, Request

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


class Context:
    aws_request_id = "a"

    def __init__(self, left_s: float = 30) -> None:
        self.left_s = left_s

    def get_remaining_time_in_millis(self) -> int:
        return int(self.left_s * 1000)


def asked(left_s: float = 30, **headers: str) -> Request:
    event: dict[str, Any] = {"headers": {name.replace("_", "-"): value for name, value in headers.items()}}
    return Request.from_event(event, Context(left_s), NOW)


@pytest.mark.parametrize(
    ("prefer", "wait_s"),
    [
        ("wait=10", 10), ("wait=0", 0), ("wait=25", 25), ("wait=26", 25), ("wait=999999999", 25), ("WAIT = 7", 7),
        ('wait="5"', 5), ("respond-async, wait=5", 5), ("wait=5; x=y, handling=lenient", 5), ("wait=5, wait=6", 5),
        ("wait=x, wait=6", 6), ("wait", None), ("wait=", None), ("wait=-1", None), ("wait=1.5", None),
        ("wait=٣", None), ("await=5", None), ("", None), ("wait=" + "9" * 30, None),
    ],
)  # fmt: skip
def test_prefer_header_sets_the_wait_time(prefer: str, wait_s: int | None) -> None:
    request = asked(Prefer=prefer)
    assert request.preferred_wait_s == wait_s
    assert request.preference_applied == ({} if wait_s is None else {"preference-applied": f"wait={wait_s}"})


def test_long_poll_deadline_counts_from_the_arrival() -> None:
    assert asked().long_poll_deadline(20) == NOW + timedelta(seconds=20)
    assert asked(prefer="wait=7").long_poll_deadline(20) == NOW + timedelta(seconds=7)
    assert asked(prefer="wait=99").long_poll_deadline(20) == NOW + timedelta(seconds=25)


def test_long_poll_deadline_leaves_time_to_respond() -> None:
    assert asked(left_s=10, prefer="wait=25").long_poll_deadline(20) == NOW + timedelta(seconds=10) - RESPONSE_RESERVE
    assert asked(left_s=30, prefer="wait=25").long_poll_deadline(0) + RESPONSE_RESERVE <= NOW + timedelta(seconds=30)


@pytest.mark.parametrize(
    ("given", "key"), [("a", "a"), ('"a"', "a"), (' "a b" ', "a b"), ('"', '"'), ("x" * 128, "x" * 128)]
)
def test_idempotency_key_is_read_without_quotes(given: str, key: str) -> None:
    assert asked(Idempotency_Key=given).idempotency_key == key
    assert asked().idempotency_key is None


@pytest.mark.parametrize(
    ("header", "seen"),
    [('"3.1"', True), ('W/"3.1"', True), ('"1.1", "3.1"', True), ("*", True), ('"3.0"', False), ("3.1", False)],
)
def test_if_none_match_compares_strong_and_weak_etags(header: str, seen: bool) -> None:
    assert asked(If_None_Match=header).matches_etag('"3.1"') == seen
    assert not asked().matches_etag('"3.1"')


def test_query_preserves_order_repetition_and_blanks() -> None:
    request = Request.from_event({"rawQueryString": "b=1&a=%C3%BC&b=&c=x+y"}, Context(), NOW)
    assert request.query == [("b", "1"), ("a", "ü"), ("b", ""), ("c", "x y")]
    assert Request.from_event({"rawQueryString": None}, Context(), NOW).query == []
