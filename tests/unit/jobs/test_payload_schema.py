"""JSON Schema for payloads, without a table: accepted schemas, refused schemas, and bounded time."""

from __future__ import annotations

import socket
import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_core.domain.errors import ValidationFailed
from vigil_core.domain.exact_json import loads
from vigil_core.domain.jobs.pattern_cost import UnsupportedPattern, parse_pattern, regex_cost
from vigil_core.services.jobs.payload_schema import DIALECT, MAX_PROBLEMS, MAX_SUBSCHEMAS, check_instances, check_schema

LONG_S = 20
"""Far above the time of a bounded check on a busy machine, far below that of an unbounded one."""


def refused(schema: Any, *payload: Any) -> dict[str, str]:
    """Return the problems of a schema, or of a payload under it."""
    began = time.monotonic()
    try:
        check_instances(schema, {"/payload": payload[0]}) if payload else check_schema(schema)
    except ValidationFailed as error:
        return {problem.pointer: problem.detail for problem in error.problems}
    finally:
        assert time.monotonic() - began < LONG_S
    return {}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"not": schema}
    return schema


BOARD = {
    "$schema": DIALECT,
    "$id": "https://example.com/board",
    "type": "object",
    "required": ["board"],
    "properties": {"board": {"$ref": "#/$defs/name"}, "tries": {"type": "integer", "maximum": 5}, "never": False},
    "additionalProperties": False,
    "$defs": {"name": {"type": "string", "pattern": "^[a-z]+$"}},
}


class TestSchemas:
    @pytest.mark.parametrize(
        "schema",
        [
            {},
            BOARD,
            {"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"$anchor": "there"}}, "not": {"$ref": "#there"}},
            {"type": "object", "properties": {"child": {"$ref": "#"}}},
            {"minLength": Decimal("2.0"), "multipleOf": Decimal("0.1")},
            {
                "enum": [{"pattern": "("}, {"$ref": "https://example.com"}],
                "properties": {"pattern": {"type": "string"}},
            },
            {"unevaluatedProperties": False, "properties": {"a": True}},
            nested(31),
        ],
    )
    def test_valid_schema_is_accepted(self, schema: Any) -> None:
        assert refused(schema) == {}

    @pytest.mark.parametrize(
        ("schema", "pointer"),
        [
            ({"type": "objekt"}, "/type"),
            ({"properties": {"a": 7}}, "/properties/a"),
            ({"properties": {"a/b": {"items": {"minLength": -1}}}}, "/properties/a~1b/items/minLength"),
            ({"minLength": Decimal("1.5")}, "/minLength"),
            ({"allOf": []}, "/allOf"),
            ({"allOf": [True, {"required": "a"}]}, "/allOf/1/required"),
            ({"$schema": "http://json-schema.org/draft-07/schema#"}, "/$schema"),
            ({"properties": {"a": {"$schema": DIALECT}}}, "/properties/a/$schema"),
            ({"$defs": {"a": {"$id": "https://example.com/a"}}}, "/$defs/a/$id"),
            ({"$ref": "https://example.com/schema"}, "/$ref"),
            ({"$ref": "other.json"}, "/$ref"),
            ({"$ref": DIALECT}, "/$ref"),
            ({"$ref": "#/$defs/missing"}, "/$ref"),
            ({"$ref": "#/x-of-our-own", "x-of-our-own": {"pattern": "("}}, "/$ref"),
            ({"items": {"$dynamicRef": "#nowhere"}}, "/items/$dynamicRef"),
            ({"pattern": "["}, "/pattern"),
            ({"pattern": "(?=a)"}, "/pattern"),
            ({"pattern": r"(a)\1"}, "/pattern"),
            ({"patternProperties": {"(": {}}}, "/patternProperties/("),
            ({"pattern": "(a{100}){100}"}, "/pattern"),
            ({"pattern": "a" * 1_025}, "/pattern"),
            ({"pattern": r"\w{900}"}, "/pattern"),
            ({"allOf": [{"pattern": "a{600}"}, {"pattern": "b{600}"}]}, "/allOf/1/pattern"),
            ({"unevaluatedProperties": False, "patternProperties": {"a": True}}, "/unevaluatedProperties"),
            ({"properties": {str(n): {} for n in range(MAX_SUBSCHEMAS)}}, ""),
            (nested(33), "/not" * 32),
        ],
    )
    def test_invalid_schema_is_refused_with_its_pointer(self, schema: Any, pointer: str) -> None:
        assert list(refused(schema)) == [f"/payload_schema{pointer}"]

    def test_largest_schema_is_checked_in_time(self) -> None:
        assert refused({"properties": {str(n): {"type": "string"} for n in range(MAX_SUBSCHEMAS - 1)}}) == {}
        assert len(refused({"allOf": [{"pattern": "["}] * 400})) == MAX_PROBLEMS


class TestPayloads:
    def test_each_payload_problem_has_its_pointer(self) -> None:
        found = refused(BOARD, {"tries": Decimal("6.5"), "never": 1, "a/b": 2})
        assert found == {
            "/payload": "'board' is a required property",
            "/payload/tries": 'does not satisfy "maximum": 5',
            "/payload/never": found["/payload/never"],
            "/payload/a~1b": 'does not satisfy "additionalProperties": false',
        }
        assert refused(BOARD, {"board": "ASPEN"}) == {"/payload/board": 'does not satisfy "pattern": "^[a-z]+$"'}
        assert refused(BOARD, {"board": "aspen", "tries": 5}) == {}

    def test_payload_problems_are_limited_and_hide_values(self) -> None:
        found = refused({"items": {"type": "integer"}}, ["secret"] * 100)
        assert list(found) == [f"/payload/{n}" for n in range(MAX_PROBLEMS)]
        assert "secret" not in str(found)

    def test_missing_payload_is_validated_as_null(self) -> None:
        assert refused({"type": "object"}, None) == {"/payload": 'does not satisfy "type": "object"'}
        assert refused({"type": ["object", "null"]}, None) == {}

    @pytest.mark.parametrize(
        ("schema", "text", "valid"),
        [
            ({"type": "integer"}, "1.0", True),
            ({"type": "integer"}, "1E+2", True),
            ({"type": "integer"}, "1E+2000", True),
            ({"type": "integer"}, "1.5", False),
            ({"type": "integer"}, "true", False),
            ({"const": 1}, "1.0", True),
            ({"enum": [Decimal("0.10")]}, "0.1", True),
            ({"uniqueItems": True}, "[1, 1.0]", False),
            ({"uniqueItems": True}, "[1, true, [1], {}]", True),
            ({"uniqueItems": True}, '[{"a": 1, "b": 2}, {"b": 2, "a": 1}]', False),
            ({"multipleOf": Decimal("0.01")}, "19.99", True),
            ({"multipleOf": Decimal("0.01")}, "19.999", False),
            ({"multipleOf": Decimal("0.01")}, "1E+5000", False),
            ({"maximum": 1}, "1.00000000000000000000000000000000001", False),
            ({"patternProperties": {"^x-": {"type": "string"}}, "additionalProperties": False}, '{"x-a": "1"}', True),
            ({"patternProperties": {"^x-": {"type": "string"}}, "additionalProperties": False}, '{"x-a": 1}', False),
            ({"patternProperties": {"^x-": True}, "additionalProperties": {"type": "null"}}, '{"y": 1}', False),
            ({"unevaluatedProperties": False, "allOf": [{"properties": {"a": True}}]}, '{"a": 1}', True),
            ({"unevaluatedProperties": False, "allOf": [{"properties": {"a": True}}]}, '{"b": 1}', False),
            ({"prefixItems": [{"type": "string"}], "items": False}, '["a", 1]', False),
            ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, '{"a": 1}', False),
            ({"pattern": "^a$"}, '"a\\n"', False),
            ({"pattern": "b"}, '"abc"', True),
            ({"format": "date"}, '"no date"', True),
        ],
    )
    def test_validation_follows_the_json_schema_draft(self, schema: Any, text: str, valid: bool) -> None:
        assert refused(schema) == {}
        assert (refused(schema, loads(text)) == {}) == valid

    def test_recursive_schema_validates_nested_payloads(self) -> None:
        tree = {"type": "object", "properties": {"child": {"$ref": "#"}}}
        assert refused(tree, loads('{"child":' * 40 + "{}" + "}" * 40)) == {}
        assert list(refused(tree, loads('{"child":' * 40 + "1" + "}" * 40))) == ["/payload" + "/child" * 40]

    @pytest.mark.parametrize(
        ("schema", "payload"),
        [
            ({"$ref": "#"}, 1),
            ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"anyOf": [{"$ref": "#"}]}}}, 1),
            (
                {
                    "$defs": {f"d{n}": {"allOf": 2 * [{"$ref": f"#/$defs/d{n + 1}"}]} for n in range(40)} | {"d40": {}},
                    "$ref": "#/$defs/d0",
                },
                1,
            ),
            ({"pattern": "(.*1.{200}){4}x"}, "10" * 170_000),
            ({"items": {"not": {"pattern": "(.*1.{200}){4}x"}}}, ["10" * 50] * 3_000),
            ({"allOf": [{"uniqueItems": True}] * 400}, ["x" * 300_000]),
            ({"uniqueItems": True}, [{"n": n} for n in range(60_000)]),
            ({"allOf": [{"propertyNames": {"pattern": "a{4}"}}] * 200}, {"a" * n: 1 for n in range(4, 800)}),
            ({"items": {"properties": {str(n): True for n in range(480)}}}, [{}] * 100_000),
            ({"allOf": [{"required": [str(n) for n in range(100)]}] * 100}, [{}] * 100_000),
        ],
    )
    def test_endless_validation_is_stopped(self, schema: Any, payload: Any) -> None:
        assert refused(schema) == {}
        found = refused(schema, payload)
        assert list(found) in ([], ["/payload"])
        assert all(
            detail.startswith("takes too long to check against its type's payload_schema: it ")
            for detail in found.values()
        )

    @pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|a)*$", "(.*)*b$", "^(([a-z])+.)+[A-Z]([a-z])+$"])
    def test_patterns_are_matched_without_backtracking(self, pattern: str) -> None:
        text = "a" * 30_000 + "!"
        for schema in (
            {"pattern": pattern},
            {"patternProperties": {pattern: False}, "additionalProperties": False},
            {"propertyNames": {"pattern": pattern}},
        ):
            assert refused(schema) == {}
            assert list(refused(schema, text if "pattern" in schema else {text: 1}))
        looped = {"$schema": DIALECT, "pattern": pattern, "properties": {"a": {"$ref": "#"}}}
        assert list(refused(looped, {"a": text})) == ["/payload/a"]

    def test_remote_reference_is_never_fetched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_network(*_: object) -> None:
            raise AssertionError("somebody opened a socket")

        monkeypatch.setattr(socket, "socket", no_network)
        outside = {"$ref": "http://127.0.0.1:9/schema"}
        assert refused({"$schema": "http://127.0.0.1:9/dialect"})
        assert refused(outside)
        with pytest.raises(Exception, match="Unresolvable"):
            check_instances(outside, {"/payload": 1})


class TestRegexCost:
    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("", 1), ("abc", 3), ("a{3}", 3), ("(ab{2}){5}", 20), ("[a-z0-9]{40}", 40), (r"\d{4}-\d{2}", 7),
            ("a{2,}", 2), ("a{2,9}", 9), ("a{0}", 1), ("(a|b)+", 4), (r"\{9\}", 3), ("[]{9}]", 1), ("a{3}*", 3),
            ("[^]{9}]{2}", 2), ("a{,9}", 9), ("((a{10}){10}){10}", 1110), ("a{ 1 , 7 }", 7),
            ("(?:a{ 100 }){ 100 }", 10100),
            ("(b{5})*{3}", 18), (r"[[:alpha:]{5}]{2}", 2), (r"\p{Greek}{3}", 3), (r"\b{start}a", 2), ("(?i:a{4})", 5),
        ],
    )  # fmt: skip
    def test_regex_cost_of_known_patterns(self, pattern: str, expected: int) -> None:
        assert regex_cost(pattern) == expected

    @pytest.mark.parametrize(
        "pattern", ["(((", ")))", "a{", "{", "a{b}", "a{,}", "(?x)a { 3 }", "(?=a)", "[a", "\\", "(?i-x:a)"]
    )
    def test_pattern_outside_the_grammar_is_refused(self, pattern: str) -> None:
        with pytest.raises(UnsupportedPattern):
            regex_cost(pattern)

    @given(st.text(alphabet="ab()[]{}^\\,0129*+?|. -&:<xpi", max_size=60))
    def test_canonical_pattern_is_read_like_the_pattern(self, pattern: str) -> None:
        """Compare with a second reading: the canonical form has the same cost and the same canonical form."""
        try:
            canonical, cost = parse_pattern(pattern)
        except UnsupportedPattern:
            return
        assert cost >= 1
        assert parse_pattern(canonical) == (canonical, cost)
