"""Limits on the CPU time and the memory of expressions and payload schemas, with generated expensive work."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vigil_core.domain.cpu_budget import CpuBudget
from vigil_core.domain.errors import ValidationFailed
from vigil_core.domain.jobs.conditions import (
    ConditionError,
    DependencyResult,
    ExpressionLimitExceeded,
    evaluate_expression,
)
from vigil_core.services import cpu_limits
from vigil_core.services.jobs.payload_schema import check_instances, check_schema

CPU_S = 0.1
OVERSHOOT_S = 1.2
"""The time of the largest single step: a match of a pattern with the whole budget of steps, on a slow machine."""
MAX_MEMORY = 150 * 1024 * 1024

generated = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def cpu_time_of(work: Callable[[], object]) -> float:
    """Return the CPU time of work, whether it succeeds or is refused."""
    started_at = time.thread_time()
    with suppress(ConditionError, ValidationFailed):
        work()
    return time.thread_time() - started_at


# ------------------------------------------------------------------------------------------------------- expressions

RESULT = json.dumps(
    {
        "n": list(range(3_000)),
        "s": "x" * 400_000,
        "l": ["y" * 500] * 400,
        "m": [[1] * 60] * 60,
        "o": {str(n): n for n in range(500)},
    }
)
_values = st.sampled_from(
    ["n", "s", "l", "m", "o", "@", "a", "a.result", "`1`", "'z'", '`","`', "`[1,[2]]`", "o.*", "m[]"]
)


def _combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(inner, inner)
    return st.one_of(
        pairs.map(lambda pair: f"[{pair[0]}, {pair[1]}]"),
        pairs.map(lambda pair: f"{{a: {pair[0]}, n: {pair[1]}}}"),
        pairs.map(lambda pair: f"({pair[0]}) | ({pair[1]})"),
        pairs.map(lambda pair: f"({pair[0]}) == ({pair[1]})"),
        pairs.map(lambda pair: f"({pair[0]})[?({pair[1]})]"),
        pairs.map(lambda pair: f"({pair[0]})[*].[{pair[1]}][]"),
        pairs.map(lambda pair: f"contains({pair[0]}, {pair[1]})"),
        pairs.map(lambda pair: f"join({pair[0]}, {pair[1]})"),
        pairs.map(lambda pair: f"map(&({pair[0]}), {pair[1]})"),
        pairs.map(lambda pair: f"sort_by({pair[0]}, &({pair[1]}))"),
        *(inner.map(f"{name}({{}})".format) for name in ("to_string", "sort", "reverse", "keys", "values", "sum")),
        inner.map(lambda text: "|".join(["[@, @][]"] * 12) + f"|({text})"),
        inner.map(lambda text: "[" + ", ".join([f"({text})"] * 6) + "][]"),
    )


expressions = st.recursive(_values, _combined, max_leaves=12)


@generated
@given(expression=expressions)
def test_any_expression_stays_within_its_memory(expression: str) -> None:
    inputs = [DependencyResult(name="a", status="completed", health=None, result=RESULT)]
    tracemalloc.start()
    try:
        with suppress(ConditionError):
            evaluate_expression(expression, inputs, CpuBudget(time.thread_time, CPU_S * 10, "expression_cpu_ms"))
        assert tracemalloc.get_traced_memory()[1] < MAX_MEMORY
    finally:
        tracemalloc.stop()


@generated
@given(expression=expressions)
def test_cpu_limit_stops_any_expression(expression: str) -> None:
    inputs = [DependencyResult(name="a", status="completed", health=None, result=RESULT)]
    budget = CpuBudget(time.thread_time, CPU_S, "expression_cpu_ms")
    assert cpu_time_of(lambda: evaluate_expression(expression, inputs, budget)) < CPU_S + OVERSHOOT_S


@pytest.mark.parametrize(
    ("expression", "limit", "cpu_s"),
    [
        ("n[?" + "||".join(["@==`-1`"] * 60) + "]", "expression_cpu_ms", 0.02),
        ("[" + ", ".join(["n"] * 80) + "][]", "expression_steps", 10),
        ("[@,@]|" * 30 + "@==@", "expression_values", 10),
        ("[@,@]|" * 30 + "@", "expression_values", 10),
        ("join(s, l)", "expression_chars", 10),
    ],
)
def test_exceeded_limit_is_named(expression: str, limit: str, cpu_s: float) -> None:
    result = (
        json.dumps({"n": list(range(3_000)), "s": "x" * 40_000, "l": [""] * 400}) if "@,@" not in expression else ""
    )
    inputs = [DependencyResult(name="a", status="completed", health=None, result=result or "{}")]
    with pytest.raises(ExpressionLimitExceeded, match=f"it exceeds the limit {limit} ") as exceeded:
        evaluate_expression(expression, inputs, CpuBudget(time.thread_time, cpu_s, "expression_cpu_ms"))
    assert exceeded.value.limit == limit


def test_large_result_is_readable_by_a_small_condition() -> None:
    """Check that a reference to a large value costs nothing: only work on it does."""
    large = json.dumps({"rows": [{"id": n} for n in range(200_000)], "ok": True})
    inputs = [DependencyResult(name="a", status="completed", health=None, result=large)]
    assert evaluate_expression("ok && a.result.rows[5].id == `5` && length(rows) > `1`", inputs) is True


# ----------------------------------------------------------------------------------------------------------- schemas


@pytest.fixture(autouse=True)
def small_schema_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_limits, "SCHEMA_CPU_S", CPU_S)


_refs = st.integers(0, 20).map(lambda number: {"$ref": f"#/$defs/d{number}"})
_atoms = st.one_of(
    st.sampled_from("ab.").map(str), st.sampled_from([r"\w", r"\pL", "[a-z]", "[^b]", "(?i:a)", r"[\w&&[^b]]"])
)
_counts = st.sampled_from(["{ 100 }", "{,5}", "{ 2 , 30 }", "{30}", "*", "+", "?", "{7,}?", "{ ,90}"])


def _repeated(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, _counts).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
        st.tuples(inner, inner).map(lambda pair: f"{pair[0]}{pair[1]}"),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})*{pair[1]}"),
    )


patterns = st.recursive(_atoms, _repeated, max_leaves=8).map(lambda pattern: f"(?:{pattern})c$")


def _combined_schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def keyword(name: str) -> Callable[[Any], Any]:
        return lambda value: {name: value}

    return st.one_of(
        *(
            st.lists(inner, min_size=1, max_size=3).map(keyword(name))
            for name in ("allOf", "anyOf", "oneOf", "prefixItems")
        ),
        *(inner.map(keyword(name)) for name in ("not", "items", "additionalProperties", "propertyNames", "contains")),
        st.tuples(_refs, inner, inner).map(lambda t: {**t[0], "if": True, "then": t[1], "unevaluatedProperties": t[2]}),
        st.tuples(_refs, inner, inner).map(lambda t: {**t[0], "if": t[1], "else": t[2], "unevaluatedItems": False}),
        st.tuples(_refs, _refs).map(lambda t: {"allOf": [t[0], t[1]]}),
        inner.map(lambda schema: {"properties": {"a": schema, "b": schema}}),
    )


_simple = st.one_of(
    _refs,
    st.booleans(),
    patterns.map(lambda pattern: {"pattern": pattern}),
    st.sampled_from(
        [{"type": "object"}, {"uniqueItems": True}, {"enum": [list(range(2_000))]}, {"required": ["z"]}, {"minimum": 1}]
    ),
)
schemas = st.recursive(_simple, _combined_schemas, max_leaves=10)
PAYLOADS: list[Any] = [
    {"a": {"a": {"b": 1}}, "b": [list(range(2_000))] * 5},
    ["a" * 200_000, "ab" * 50_000, "äb" * 20_000],
    {"a" * n: {"b": "a" * 100} for n in range(1, 1_000)},
    [[[{}] * 20] * 20] * 20,
    [[n, str(n)] for n in range(30_000)],
]


@generated
@given(root=schemas, definitions=st.lists(schemas, min_size=21, max_size=21), payload=st.sampled_from(PAYLOADS))
def test_any_schema_check_ends_within_its_limit(root: Any, definitions: list[Any], payload: Any) -> None:
    schema: Any = {"allOf": [root], "$defs": {f"d{number}": inner for number, inner in enumerate(definitions)}}
    assert cpu_time_of(lambda: check_schema(schema)) < CPU_S + OVERSHOOT_S
    assert cpu_time_of(lambda: check_instances(schema, {"/payload": payload})) < CPU_S + OVERSHOOT_S


@generated
@given(pattern=patterns, text=st.sampled_from(["a" * 600_000, "ab" * 300_000, "aä" * 200_000]))
def test_any_accepted_pattern_is_matched_within_the_limit(pattern: str, text: str) -> None:
    try:
        check_schema({"pattern": pattern})
    except ValidationFailed:
        return
    assert cpu_time_of(lambda: check_instances({"pattern": pattern}, {"/payload": text})) < CPU_S + OVERSHOOT_S


@pytest.mark.parametrize(
    ("schema", "payload"),
    [
        # The library follows these references without applying a keyword.
        (
            {
                "$defs": {
                    f"d{n}": {
                        "$ref": f"#/$defs/d{n + 1}", "if": True, "then": {"$ref": f"#/$defs/d{n + 1}"},
                    } for n in range(30)
                } | {"d30": {}},
                "unevaluatedProperties": False,
                "$ref": "#/$defs/d0",
            },
            {"a": 1},
        ),
        # Each error contains the text of the whole value.
        ({"allOf": [{"type": "string"}] * 400}, [list(range(1_000))] * 300),
        # Each element is compared with a large constant.
        ({"items": {"anyOf": [{"const": list(range(5_000))}] * 300}}, [[*range(4_999), 0]] * 1_000),
        ({"required": [*map(str, range(3_000)), *range(3_000), "z"]}, {}),
    ],
)  # fmt: skip
def test_work_inside_the_library_is_limited(schema: Any, payload: Any) -> None:
    assert cpu_time_of(lambda: check_schema(schema)) < CPU_S + OVERSHOOT_S
    assert cpu_time_of(lambda: check_instances(schema, {"/payload": payload})) < CPU_S + OVERSHOOT_S


def test_jobs_of_one_request_share_the_limit() -> None:
    schema = {"items": {"uniqueItems": True}}
    cpu = cpu_limits.SchemaCpu(2)
    payload: Any = [[n] for n in range(3_000)]

    def check_many() -> None:
        for _ in range(50):
            check_instances(schema, {"/payload": payload}, cpu)

    with pytest.raises(ValidationFailed, match="payload_schema_cpu_ms"):
        check_many()
