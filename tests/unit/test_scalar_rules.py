"""The rules for numbers and texts, with generated hostile scalars."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.scalars import HOSTILE_TEXTS, json_numbers, json_values
from vigil_core.domain.errors import MalformedRequest, ValidationFailed
from vigil_core.domain.exact_json import ascii_size, dumps, json_problems, loads, nesting_depth, to_ascii
from vigil_core.domain.number_rule import MAX_DIGITS, MAX_EXPONENT, NumberRefused, obeys_number_rule, parse_number
from vigil_core.domain.text_rule import LABEL_PATTERN, NAME_PATTERN, is_name, obeys_name_rule, printable, sanitize
from vigil_core.schemas.base import is_valid_name
from vigil_core.schemas.jobs import FailureBody, HeartbeatBody, NewJobBody
from vigil_core.schemas.validation import message_pointers
from vigil_core.schemas.workflows import DecisionBody, WorkflowBody

BIDI_CONTROLS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def is_noncharacter(character: str) -> bool:
    return 0xFDD0 <= ord(character) <= 0xFDEF or ord(character) & 0xFFFE == 0xFFFE


def is_forbidden_in_names(character: str) -> bool:
    """State the rule by Unicode's own properties, in place of ranges."""
    return unicodedata.category(character) in ("Cc", "Cs") or character in BIDI_CONTROLS or is_noncharacter(character)


class TestNumbers:
    @given(json_numbers())
    def test_number_is_read_exactly_or_refused_with_a_pointer(self, text: str) -> None:
        mantissa, _, exponent = text.lower().partition("e")
        digits = mantissa.lstrip("-0.").replace(".", "")
        as_written = int(exponent or 0) if len(exponent) < 10 else 10**9
        whole, _, fraction = mantissa.lstrip("-").partition(".")
        leading_zeros = len(fraction) - len(fraction.lstrip("0"))
        scientific = as_written + (len(whole) - 1 if whole != "0" else -leading_zeros - 1)
        if not digits.strip("0"):
            scientific = as_written - len(fraction)
        document = f'{{"a":[{text}]}}'
        if len(digits) > MAX_DIGITS or max(abs(as_written), abs(scientific)) > MAX_EXPONENT:
            with pytest.raises(ValidationFailed) as refused:
                loads(document)
            assert [problem.pointer for problem in refused.value.problems] == ["/a/0"]
            return
        value = loads(document)
        written = dumps(value)
        assert loads(written) == value
        if len(text) < 1_000:
            assert value == {"a": [Decimal(text)]}

    @pytest.mark.parametrize(
        ("text", "accepted"),
        [
            ("9" * 4300, True), ("9" * 4301, False), ("-" + "9" * 4300, True), ("-" + "9" * 4301, False),
            ("1e9999", True), ("1e10000", False), ("1e-9999", True), ("1E-10000", False), ("1e+0009999", True),
            ("1e99999999999999999999999", False), ("-1e-99999999999999999999999", False), ("0e99999", False),
            ("0." + "1" * 4300, True), ("0." + "1" * 4301, False), ("12e9999", False), ("0.1e-9999", False),
        ],
        ids=lambda value: str(value)[:12],
    )  # fmt: skip
    def test_limits_of_the_rule(self, text: str, accepted: bool) -> None:
        if accepted:
            assert obeys_number_rule(parse_number(text))
        else:
            with pytest.raises(NumberRefused):
                parse_number(text)

    @pytest.mark.parametrize(
        "text", ["", "inf", "nan", "NaN", "-Infinity", "+1", "01", "1.", ".5", "0x1", "1_0", "\u0661", " 1", "1\n"]
    )
    def test_other_notations_are_no_numbers(self, text: str) -> None:
        with pytest.raises(ValueError, match="notation of JSON"):
            parse_number(text)

    @pytest.mark.parametrize(
        ("value", "obeys"),
        [
            (10**4300 - 1, True), (10**4300, False), (-(10**4300), False), (float("inf"), False), (float("nan"), False),
            (1.7e308, True), (Decimal("NaN"), False), (Decimal("sNaN"), False), (Decimal("-Infinity"), False),
            (Decimal("1e9999"), True), (Decimal("1e10000"), False), (Decimal("1" * 4301), False),
        ],
        ids=lambda value: ascii(value)[:12] if not isinstance(value, int) else str(value.bit_length()),
    )  # fmt: skip
    def test_rule_for_computed_numbers(self, value: int | float | Decimal, obeys: bool) -> None:
        assert obeys_number_rule(value) is obeys
        assert [problem.pointer for problem in json_problems({"x": [value]})] == ([] if obeys else ["/x/0"])


class TestTexts:
    def test_rule_for_names_agrees_with_unicode_for_every_character(self) -> None:
        for code in range(0x110000):
            assert obeys_name_rule(chr(code)) is not is_forbidden_in_names(chr(code)), hex(code)

    def test_published_patterns_differ_from_the_rule_only_beyond_the_first_plane(self) -> None:
        for pattern in (NAME_PATTERN, LABEL_PATTERN):
            published = re.compile(pattern)
            for code in range(0x10000):
                text = f"a{chr(code)}b"
                assert (published.search(text) is not None) is (obeys_name_rule(text) or 0xD800 <= code < 0xE000)

    @given(st.text(max_size=5) | st.sampled_from(HOSTILE_TEXTS))
    def test_model_of_a_name_agrees_with_the_rule(self, text: str) -> None:
        assert is_valid_name(text) is is_name(text)

    @given(st.text() | st.text(st.characters(categories=["Cs", "Cc", "Cf", "Lu"])))
    def test_message_keeps_all_but_nul_and_half_pairs(self, text: str) -> None:
        sanitized = sanitize(text)
        assert len(sanitized) == len(text)
        for before, after in zip(text, sanitized, strict=True):
            assert after == ("\ufffd" if before == "\0" or "\ud800" <= before <= "\udfff" else before)

    @pytest.mark.parametrize(
        ("model", "pointers"),
        [
            (FailureBody, {"/error/message", "/error/type", "/error/traceback"}),
            (HeartbeatBody, {"/message"}),
            (DecisionBody, {"/note"}),
            (WorkflowBody, {"/description"}),
            (NewJobBody, set()),
            (None, set()),
        ],
    )
    def test_pointers_of_messages_come_from_the_model(self, model: type | None, pointers: set[str]) -> None:
        assert message_pointers(model) == pointers

    def test_half_pair_is_replaced_in_messages_and_refused_elsewhere(self) -> None:
        text = '{"error": {"code": "A", "message": "\\ud800 \\u0000"}, "lease_token": "\\ud800"}'
        with pytest.raises(ValidationFailed) as refused:
            loads(text, message_pointers=message_pointers(FailureBody))
        assert [problem.pointer for problem in refused.value.problems] == ["/lease_token"]


class TestDocuments:
    @given(json_values())
    def test_value_is_read_back_or_refused_at_a_pointer_to_it(self, value: object) -> None:
        problems = list(json_problems(value))
        try:
            written = dumps(value)
            written.encode()
        except (ValueError, TypeError):
            assert problems
            return
        for problem in problems:
            assert problem.detail
            problem.pointer.encode()
        if not problems:
            read = loads(written)
            assert loads(dumps(read)) == read
            ascii_text = to_ascii(written)
            assert ascii_text.isascii()
            assert len(ascii_text) == ascii_size(value)
            assert loads(ascii_text) == loads(written)

    @given(json_values())
    def test_nesting_depth_of_a_text_is_that_of_its_value(self, value: object) -> None:
        def depth(value: object) -> int:
            parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
            return 0 if parts is None else 1 + max(map(depth, parts), default=0)

        if not any(json_problems(value)):
            assert nesting_depth(dumps(value)) == depth(value)

    @pytest.mark.parametrize("depth", [100, 101, 5_000, 100_000])
    def test_depth_is_limited(self, depth: int) -> None:
        text = "[" * depth + "1e99999" * (depth > 100) + "]" * depth
        if depth <= 100:
            assert not list(json_problems(loads(text)))
        else:
            with pytest.raises(MalformedRequest):
                loads(text)


class TestPrintable:
    @given(
        st.text(st.sampled_from("a[]2J;\\\x1b\x9b\x9d\x07\x9c\u202e\n\r\t\0\ud800")) | st.sampled_from(HOSTILE_TEXTS)
    )
    def test_result_contains_nothing_that_a_terminal_interprets(self, text: str) -> None:
        for keep in ("", "\n"):
            shown = printable(text, keep=keep)
            assert not [character for character in shown if is_forbidden_in_names(character) and character not in keep]
            assert printable(shown, keep=keep) == shown
        plain = re.sub("[^a]", "", text)
        assert printable(plain) == plain

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("\x1b[2J\x1b[32mok\x1b[0m", "ok"),
            ("\x1b]52;c;ZXZpbA==\x1b\\x", "x"),
            ("\x1b]8;;http://a\x07link\x1b]8;;\x07", "link"),
            ("\x9b2Jx\x9d0;t\x9cy", "xy"),
            ("\x1b]0;no end", "\ufffd]0;no end"),
            ("\x1b\x1b[2J[2J", "\ufffd[2J"),
            ("a\u202eb\u2066c", "a\ufffdb\ufffdc"),
            ("größe 🚀 \u05d0", "größe 🚀 \u05d0"),
        ],
    )
    def test_escape_sequences_are_removed(self, text: str, shown: str) -> None:
        assert printable(text) == shown
