"""Conditions on the results of dependencies: JMESPath, evaluated with a budget. Pure.

The language: https://jmespath.org/specification.html. A short expression can double a list with each step. Therefore
the evaluation counts its steps and the sizes of their values against a budget.
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
"""The limit for the steps of an evaluation plus the elements and characters that they produce."""
SIZE_BUDGET = 5_000_000
"""The limit for the elements and characters of all intermediate values, each written out in full. A list that contains
another list twice takes little memory, but a comparison or a conversion to text processes its full size."""


class ConditionError(Exception):
    """Raised if a condition is malformed or cannot be evaluated on the results; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class DependencyResult:
    """A dependency as a condition sees it; `result` is JSON text, or None without a result."""

    name: str
    """The id of the job, or its name in a run."""
    status: str
    health: str | None
    result: str | None
    truncated: bool = False
    """Whether the job has a result that is too large for the condition."""


def check_expression(condition: str) -> None:
    """Check the syntax of an expression.

    Raises:
        ConditionError: The text is not a JMESPath expression.
    """
    _parse(condition)


def evaluate(condition: str, dependencies: Sequence[DependencyResult]) -> bool:
    """Evaluate a condition to true or false, by JMESPath's rules of truth.

    Raises:
        ConditionError: The condition cannot be evaluated.
    """
    value = evaluate_expression(condition, dependencies)
    return value is True or not (value is False or value is None or value in ("", [], {}))


def evaluate_expression(expression: str, dependencies: Sequence[DependencyResult]) -> Any:
    """Evaluate an expression on jobs and their results.

    Each job is an object under its name (`extract.result.rows`, `"<id>".status`). In addition, the members of all
    results that are objects are at the root. A later result replaces an earlier one, and a job name replaces both.

    Raises:
        ConditionError: The expression cannot be evaluated.
    """
    merged_results: dict[str, Any] = {}
    by_name: dict[str, Any] = {}
    try:
        for dependency in dependencies:
            # `json` reads numbers as floats and integers, as JMESPath reads its literals.
            result = None if dependency.result is None else json.loads(dependency.result)
            by_name[dependency.name] = {
                "status": dependency.status,
                "job_health": dependency.health,
                "result": result,
            }
            merged_results |= result if isinstance(result, Mapping) else {}
        return _BudgetedInterpreter().visit(_parse(expression), merged_results | by_name)
    except ConditionError:
        raise
    except RecursionError as error:
        raise ConditionError("it is nested too deeply") from error
    except Exception as error:
        raise ConditionError(f"{type(error).__name__}: {error}"[:500]) from error


def field_names(expression: str) -> list[str]:
    """Return the names of all fields in an expression, each once."""
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
    """A JMESPath interpreter that raises ConditionError when its budget is spent."""

    def __init__(self) -> None:
        super().__init__()
        self._steps_left = STEP_BUDGET
        self._size_left = SIZE_BUDGET
        self._sizes: dict[int, tuple[Any, int]] = {}
        """The sizes by object id. Each entry keeps its value alive, so that no other value gets the same id."""

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a node, and charge the step and its value to the budget."""
        self._spend(1)
        value = super().visit(node, *args, **kwargs)
        self._spend(len(value) if isinstance(value, str | list | dict) and node["type"] != "current" else 0)
        self._size_left -= self._size_of(value)
        if self._size_left < 0:
            raise ConditionError("it takes too many steps")
        return value

    def _size_of(self, value: Any) -> int:
        """Return the size of a value written out in full. Each value is measured once, after its members."""
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
