"""The output of a run: every expression over every result gives JSON, or the reason why it does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_core.domain.exact_json import loads
from vigil_core.domain.jobs.conditions import DependencyResult
from vigil_core.domain.workflows import output
from vigil_core.domain.workflows.output import MAX_REASON_CHARS, OutputInvalid, evaluate_output

LITERALS = [
    "`1`", "`-0.0`", "`1e400`", '`"\\ud800"`', '`"\\u0000"`', "`null`", "`[]`", '`{"k": [1]}`', "'inf'", "'nan'",
]  # fmt: skip
PATHS = ["a", "@", "a.result", "a.result.x", "a.result.l", "a.result.l[*]", "*", "*.result", "nosuch", '"\\ud800"']
ATOMS = st.sampled_from([*LITERALS, *PATHS])
UNARY = st.sampled_from(
    [
        "&{}", "to_number({})", "sum({})", "to_string({})", "[{0}, {0}]", "{{k: {0}}}", "keys({})", "abs({})", "{}(",
        "map(&{0}, {0})", "sort_by({0}, &{0})", "merge({0}, {0})", "length({})", "join('', {})", "max({})",
        "nosuch({})",
    ]
)  # fmt: skip
EXPRESSIONS = st.recursive(
    ATOMS, lambda inner: st.builds(lambda shape, part: shape.format(part), UNARY, inner), max_leaves=6
)
DIGITS = "9" * 4_300
HOSTILE_RESULTS = [
    None, "", "{", "1e999", "-1e999", "NaN", DIGITS, f"{DIGITS}9", '"\\ud800"', "[" * 101 + "]" * 101, "[" * 9_000,
    '{"x": 1e999}', f'{{"l": [{DIGITS}, {DIGITS}]}}', '{"l": ["inf", "nan"], "x": "\\u0000"}', '{"\\ud800": {"x": 1}}',
    '{"x": 1e99999999999999999999999}', "[0]",
]  # fmt: skip


def result_of(text: str | None) -> DependencyResult:
    return DependencyResult(name="a", status="completed", health=None, result=text)


@given(expression=EXPRESSIONS, result=st.sampled_from(HOSTILE_RESULTS))
def test_output_is_readable_json_or_a_reason_that_can_be_stored(expression: str, result: str | None) -> None:
    reason, text = None, "null"
    try:
        text = evaluate_output(expression, [result_of(result)])
    except OutputInvalid as error:
        reason = str(error)
    loads(text.encode())
    if reason is not None:
        assert 0 < len(reason.encode()) <= 4 * MAX_REASON_CHARS
        assert "\x00" not in reason


def test_too_large_output_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MAX_OUTPUT_BYTES", 10)
    assert evaluate_output("a.result", [result_of('"12345678"')]) == '"12345678"'
    with pytest.raises(OutputInvalid, match="it has 11 bytes, and at most 10 are allowed"):
        evaluate_output("a.result", [result_of('"123456789"')])
