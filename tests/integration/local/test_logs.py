"""Log events as lines."""

from __future__ import annotations

import json

import pytest

from vigil.local.logs import Line, parse


def test_structured_line_shows_message_and_fields() -> None:
    log_line = {
        "level": "INFO",
        "location": "handler:12",
        "message": "wait closed",
        "timestamp": "2026-01-01 12:00:00,000+0000",
        "service": "vigil",
        "cold_start": True,
        "function_request_id": "r",
        "xray_trace_id": "x",
        "action": "close",
        "jobs": 3,
    }
    assert parse("vigil-matcher", 5, json.dumps(log_line)) == Line(
        5, "vigil-matcher", "INFO", "wait closed action=close jobs=3"
    )


def test_exception_is_shown_with_its_traceback() -> None:
    log_line = {
        "level": "ERROR",
        "message": "failed",
        "exception": "Traceback …\nKeyError: 'a'",
        "exception_name": "KeyError",
    }
    assert parse("f", 1, json.dumps(log_line)).text == "failed\nTraceback …\nKeyError: 'a'"


@pytest.mark.parametrize("message", ["plain text", '["a"]', '{"no": "message"}', "7"])
def test_unstructured_line_is_unchanged(message: str) -> None:
    assert parse("f", 1, message) == Line(1, "f", "", message)


def test_message_that_is_not_text_is_shown_as_json() -> None:
    assert parse("f", 1, json.dumps({"level": "INFO", "message": {"a": 1}})).text == '{"a": 1}'
