"""The CPU time of user-defined work, measured in the thread that does the work.

Wall time depends on the load of the machine, and signals reach only the main thread. The CPU time of a thread depends
on neither, so the same work has the same answer on a busy machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vigil_core.domain.cpu_budget import CpuBudget

SCHEMA_CPU_S = 0.5
"""The limit `payload_schema_cpu_ms`: the CPU time of the schema checks of a request, or of a scheduled job or run."""
SCHEMA_CPU_PER_JOB_S = 0.0002
"""What each job of a request adds to the limit: about twice the check of a flat object with ten members."""
EXPRESSION_CPU_S = 0.5
"""The limit `expression_cpu_ms`: the CPU time of one condition or output, with the parsing of the results."""
TEMPLATE_CPU_S = 0.5
"""The limit `template_cpu_ms`: the CPU time of the rendering of one request."""


def expression_budget() -> CpuBudget:
    """Start the budget of one condition or output."""
    return CpuBudget(time.thread_time, EXPRESSION_CPU_S, "expression_cpu_ms")


def template_budget() -> CpuBudget:
    """Start the budget of one rendering."""
    return CpuBudget(time.thread_time, TEMPLATE_CPU_S, "template_cpu_ms")


class SchemaCpu:
    """The CPU time of the schema checks of one request. Several threads may check at the same time."""

    def __init__(self, jobs: int = 1) -> None:
        self._total_s = self._left_s = SCHEMA_CPU_S + SCHEMA_CPU_PER_JOB_S * (jobs - 1)
        self.validators: dict[int, Any] = {}
        """The validators by the id of their schema object, which outlives the request's checks."""

    @contextmanager
    def measure(self) -> Iterator[CpuBudget]:
        """Measure one check, and subtract its CPU time from what the next ones have."""
        budget = CpuBudget(time.thread_time, self._left_s, "payload_schema_cpu_ms", shown_s=self._total_s)
        try:
            yield budget
        finally:
            self._left_s -= budget.spent_s
