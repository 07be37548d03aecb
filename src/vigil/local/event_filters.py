"""Event patterns of an event source mapping: they select the records that reach the function.

https://docs.aws.amazon.com/lambda/latest/dg/invocation-eventfiltering.html
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ABSENT = object()

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "=": lambda value, bound: value == bound,
    "<": lambda value, bound: value < bound,
    "<=": lambda value, bound: value <= bound,
    ">": lambda value, bound: value > bound,
    ">=": lambda value, bound: value >= bound,
}


def parse_patterns(criteria: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Parse the patterns of a mapping's `FilterCriteria`.

    Raises:
        ValueError: A filter is not a pattern.
    """
    patterns = [json.loads(entry["Pattern"]) for entry in (criteria or {}).get("Filters", [])]
    for pattern in patterns:
        if not isinstance(pattern, dict):
            raise ValueError(f"An event pattern must be an object, not {pattern!r}")
    return patterns


def passes(record: Mapping[str, Any], patterns: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the record matches at least one of the patterns. Without patterns, every record passes."""
    return not patterns or any(matches(pattern, record) for pattern in patterns)


def matches(pattern: Mapping[str, Any], value: object) -> bool:
    """Return whether the value matches every field of the pattern.

    Raises:
        ValueError: The pattern contains an unknown rule.
    """
    return all(_field_matches(name, rule, value) for name, rule in pattern.items())


def _field_matches(name: str, rule: object, parent: object) -> bool:
    if name == "$or":
        if not isinstance(rule, list):
            raise ValueError("$or takes a list of patterns")
        return any(matches(alternative, parent) for alternative in rule)
    value = parent.get(name, ABSENT) if isinstance(parent, Mapping) else ABSENT
    if isinstance(rule, Mapping):
        return matches(rule, value)
    if not isinstance(rule, list):
        raise ValueError(f"A pattern's leaf is a list, not {rule!r}")
    # A list in the event matches if any of its elements matches.
    candidates = value if isinstance(value, list) else [value]
    return any(_rule_matches(alternative, candidate) for alternative in rule for candidate in candidates)


def _rule_matches(rule: object, value: object) -> bool:
    if not isinstance(rule, Mapping):
        return _equal(rule, value)
    ((operator, operand),) = rule.items()
    match operator:
        case "exists":
            return (value is not ABSENT) is operand
        case "prefix":
            return isinstance(value, str) and value.startswith(operand)
        case "suffix":
            return isinstance(value, str) and value.endswith(operand)
        case "equals-ignore-case":
            return isinstance(value, str) and value.lower() == operand.lower()
        case "anything-but":
            excluded = operand if isinstance(operand, list) else [operand]
            return value is not ABSENT and not any(_rule_matches(entry, value) for entry in excluded)
        case "numeric":
            return _is_number(value) and all(
                _COMPARISONS[comparison](float(str(value)), bound)
                for comparison, bound in zip(operand[::2], operand[1::2], strict=True)
            )
        case _:
            raise ValueError(f"Unknown event pattern rule {operator!r}")


def _equal(expected: object, value: object) -> bool:
    # The number 1 equals neither true nor the text "1".
    if isinstance(expected, bool) or isinstance(value, bool):
        return expected is value
    return (type(expected) is type(value) and expected == value) or (
        _is_number(expected) and _is_number(value) and expected == value
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
