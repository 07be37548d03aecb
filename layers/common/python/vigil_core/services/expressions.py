"""The CPU time that conditions may use, and where expensive ones are evaluated.

A reaction to the stream serves all namespaces, so it evaluates only a little: the conditions of one namespace use at
most `INLINE_CPU_S` of a batch. After that, the caller hands its work to `fan_out`, whose lanes keep the work of one
namespace apart from that of the others. A condition that was interrupted starts again in `fan_out`, with its full
limit. So each condition has one outcome, wherever it is evaluated.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from vigil_core.domain.cpu_budget import CpuBudget
from vigil_core.domain.jobs.conditions import ExpressionLimitExceeded
from vigil_core.services.cpu_limits import expression_budget

INLINE_CPU_S = 0.05
"""The CPU time of all conditions of one namespace in a batch of stream records, with the parsing of the results."""
_INLINE_LIMIT = "inline_cpu_ms"


class ExpressionsDeferred(Exception):
    """Signal that a condition must be evaluated by `fan_out`: its namespace has used its share of the batch."""

    transient = True


class Expressions(Protocol):
    """The CPU budgets of conditions."""

    def require_share(self, namespace: str) -> None:
        """Check before the results of a condition are read that its namespace has CPU time left.

        Raises:
            ExpressionsDeferred: The condition must be evaluated by `fan_out`.
        """

    def measure(self, namespace: str) -> AbstractContextManager[CpuBudget]:
        """Start the budget of one condition of a namespace.

        Raises:
            ExpressionsDeferred: On entry or exit, if the condition must be evaluated by `fan_out`.
        """


class UnsharedExpressions:
    """Budgets without a share per namespace, for functions that work for one namespace at a time."""

    def require_share(self, _: str) -> None:
        """Do nothing: every condition has its full budget."""

    @contextmanager
    def measure(self, _: str) -> Iterator[CpuBudget]:
        """Start the full budget of one condition."""
        yield expression_budget()


class InlineExpressions:
    """Budgets of one batch of stream records. Several threads may evaluate conditions at the same time."""

    def __init__(self, cpu_time: Callable[[], float] = time.thread_time) -> None:
        self._cpu_time = cpu_time
        self._lock = threading.Lock()
        self._spent_s: dict[str, float] = {}

    def require_share(self, namespace: str) -> None:
        """Check that the namespace has CPU time left in this batch.

        Raises:
            ExpressionsDeferred: It has none.
        """
        if self._left_s(namespace) <= 0:
            raise ExpressionsDeferred

    @contextmanager
    def measure(self, namespace: str) -> Iterator[CpuBudget]:
        """Start a budget of what the namespace has left in this batch.

        Raises:
            ExpressionsDeferred: The condition needs more.
        """
        budget = CpuBudget(self._cpu_time, self._left_s(namespace), _INLINE_LIMIT)
        try:
            yield budget
        except ExpressionLimitExceeded as error:
            if error.limit == _INLINE_LIMIT:
                raise ExpressionsDeferred from error
            raise
        finally:
            with self._lock:
                self._spent_s[namespace] = self._spent_s.get(namespace, 0.0) + budget.spent_s

    def _left_s(self, namespace: str) -> float:
        return INLINE_CPU_S - self._spent_s.get(namespace, 0.0)
