"""Read and write JSON without loss of digits.

Numbers with a fraction or an exponent are `Decimal`, whole numbers are `int`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TypeAlias, cast

import simplejson

from vigil_core.domain.errors import MalformedRequest

JsonValue: TypeAlias = "bool | int | float | Decimal | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"

MAX_DEPTH = 100


def loads(text: str | bytes) -> JsonValue:
    """Parse one JSON document.

    Raises:
        MalformedRequest: The text is not JSON (RFC 8259: no NaN, no Infinity), is not UTF-8, contains half of a
            surrogate pair, or is nested more deeply than `MAX_DEPTH`.
    """
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        value = cast(JsonValue, simplejson.loads(decoded, use_decimal=True, parse_constant=_reject_constant))
    except (ValueError, RecursionError) as error:
        # The message of the parser contains a position, but no keys and no values.
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise MalformedRequest(f"The body is not valid JSON: {reason}") from error
    _reject_unstorable(value, depth=0)
    return value


def dumps(value: object) -> str:
    """Return compact JSON on one line, with the keys in their given order.

    Raises:
        TypeError: The value contains an object that JSON has no form for, such as bytes.
        ValueError: The value contains NaN or an infinity.
    """
    return simplejson.dumps(
        value, use_decimal=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, encoding=None
    )


def canonical(value: object) -> str:
    """Return JSON for hashing: equal values result in equal text, whatever the order of their keys."""
    return simplejson.dumps(value, use_decimal=True, separators=(",", ":"), ensure_ascii=False, sort_keys=True)


def as_text(value: JsonValue) -> str:
    """Format a value as text for `get_fields`.

    A list is joined by spaces, an object becomes JSON, and null becomes "".
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return dumps(value)
    if isinstance(value, Sequence):
        return " ".join(as_text(item) for item in value)
    return dumps(value)


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _reject_unstorable(value: JsonValue, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise MalformedRequest("The body is not valid JSON: nested too deeply")
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise MalformedRequest("The body is not valid JSON: half of a surrogate pair") from error
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _reject_unstorable(key, depth + 1)
            _reject_unstorable(item, depth + 1)
    elif isinstance(value, Sequence):
        for item in value:
            _reject_unstorable(item, depth + 1)


def integral_to_int(value: object) -> object:
    """Convert a number without a fraction to an int, and return any other value unchanged.

    JSON has one kind of number: 3.0 equals 3.
    """
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value() and abs(value) < 2**63:
        return int(value)
    return value
