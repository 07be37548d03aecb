"""Conditions on the results of other jobs: JMESPath, evaluated on a budget. Pure.

https://jmespath.org/specification.html. An expression of a few characters can double a list with each step, so what an
evaluation may do is counted: steps, and the sizes of what they make.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jmespath
from jmespath.visitor import TreeInterpreter

MAX_CHARS = 1_024
BUDGET = 200_000
"""Steps of an evaluation, and elements and characters that they make, all together."""
WEIGHT_BUDGET = 5_000_000
"""Elements and characters of all values that an evaluation has in hand, written out: a list that holds another list
twice is small, and comparing it or making text of it is not."""


class ConditionError(Exception):
    """The condition cannot be understood, or not be evaluated on these results; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """What a condition sees of a job: `result` is JSON text, None when there is none."""

    name: str
    """By which the condition calls it: its id, or in a run its name."""
    status: str
    health: str | None
    result: str | None
    left_out: bool = False
    """Whether there is a result that is too large to be shown here."""


def check(condition: str) -> None:
    """Raise ConditionError when the text is no JMESPath expression."""
    _parsed(condition)


def evaluate(condition: str, inputs: Sequence[Input]) -> bool:
    """Whether the condition holds: false is what JMESPath calls false.

    Raises:
        ConditionError: with the reason.
    """
    found = search(condition, inputs)
    return found is True or not (found is False or found is None or found in ("", [], {}))


def search(expression: str, inputs: Sequence[Input]) -> Any:
    """What an expression finds in jobs and their results.

    Each job is an object under its name (`extract.result.rows`, `"<id>".status`), and what their results say, as far as
    these are objects, is at the root: of two the later, before both the names.

    Raises:
        ConditionError: with the reason.
    """
    seen: dict[str, Any] = {}
    shown: dict[str, Any] = {}
    try:
        for each in inputs:
            # Conditions compare numbers as JMESPath's own literals are read: as floats and integers.
            result = None if each.result is None else json.loads(each.result)
            shown[each.name] = {"status": each.status, "job_health": each.health, "result": result}
            seen |= result if isinstance(result, Mapping) else {}
        return _Counting().visit(_parsed(expression), seen | shown)
    except ConditionError:
        raise
    except RecursionError as error:
        raise ConditionError("it is nested too deeply") from error
    except Exception as error:
        raise ConditionError(f"{type(error).__name__}: {error}"[:500]) from error


def names_in(expression: str) -> list[str]:
    """The names of fields that an expression mentions anywhere."""
    found: list[str] = []
    left = [_parsed(expression)]
    while left:
        node = left.pop()
        if node["type"] == "field":
            found.append(node["value"])
        left += [child for child in node["children"] if isinstance(child, dict) and "type" in child]
    return list(dict.fromkeys(found))


def _parsed(condition: str) -> Any:
    try:
        return jmespath.compile(condition).parsed
    except RecursionError as error:
        raise ConditionError("it is nested too deeply") from error
    except Exception as error:
        raise ConditionError(" ".join(str(error).split())[:500]) from error


class _Counting(TreeInterpreter):
    """An interpreter that gives up when its budget is spent."""

    def __init__(self) -> None:
        super().__init__()
        self._left = BUDGET
        self._weight_left = WEIGHT_BUDGET
        self._weighed: dict[int, tuple[Any, int]] = {}
        """By identity; the value stands beside its weight so that no other gets its identity."""

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        self._spend(1)
        made = super().visit(node, *args, **kwargs)
        self._spend(len(made) if isinstance(made, str | list | dict) and node["type"] != "current" else 0)
        self._weight_left -= self._weight(made)
        if self._weight_left < 0:
            raise ConditionError("it takes too many steps")
        return made

    def _weight(self, value: Any) -> int:
        """How large a value is, written out; each is weighed once, and what it holds before it."""
        if isinstance(value, str):
            return 1 + len(value)
        if not isinstance(value, list | dict):
            return 1
        known = self._weighed.get(id(value))
        if known is None:
            parts = value.values() if isinstance(value, dict) else value
            known = self._weighed[id(value)] = value, 1 + len(value) + sum(map(self._weight, parts))
        return known[1]

    def _spend(self, cost: int) -> None:
        self._left -= cost
        if self._left < 0:
            raise ConditionError("it takes too many steps")
