from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_core.domain.dead_letters import InvalidDeadLetter, parse_dead_letter

MATCHER = "arn:aws:lambda:us-east-1:123456789012:function:vigil-matcher"


def written(payload: object, **changes: Any) -> bytes:
    """Return an object as Lambda writes it."""
    document = {
        "requestContext": {
            "requestId": "c9b8fa9f-5a7f-4b30-af9c-0c604cde93a5",
            "functionArn": f"{MATCHER}:$LATEST",
            "condition": "RetryAttemptsExhausted",
            "approximateInvokeCount": 9,
        },
        "responseContext": {"statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled"},
        "version": "1.0",
        "timestamp": "2026-11-21T10:00:00.000Z",
        "DDBStreamBatchInfo": {"shardId": "shardId-1", "batchSize": 1},
        "payload": payload,
    }
    return json.dumps({**document, **changes}).encode()


EVENT = {"Records": [{"eventID": "1", "dynamodb": {"ApproximateCreationDateTime": 1795255200}}]}


@pytest.mark.parametrize("payload", [EVENT, json.dumps(EVENT)], ids=["object", "text"])
def test_dead_letter_contains_the_original_event(payload: object) -> None:
    letter = parse_dead_letter(written(payload))
    assert json.loads(letter.event) == EVENT
    assert (letter.records, letter.condition) == (1, "RetryAttemptsExhausted")


def test_dead_letter_matches_one_function_in_any_version() -> None:
    letter = parse_dead_letter(written(EVENT))
    assert letter.is_for(MATCHER)
    assert not letter.is_for(f"{MATCHER}2")
    assert not letter.is_for(MATCHER[:-1])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"null",
        written(None),
        written("not json"),
        written([]),
        written({}),
        written({"Records": "all"}),
        written(EVENT, requestContext=None),
        written(EVENT, requestContext={}),
        written(EVENT, requestContext={"functionArn": 5}),
    ],
)
def test_object_that_is_not_a_dead_letter_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidDeadLetter):
        parse_dead_letter(body)


@given(st.binary())
def test_arbitrary_bytes_are_refused_as_dead_letter(body: bytes) -> None:
    with pytest.raises(InvalidDeadLetter):
        parse_dead_letter(body)
