"""Conditions on the results of dependencies: JMESPath, evaluated with budgets. Pure.

The language: https://jmespath.org/specification.html. A short expression can double a list with each step. Therefore:

1. The evaluation counts its steps and the values that it produces.
2. A function or comparison that processes a value in full is charged before it runs, so no single step is large.
3. The CPU time of the evaluation is measured, together with the time to parse the results.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathTypeError
from jmespath.functions import Functions, signature
from jmespath.visitor import TreeInterpreter

from vigil_core.domain.cpu_budget import UNLIMITED, CpuBudget, CpuLimitExceeded
from vigil_core.domain.exact_json import JsonValue, json_problems
from vigil_core.domain.number_rule import parse_number
from vigil_core.domain.text_rule import sanitize

_CHAINS = frozenset(
    {"subexpression", "index_expression", "pipe", "projection", "value_projection", "filter_projection", "flatten"}
)
"""The kinds of nodes of which only the first child is evaluated at the root, and the others on its value."""
JOB_MEMBERS = ("result", "status", "job_health")
"""The members of a job in an expression."""
MAX_CHARS = 1_024
STEP_BUDGET = 200_000
"""The limit `expression_steps`: the steps of an evaluation plus the elements that they produce."""
VALUE_BUDGET = 500_000
"""The limit `expression_values`: the values that comparisons and functions process in full."""
CHAR_BUDGET = 8_000_000
"""The limit `expression_chars`: the characters that functions search or produce."""
CPU_CHECK_INTERVAL = 200
"""The number of steps between two measurements of the CPU time, which take about 0.5 µs each."""


class ConditionError(Exception):
    """Raised if a condition is malformed or cannot be evaluated on the results; the message is the reason."""

    def __init__(self, reason: str) -> None:
        # An error of the library quotes values.
        super().__init__(sanitize(reason))


class ExpressionLimitExceeded(ConditionError):
    """Raised if an evaluation exceeds one of its limits; `limit` is the name of the limit."""

    def __init__(self, limit: str, message: str) -> None:
        super().__init__(message)
        self.limit = limit


@dataclass(frozen=True, kw_only=True)
class DependencyResult:
    """A dependency as a condition sees it; `result` is JSON text, or None without a result."""

    name: str
    """The id of the job, or its name in a run."""
    status: str
    health: str | None
    result: str | None
    truncated: bool = False
    """Whether the job has a result that is left out, because it is too large for the reader."""
    job_id: str = ""


def check_expression(condition: str) -> None:
    """Check the syntax of an expression.

    Raises:
        ConditionError: The text is not a JMESPath expression.
    """
    _parse(condition)


def evaluate(condition: str, dependencies: Sequence[DependencyResult], cpu: CpuBudget = UNLIMITED) -> bool:
    """Evaluate a condition to true or false, by JMESPath's rules of truth.

    Raises:
        ConditionError: The condition cannot be evaluated.
    """
    value = _evaluate(condition, dependencies, cpu, _BudgetedInterpreter(cpu))
    return value is True or not (value is False or value is None or value in ("", [], {}))


def evaluate_expression(
    expression: str, dependencies: Sequence[DependencyResult], cpu: CpuBudget = UNLIMITED
) -> JsonValue:
    """Evaluate an expression on jobs and their results.

    Each job is an object under its name (`extract.result.rows`, `"<id>".status`). In addition, the members of all
    results that are objects are at the root. A later result replaces an earlier one, and a job name replaces both.

    Raises:
        ConditionError: The expression cannot be evaluated, or its value is no JSON under the rules for numbers and
            texts, or too large to write out in full.
    """
    interpreter = _BudgetedInterpreter(cpu)
    value = _evaluate(expression, dependencies, cpu, interpreter)
    with _as_condition_errors():
        interpreter.charge_in_full(value)
        for problem in json_problems(value):
            raise ConditionError(f"its value is not valid at {problem.pointer or '/'}: {problem.detail}")
    return value  # type: ignore[no-any-return]


def _evaluate(
    expression: str, dependencies: Sequence[DependencyResult], cpu: CpuBudget, interpreter: _BudgetedInterpreter
) -> Any:
    merged_results: dict[str, Any] = {}
    by_name: dict[str, Any] = {}
    with _as_condition_errors():
        for dependency in dependencies:
            # `json` reads numbers as floats and integers, as JMESPath reads its literals.
            result = None if dependency.result is None else json.loads(dependency.result)
            cpu.check()
            by_name[dependency.name] = {
                "status": dependency.status,
                "job_health": dependency.health,
                "result": result,
            }
            merged_results |= result if isinstance(result, Mapping) else {}
        return interpreter.visit(_parse(expression), merged_results | by_name)


@contextmanager
def _as_condition_errors() -> Iterator[None]:
    """Raise every error of an evaluation as a ConditionError. A value in the message is shortened."""
    try:
        yield
    except ConditionError:
        raise
    except CpuLimitExceeded as error:
        raise ExpressionLimitExceeded(error.limit, str(error)) from error
    except RecursionError as error:
        raise ConditionError("it is nested too deeply") from error
    except Exception as error:
        if isinstance(error, JMESPathTypeError) and isinstance(error.current_value, str | list | dict):
            error.current_value = reprlib.repr(error.current_value)
        raise ConditionError(f"{type(error).__name__}: {error}"[:500]) from error


@dataclass(frozen=True, kw_only=True)
class RootUse:
    """The data that an expression uses at the root."""

    names: Mapping[str, bool]
    """The names that it looks up: of jobs, or of members of results. True if it treats the name as that of a job."""
    is_whole: bool
    """Whether it uses the root in another way, for example by `@` or `keys(@)`. Every name can then matter."""


def root_use(expression: str) -> RootUse:
    """Return the data that an expression uses at the root.

    Raises:
        ConditionError: The text is not a JMESPath expression.
    """
    names: dict[str, bool] = {}
    is_whole = False
    pending = [_parse(expression)]
    while pending:
        node = pending.pop()
        children = node["children"]
        if node["type"] == "field":
            names.setdefault(node["value"], False)
        elif node["type"] in ("current", "identity"):
            is_whole = True
        elif node["type"] in _CHAINS:
            first = children[0]
            if node["type"] == "subexpression" and first["type"] == "field" and children[1]["type"] == "field":
                names[first["value"]] = names.get(first["value"], False) or children[1]["value"] in JOB_MEMBERS
            pending.append(first)
        elif node["type"] != "expref":
            pending += reversed([child for child in children if isinstance(child, dict)])
    return RootUse(names=names, is_whole=is_whole)


def select_jobs(expression: str, names: Sequence[str]) -> Sequence[str]:
    """Return the names of the jobs that an expression needs: those that it names, if it names nothing else."""
    use = root_use(expression)
    if use.is_whole or not use.names.keys() <= set(names):
        return names
    return [name for name in names if name in use.names]


def result_of_one_job(expression: str, names: Container[str]) -> str | None:
    """Return the name of the job whose result is the value of an expression, or None for any other expression."""
    node = _parse(expression)
    if node["type"] != "subexpression" or any(child["type"] != "field" for child in node["children"]):
        return None
    name, *members = [str(child["value"]) for child in node["children"]]
    return name if members == ["result"] and name in names else None


def _parse(condition: str) -> Any:
    try:
        root = jmespath.compile(condition).parsed
        _check_literals(root)
    except ConditionError:
        raise
    except RecursionError as error:
        raise ConditionError("it is nested too deeply") from error
    except Exception as error:
        raise ConditionError(" ".join(str(error).split())[:500]) from error
    return root


def _check_literals(root: Any) -> None:
    """Check the literals of an expression against the rules for numbers and texts.

    Raises:
        ConditionError: A literal breaks a rule.
    """
    pending = [root]
    while pending:
        node = pending.pop()
        if node["type"] == "literal":
            for problem in json_problems(node["value"]):
                raise ConditionError(f"a literal {problem.detail}")
        pending += [child for child in node["children"] if isinstance(child, dict) and "type" in child]


class _Functions(Functions):
    """The functions of JMESPath. `to_number` accepts the numbers of JSON only, as the specification requires."""

    @signature({"types": []})
    def _func_to_number(self, argument: object) -> object:
        if isinstance(argument, int | float) and not isinstance(argument, bool):
            return argument
        if not isinstance(argument, str):
            return None
        try:
            number = parse_number(argument)
            # The library computes with integers and floats.
            value = number if isinstance(number, int) else float(number)
        except ValueError:
            return None
        return value if isinstance(value, int) or math.isfinite(value) else None


class _BudgetedInterpreter(TreeInterpreter):
    """A JMESPath interpreter that raises ExpressionLimitExceeded when one of its budgets is spent.

    A step on a list or an object charges the elements that it adds. A step that processes its operands in full
    (a comparison, a conversion to text, a search) charges their full size first: a list that contains another list
    twice takes little memory, but the step processes it twice.
    """

    def __init__(self, cpu: CpuBudget) -> None:
        super().__init__()
        self._cpu = cpu
        self._steps_left = STEP_BUDGET
        self._values_left = VALUE_BUDGET
        self._chars_left = CHAR_BUDGET
        self._steps_at_check = STEP_BUDGET

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a node, and charge the step."""
        self._spend(1)
        value = super().visit(node, *args, **kwargs)
        if node["type"] in _PRODUCING_NODES and isinstance(value, list | dict):
            self._spend(len(value))
        return value

    def visit_comparator(self, node: Any, value: Any) -> Any:
        """Compare two values, after one of them is charged in full. Values of different lengths differ at once."""
        left, right = (self.visit(child, value) for child in node["children"])
        if isinstance(left, list | dict) and isinstance(right, list | dict) and len(left) == len(right):
            self.charge_in_full(left)
        return super().visit_comparator(node | {"children": [_literal(left), _literal(right)]}, value)

    def visit_flatten(self, node: Any, value: Any) -> Any:
        """Flatten a list, after the elements of the result are charged."""
        base = self.visit(node["children"][0], value)
        if isinstance(base, list):
            self._spend(sum(len(element) if isinstance(element, list) else 1 for element in base))
        return super().visit_flatten(node | {"children": [_literal(base)]}, value)

    def visit_function_expression(self, node: Any, value: Any) -> Any:
        """Call a function, after its work is charged."""
        arguments = [self.visit(child, value) for child in node["children"]]
        if node["value"] not in _CONSTANT_TIME_FUNCTIONS:
            self._spend(sum(len(argument) for argument in arguments if isinstance(argument, list | dict)))
        charge = _FUNCTION_CHARGES.get(node["value"])
        if charge is not None:
            charge(self, arguments)
        return _FUNCTIONS.call_function(node["value"], arguments)

    def charge_in_full(self, value: Any) -> None:
        """Charge all values and characters of a value, each as often as it occurs."""
        pending = [value]
        while pending:
            item = pending.pop()
            self._values_left -= 1
            if isinstance(item, str):
                self.charge_chars(len(item))
            elif isinstance(item, list):
                pending += item[: self._values_left + 1]
            elif isinstance(item, dict):
                self.charge_chars(sum(map(len, item)))
                pending += item.values()
            if self._values_left - len(pending) < 0:
                raise ExpressionLimitExceeded(
                    "expression_values", f"it exceeds the limit expression_values ({VALUE_BUDGET})"
                )
            if self._values_left % _VALUES_PER_CPU_CHECK == 0:
                self._cpu.check()

    def charge_chars(self, chars: int) -> None:
        """Charge the characters of a text."""
        self._chars_left -= chars
        if self._chars_left < 0:
            raise ExpressionLimitExceeded("expression_chars", f"it exceeds the limit expression_chars ({CHAR_BUDGET})")

    def _spend(self, steps: int) -> None:
        self._steps_left -= steps
        if self._steps_left < 0:
            raise ExpressionLimitExceeded("expression_steps", f"it exceeds the limit expression_steps ({STEP_BUDGET})")
        if self._steps_at_check - self._steps_left >= CPU_CHECK_INTERVAL:
            self._steps_at_check = self._steps_left
            self._cpu.check()


def _literal(value: Any) -> Any:
    """Build the node of a value that is evaluated already."""
    return {"type": "literal", "value": value, "children": []}


_FUNCTIONS = _Functions()
_VALUES_PER_CPU_CHECK = 1_000
_PRODUCING_NODES = frozenset(
    {"projection", "filter_projection", "value_projection", "slice", "multi_select_list", "multi_select_dict"}
)
"""The nodes that make a list or an object, apart from those that are charged beforehand."""
_CONSTANT_TIME_FUNCTIONS = frozenset({"length", "not_null", "to_array", "type"})


def _charge_all(interpreter: _BudgetedInterpreter, arguments: Sequence[Any]) -> None:
    for argument in arguments:
        interpreter.charge_in_full(argument)


def _charge_text(interpreter: _BudgetedInterpreter, arguments: Sequence[Any]) -> None:
    interpreter.charge_chars(sum(len(argument) for argument in arguments if isinstance(argument, str)))


def _charge_join(interpreter: _BudgetedInterpreter, arguments: Sequence[Any]) -> None:
    match arguments:
        case [str(separator), list(texts)]:
            text_chars = sum(len(text) for text in texts if isinstance(text, str))
            interpreter.charge_chars(len(separator) * len(texts) + text_chars)


_FUNCTION_CHARGES: Mapping[str, Callable[[_BudgetedInterpreter, Sequence[Any]], None]] = {
    "contains": _charge_all,
    "join": _charge_join,
    "max": _charge_all,
    "min": _charge_all,
    "reverse": _charge_text,
    "sort": _charge_all,
    "to_number": _charge_all,
    "to_string": _charge_all,
}
"""The functions that process their arguments in full."""
