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
STEP_BUDGET = 200_000
"""Steps of an evaluation, and elements and characters that they make, all together."""
SIZE_BUDGET = 5_000_000
"""Elements and characters of all values that an evaluation has in hand, written out: a list that holds another list
twice is small, and comparing it or making text of it is not."""


class ConditionError(Exception):
    """The condition cannot be understood, or not be evaluated on these results; the message says why."""


@dataclass(frozen=True, kw_only=True)
class DependencyResult:
    """What a condition sees of a job: `result` is JSON text, None when there is none."""

    name: str
    """By which the condition calls it: its id, or in a run its name."""
    status: str
    health: str | None
    result: str | None
    truncated: bool = False
    """Whether there is a result that is too large to be shown here."""


def check_expression(condition: str) -> None:
    """Raise ConditionError when the text is no JMESPath expression."""
    _parse(condition)


def evaluate(condition: str, dependencies: Sequence[DependencyResult]) -> bool:
    """Whether the condition holds: false is what JMESPath calls false.

    Raises:
        ConditionError: with the reason.
    """
    value = evaluate_expression(condition, dependencies)
    return value is True or not (value is False or value is None or value in ("", [], {}))


def evaluate_expression(expression: str, dependencies: Sequence[DependencyResult]) -> Any:
    """What an expression finds in jobs and their results.

    Each job is an object under its name (`extract.result.rows`, `"<id>".status`), and what their results say, as far as
    these are objects, is at the root: of two the later, before both the names.

    Raises:
        ConditionError: with the reason.
    """
    merged_results: dict[str, Any] = {}
    by_name: dict[str, Any] = {}
    try:
        for each in dependencies:
            # Conditions compare numbers as JMESPath's own literals are read: as floats and integers.
            result = None if each.result is None else json.loads(each.result)
            by_name[each.name] = {"status": each.status, "job_health": each.health, "result": result}
            merged_results |= result if isinstance(result, Mapping) else {}
        return _BudgetedInterpreter().visit(_parse(expression), merged_results | by_name)
    except ConditionError:
        raise
    except RecursionError as error:
        raise ConditionError("it is nested too deeply") from error
    except Exception as error:
        raise ConditionError(f"{type(error).__name__}: {error}"[:500]) from error


def field_names(expression: str) -> list[str]:
    """The names of fields that an expression mentions anywhere."""
    names: list[str] = []
    pending = [_parse(expression)]
    while pending:
        node = pending.pop()
        if node["type"] == "field":
            names.append(node["value"])
        pending += [child for child in node["children"] if isinstance(child, dict) and "type" in child]
    return list(dict.fromkeys(names))


def _parse(condition: str) -> Any:
    try:
        return jmespath.compile(condition).parsed
    except RecursionError as error:
        raise ConditionError("it is nested too deeply") from error
    except Exception as error:
        raise ConditionError(" ".join(str(error).split())[:500]) from error


class _BudgetedInterpreter(TreeInterpreter):
    """An interpreter that gives up when its budget is spent."""

    def __init__(self) -> None:
        super().__init__()
        self._steps_left = STEP_BUDGET
        self._size_left = SIZE_BUDGET
        self._sizes: dict[int, tuple[Any, int]] = {}
        """By identity; the value stands beside its weight so that no other gets its identity."""

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        self._spend(1)
        value = super().visit(node, *args, **kwargs)
        self._spend(len(value) if isinstance(value, str | list | dict) and node["type"] != "current" else 0)
        self._size_left -= self._size_of(value)
        if self._size_left < 0:
            raise ConditionError("it takes too many steps")
        return value

    def _size_of(self, value: Any) -> int:
        """How large a value is, written out; each is weighed once, and what it holds before it."""
        if isinstance(value, str):
            return 1 + len(value)
        if not isinstance(value, list | dict):
            return 1
        known = self._sizes.get(id(value))
        if known is None:
            parts = value.values() if isinstance(value, dict) else value
            known = self._sizes[id(value)] = value, 1 + len(value) + sum(map(self._size_of, parts))
        return known[1]

    def _spend(self, cost: int) -> None:
        self._steps_left -= cost
        if self._steps_left < 0:
            raise ConditionError("it takes too many steps")
