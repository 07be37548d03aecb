"""Read and write JSON without loss of digits, under the rules for numbers and texts.

Numbers with a fraction or an exponent are `Decimal`, whole numbers are `int`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any, TypeAlias

import simplejson

from vigil_core.domain.errors import FieldProblem, MalformedRequest, ValidationFailed, escape_pointer_token
from vigil_core.domain.number_rule import (
    NUMBER_RULE,
    NumberRefused,
    obeys_number_rule,
    parse_decimal,
    parse_integer,
)
from vigil_core.domain.text_rule import SURROGATE_RULE, is_encodable, sanitize

JsonValue: TypeAlias = "bool | int | float | Decimal | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"

MAX_DEPTH = 100
"""The levels of nesting in a document from outside."""
MAX_STORED_DEPTH = 200
"""The levels of nesting in a stored document, which can contain documents from outside: a join adds a level."""
MAX_PROBLEMS = 100

_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"|[][{}]')
_NOT_ASCII = re.compile("[^\x00-\x7f]+")


_DEPTH_RULE = f"must be nested at most {MAX_DEPTH} levels deep"


@dataclass(frozen=True)
class _RefusedNumber:
    """The place of a number that breaks the rule, until its pointer is known."""

    detail: str


def _number_parser(parse: Callable[[str], int | Decimal]) -> Callable[[str], object]:
    def parse_or_mark(text: str) -> object:
        try:
            return parse(text)
        except NumberRefused as refusal:
            return _RefusedNumber(refusal.detail)

    return parse_or_mark


mark_decimal = _number_parser(parse_decimal)
"""Parse a number with a fraction or an exponent. If it breaks the rule, return a mark that `json_problems` reports."""
mark_integer = _number_parser(parse_integer)
"""Parse an integer. If it breaks the rule, return a mark that `json_problems` reports."""


def loads(
    text: str | bytes, *, message_pointers: frozenset[str] = frozenset(), max_depth: int = MAX_DEPTH
) -> JsonValue:
    """Parse one JSON document.

    Args:
        text: The document.
        message_pointers: JSON pointers to the messages for people. Their halves of surrogate pairs are replaced.
        max_depth: The levels of nesting that the document may have.

    Raises:
        MalformedRequest: The text is not JSON (RFC 8259: no NaN, no Infinity), is not UTF-8, or is nested more deeply
            than `max_depth`.
        ValidationFailed: A number breaks the number rule, or a text contains half of a surrogate pair. The error has a
            pointer to each.
    """
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        value: Any = simplejson.loads(
            decoded, parse_float=mark_decimal, parse_int=mark_integer, parse_constant=_reject_constant
        )
    except (ValueError, RecursionError) as error:
        # The message of the parser contains a position, but no keys and no values.
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise MalformedRequest(f"The body is not valid JSON: {reason}") from error
    if _is_clean(value, max_depth):
        return value  # type: ignore[no-any-return]
    for pointer in message_pointers:
        _sanitize_at(value, pointer)
    problems = list(islice(_problems(value, "", max_depth), MAX_PROBLEMS))
    if any(problem.detail == _DEPTH_RULE for problem in problems):
        raise MalformedRequest("The body is not valid JSON: nested too deeply")
    if problems:
        raise ValidationFailed(problems)
    return value  # type: ignore[no-any-return]


def loads_stored(text: str | bytes) -> JsonValue:
    """Parse a stored document, which has up to `MAX_STORED_DEPTH` levels of nesting.

    Raises:
        MalformedRequest, ValidationFailed: The document is an upload that breaks a rule.
    """
    return loads(text, max_depth=MAX_STORED_DEPTH)


def nesting_depth(json_text: str) -> int:
    """Return the levels of nesting of a valid document."""
    depth = deepest = 0
    for match in _STRING_OR_BRACKET.finditer(json_text):
        if match[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif match[0] in "]}":
            depth -= 1
    return deepest


def json_problems(value: object, pointer: str = "") -> Iterator[FieldProblem]:
    """Yield what makes a value no JSON under the rules for numbers and texts, each with a pointer.

    Args:
        value: A value from outside: a parsed document, or the value of an expression.
        pointer: The JSON pointer of the value.
    """
    return _problems(value, pointer, MAX_DEPTH)


def dumps(value: object) -> str:
    """Return compact JSON on one line, with the keys in their given order.

    Raises:
        TypeError: The value contains an object that JSON has no form for, such as bytes.
        ValueError: The value contains NaN or an infinity.
    """
    return simplejson.dumps(
        value, use_decimal=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, encoding=None
    )


def to_ascii(json_text: str) -> str:
    """Return the same JSON in ASCII, for a message to another service.

    SQS, SNS and Step Functions refuse some characters of Unicode. ASCII escapes them.
    """
    return json_text if json_text.isascii() else _NOT_ASCII.sub(_escape, json_text)


def ascii_size(value: object) -> int:
    """Return the size of a value as ASCII JSON, in bytes."""
    text = dumps(value)
    return len(text) if text.isascii() else len(to_ascii(text))


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


def integral_to_int(value: object) -> object:
    """Convert a number without a fraction to an int, and return any other value unchanged.

    JSON has one kind of number: 3.0 equals 3.
    """
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value() and abs(value) < 2**63:
        return int(value)
    return value


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _is_clean(value: object, levels: int) -> bool:
    """Return whether a parsed document has no problem. This check builds no pointers, which most documents need not."""
    if isinstance(value, str):
        return is_encodable(value)
    if isinstance(value, list):
        return levels > 0 and all(_is_clean(item, levels - 1) for item in value)
    if isinstance(value, dict):
        return levels > 0 and all(is_encodable(key) and _is_clean(item, levels - 1) for key, item in value.items())
    return type(value) is not _RefusedNumber


def _problems(value: object, pointer: str, levels: int) -> Iterator[FieldProblem]:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        if not is_encodable(value):
            yield FieldProblem(pointer=pointer, detail=SURROGATE_RULE)
    elif isinstance(value, int | float | Decimal):
        if not obeys_number_rule(value):
            yield FieldProblem(pointer=pointer, detail=NUMBER_RULE)
    elif isinstance(value, _RefusedNumber):
        yield FieldProblem(pointer=pointer, detail=value.detail)
    elif not isinstance(value, Mapping | list | tuple):
        yield FieldProblem(pointer=pointer, detail="must be a JSON value")
    elif levels == 0:
        yield FieldProblem(pointer=pointer, detail=_DEPTH_RULE)
    elif isinstance(value, Mapping):
        yield from _object_problems(value, pointer, levels)
    else:
        for index, item in enumerate(value):
            yield from _problems(item, f"{pointer}/{index}", levels - 1)


def _object_problems(value: Mapping[Any, object], pointer: str, levels: int) -> Iterator[FieldProblem]:
    for key, item in value.items():
        if not isinstance(key, str):
            yield FieldProblem(pointer=pointer, detail="must have keys that are text")
            continue
        member = f"{pointer}/{escape_pointer_token(sanitize(key))}"
        if not is_encodable(key):
            yield FieldProblem(pointer=member, detail=SURROGATE_RULE)
        yield from _problems(item, member, levels - 1)


def _sanitize_at(document: Any, pointer: str) -> None:
    """Sanitize the text at a pointer into nested objects, if there is one."""
    *parents, name = pointer.split("/")[1:]
    for parent in parents:
        document = document.get(parent) if isinstance(document, dict) else None
    if isinstance(document, dict) and isinstance(document.get(name), str):
        document[name] = sanitize(document[name])


def _escape(match: re.Match[str]) -> str:
    return simplejson.dumps(match[0])[1:-1]
