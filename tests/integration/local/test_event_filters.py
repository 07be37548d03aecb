"""Event patterns: the examples of the AWS documentation, and the patterns of Vigil's template."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vigil.local.event_filters import matches, parse_patterns, passes

RECORD: dict[str, Any] = {
    "eventName": "MODIFY",
    "dynamodb": {
        "Keys": {"pk": {"S": "default#job"}},
        "NewImage": {
            "entity": {"S": "wait"},
            "status": {"S": "met"},
            "done": {"BOOL": True},
            "names": {"SS": ["boot", "setup"]},
        },
        "SizeBytes": 26,
    },
}


def image(**rule: object) -> dict[str, Any]:
    return {"dynamodb": {"NewImage": rule}}


@pytest.mark.parametrize(
    "pattern",
    [
        {},
        {"eventName": ["INSERT", "MODIFY"]},
        image(entity={"S": ["job", "wait"]}),
        {"eventName": ["MODIFY"], **image(entity={"S": ["wait"]}, status={"S": ["met", "expired"]})},
        image(status={"S": [{"prefix": "me"}]}),
        image(status={"S": [{"suffix": "et"}]}),
        image(status={"S": [{"equals-ignore-case": "MET"}]}),
        image(status={"S": [{"anything-but": "waiting"}]}),
        image(status={"S": [{"anything-but": ["waiting", "expired"]}]}),
        image(status={"S": [{"anything-but": {"prefix": "wait"}}]}),
        image(status={"S": [{"exists": True}]}),
        image(absent={"S": [{"exists": False}]}),
        {"dynamodb": {"OldImage": {"status": {"S": [{"exists": False}]}}}},
        {"dynamodb": {"SizeBytes": [26]}},
        {"dynamodb": {"SizeBytes": [{"numeric": [">", 20, "<=", 26]}]}},
        {"dynamodb": {"SizeBytes": [{"numeric": ["=", 26]}]}},
        image(done={"BOOL": [True]}),
        image(names={"SS": ["setup"]}),
        {"$or": [{"eventName": ["REMOVE"]}, {"eventName": ["MODIFY"]}]},
    ],
    ids=json.dumps,
)
def test_matching_pattern_accepts_the_record(pattern: dict[str, Any]) -> None:
    assert matches(pattern, RECORD)


@pytest.mark.parametrize(
    "pattern",
    [
        {"eventName": ["INSERT"]},
        image(entity={"S": ["job"]}),
        image(entity={"S": ["wait"]}, status={"S": ["expired"]}),
        image(status={"S": [{"prefix": "x"}]}),
        image(status={"S": [{"suffix": "x"}]}),
        image(status={"S": [{"anything-but": ["met"]}]}),
        image(absent={"S": [{"anything-but": ["met"]}]}),
        image(absent={"S": [{"exists": True}]}),
        image(status={"S": [{"exists": False}]}),
        image(status={"N": ["met"]}),
        image(status=["met"]),
        {"dynamodb": {"SizeBytes": ["26"]}},
        {"dynamodb": {"SizeBytes": [{"numeric": [">", 26]}]}},
        image(status={"S": [{"numeric": [">", 0]}]}),
        image(done={"BOOL": [1]}),
        {"$or": [{"eventName": ["REMOVE"]}, {"eventName": ["INSERT"]}]},
    ],
    ids=json.dumps,
)
def test_other_pattern_rejects_the_record(pattern: dict[str, Any]) -> None:
    assert not matches(pattern, RECORD)


def test_mapping_without_patterns_accepts_every_record() -> None:
    assert passes(RECORD, parse_patterns(None))
    assert passes(RECORD, parse_patterns({"Filters": []}))


def test_one_matching_pattern_of_several_is_enough() -> None:
    filters = {"Filters": [{"Pattern": '{"eventName":["REMOVE"]}'}, {"Pattern": '{"eventName":["MODIFY"]}'}]}
    assert passes(RECORD, parse_patterns(filters))
    assert not passes({**RECORD, "eventName": "INSERT"}, parse_patterns(filters))


@pytest.mark.parametrize("text", ["[]", "7", "{"])
def test_invalid_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's error is one, with a message of its own
        parse_patterns({"Filters": [{"Pattern": text}]})


@pytest.mark.parametrize("pattern", [{"eventName": [{"wildcard": "M*"}]}, {"eventName": "MODIFY"}, {"$or": {}}])
def test_unknown_rule_raises_instead_of_rejecting(pattern: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"rule|list"):
        matches(pattern, RECORD)
