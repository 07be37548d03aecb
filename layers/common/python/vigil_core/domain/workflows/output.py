"""The output of a run as JSON text. Pure.

The text is final: it is JSON that every reader can parse. No value that a client, a worker or a target chose can make
the end of a run fail, because each of these errors is an `OutputInvalid`, with which the run ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from vigil_core.domain.cpu_budget import UNLIMITED, CpuBudget
from vigil_core.domain.exact_json import dumps, loads
from vigil_core.domain.jobs.conditions import DependencyResult, evaluate_expression
from vigil_core.domain.text_rule import sanitize

OUTPUT_INVALID = "OUTPUT_INVALID"
MAX_OUTPUT_BYTES = 6_000_000
MAX_REASON_CHARS = 500

T = TypeVar("T")


class OutputInvalid(Exception):
    """Signal that a run has no valid output. The message is the reason, and can be stored as it is."""

    def __init__(self, reason: str) -> None:
        super().__init__(sanitize(reason)[:MAX_REASON_CHARS])


def evaluate_output(expression: str, results: Sequence[DependencyResult], cpu: CpuBudget = UNLIMITED) -> str:
    """Evaluate an output expression to JSON text.

    Raises:
        OutputInvalid: The expression cannot be evaluated, or its value is not JSON or too large.
    """
    value = _require_valid("cannot be evaluated", lambda: evaluate_expression(expression, results, cpu))
    text = _require_valid("is not JSON", lambda: dumps(value))
    size = _require_valid("is not JSON", lambda: len(text.encode()))
    if size > MAX_OUTPUT_BYTES:
        raise OutputInvalid(f"The output is too large: it has {size} bytes, and at most {MAX_OUTPUT_BYTES} are allowed")
    _require_valid("is not JSON", lambda: loads(text))
    return text


def _require_valid(problem: str, step: Callable[[], T]) -> T:
    """Run a step, and turn every error of it into an `OutputInvalid`."""
    try:
        return step()
    except Exception as error:
        raise OutputInvalid(f"The output {problem}: {_describe(error)}") from error


def _describe(error: Exception) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:  # The `__str__` of an exception can fail, too.
        return type(error).__name__
