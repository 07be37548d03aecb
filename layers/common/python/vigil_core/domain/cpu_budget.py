"""A budget of CPU time for one piece of user-defined work: an expression, a template, a schema check. Pure.

Counted steps give the same answer on every machine, but they bound the time only if no step is slow. The budget
measures the time itself, so it also stops work whose steps are slower than estimated.
"""

from __future__ import annotations

from collections.abc import Callable


class CpuLimitExceeded(Exception):
    """Raised if work has used its CPU time; `limit` is the name of the limit."""

    def __init__(self, limit: str, seconds: float) -> None:
        super().__init__(f"it exceeds the limit {limit} ({round(seconds * 1000)} ms of CPU time)")
        self.limit = limit


class CpuBudget:
    """The CPU time that one piece of work may use in its thread."""

    def __init__(
        self, cpu_time: Callable[[], float], seconds: float, limit: str, *, shown_s: float | None = None
    ) -> None:
        """Start to measure.

        Args:
            cpu_time: Returns the CPU time of the current thread in seconds, as `time.thread_time` does.
            seconds: The budget.
            limit: The name of the limit, for the error.
            shown_s: The limit that the error names, if earlier work has used a part of it.
        """
        self._cpu_time = cpu_time
        self._seconds = seconds
        self._limit = limit
        self._shown_s = seconds if shown_s is None else shown_s
        self._started_at = cpu_time()

    @property
    def spent_s(self) -> float:
        """The CPU time since the start of the measurement."""
        return self._cpu_time() - self._started_at

    def check(self) -> None:
        """Check that the budget is not spent.

        Raises:
            CpuLimitExceeded: The budget is spent.
        """
        if self.spent_s > self._seconds:
            raise CpuLimitExceeded(self._limit, self._shown_s)


UNLIMITED = CpuBudget(lambda: 0.0, 0.0, "none")
"""A budget that is never spent, for callers without a clock."""
