"""Strict JSON for definitions and options: exact numbers, unique keys, and the rules for numbers and texts."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

from vigil_core.domain.exact_json import json_problems, mark_decimal, mark_integer

_MAX_PROBLEMS = 10


def loads(text: str) -> Any:
    """Parse one document.

    Raises:
        json.JSONDecodeError: The text is not JSON.
        ValueError: The text contains NaN, an infinity or a repeated key, or breaks a rule for numbers and texts. The
            message has a pointer to each value that breaks a rule.
    """
    try:
        value = json.loads(
            text,
            parse_float=mark_decimal,
            parse_int=mark_integer,
            parse_constant=_reject_constant,
            object_pairs_hook=_require_unique_keys,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    require_rules(value)
    return value


def require_rules(value: Any) -> None:
    """Check the numbers and texts of a parsed document.

    Raises:
        ValueError: Values break a rule. The message has a pointer to each, up to ten.
    """
    problems = [f"{problem.pointer or '/'} {problem.detail}" for problem in islice(json_problems(value), _MAX_PROBLEMS)]
    if problems:
        raise ValueError("; ".join(problems))


def _require_unique_keys(members: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(members)
    if len(mapping) < len(members):
        names = [name for name, _ in members]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} occurs a second time in an object")
    return mapping


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")
