"""Hostile scalars: numbers and texts that break parsers, terminals, documents and queues."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import strategies as st

HOSTILE_NUMBERS = (
    "1e99999999999999999999999", "-1e99999999999999999999999", "1e-99999999999999999999999", "1e9999999", "-1e9999999",
    "1e9999", "1e-9999", "1e10000", "1e400", "0e99999", "-0", "-0.0", "1" + "0" * 4299, "9" * 4300, "9" * 4301,
    "9" * 20_000, "0." + "1" * 4300, "0." + "3" * 4301, "1e18", "9223372036854775808", "1e38", "0.1e1",
)  # fmt: skip
"""Numbers in the notation of JSON."""

HOSTILE_TEXTS = (
    "\0", "a\0b", "\ud800", "x\udfff", "\uffff", "\ufffe", "\ufdd0", "\U0001fffe", "\U0010ffff", "\x1b[2J\x1b[31mred",
    "\x1b]8;;https://example.com\x1b\\link\x1b]8;;\x1b\\", "\x1b]52;c;ZXZpbA==\x07", "\x9b2J", "\x85", "\x7f",
    "\u202egnp.exe", "\u2066a\u2069", "\u200f", "\u061c", "\u2028\u2029", "", " ", "/", "%", "..", "é", "🚀" * 64,
    "x" * 5_000, "#", "{{payload.a}}", "]]>", "<script>", "\"\\", "\r\n", "\ufeff", "a\u0301" * 40,
)  # fmt: skip


def json_numbers() -> st.SearchStrategy[str]:
    """Generate numbers in the notation of JSON, around the limits of the number rule."""
    digits = st.integers(0, 10**12).map(str) | st.integers(4_290, 4_310).map(lambda count: "7" * count)
    fraction = (
        st.just("")
        | st.text("0123456789", min_size=1, max_size=30).map(".{}".format)
        | st.integers(4_290, 4_310).map(lambda count: "." + "0" * (count - 1) + "1")
    )
    power = st.integers(-10_020, 10_020) | st.integers(-(10**30), 10**30) | st.integers(-5, 5)
    exponent = st.just("") | st.tuples(st.sampled_from(["e", "E"]), power).map(lambda pair: f"{pair[0]}{pair[1]}")
    return st.tuples(st.sampled_from(["", "-"]), digits, fraction, exponent).map("".join)


def json_values() -> st.SearchStrategy[object]:
    """Generate values of Python, most of them JSON, with scalars around the limits of the rules."""
    numbers = (
        st.integers()
        | st.floats()
        | st.decimals()
        | st.integers(-10_050, 10_050).map(lambda power: Decimal(f"7e{power}"))
        | st.integers(4_299, 4_302).map(lambda count: 10**count)
    )
    texts = st.text(max_size=5) | st.sampled_from(HOSTILE_TEXTS)
    scalars = st.none() | st.booleans() | numbers | texts | st.sampled_from([object, b"bytes", {1}])
    return st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
    )
