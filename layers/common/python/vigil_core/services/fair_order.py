"""Run steps of many namespaces in a fair order and in bounded time.

The namespaces take turns, one step each. A namespace that has used its time continues after all others, so the steps
of one namespace delay those of another by no more than its time and one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import Protocol

from vigil_core.services.context import UsesClock, UsesThreads
from vigil_core.services.parallel import POOL_THREADS

CHUNK_STEPS = 2 * POOL_THREADS
"""The number of steps between two looks at the clock."""


class FairOrderContext(UsesClock, UsesThreads, Protocol):
    """The clock and the threads."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A piece of work for one namespace. `run` returns the number of rows that it processed."""

    namespace: str
    label: str
    run: Callable[[], int]


@dataclass(kw_only=True)
class FairRun:
    """The steps of one sweep: the time that each namespace has used, the errors, and the number of processed rows.

    Attributes:
        namespace_time: The time after which a namespace continues last. Steps that run in parallel add up.
        errors: The errors of the failed steps, by label.
        processed: The number of rows that the steps have processed.
    """

    namespace_time: timedelta
    errors: list[tuple[str, Exception]] = field(default_factory=list)
    processed: int = 0
    _used: dict[str, timedelta] = field(default_factory=dict)

    def run(self, ctx: FairOrderContext, steps: Iterable[Step], *, until: datetime) -> None:
        """Run steps in a fair order until a time. A step that fails does not stop the others."""
        remaining = in_turn(steps)
        while remaining and ctx.now() < until:
            chunk, remaining = self._next_chunk(remaining)
            self.processed += sum(ctx.in_parallel(lambda step: self._run_step(ctx, step), chunk))

    def _next_chunk(self, steps: Sequence[Step]) -> tuple[list[Step], list[Step]]:
        """Split off the first steps of the namespaces that have time left; of all namespaces if none has."""
        first: list[Step] = []
        last: list[Step] = []
        for step in steps:
            has_time = self._used.get(step.namespace, timedelta()) < self.namespace_time
            (first if has_time else last).append(step)
        if not first:
            return last[:CHUNK_STEPS], last[CHUNK_STEPS:]
        return first[:CHUNK_STEPS], first[CHUNK_STEPS:] + last

    def _run_step(self, ctx: FairOrderContext, step: Step) -> int:
        started_at = ctx.clock()
        try:
            return step.run()
        except Exception as error:
            self.errors.append((step.label, error))
            return 0
        finally:
            self._used[step.namespace] = self._used.get(step.namespace, timedelta()) + (ctx.clock() - started_at)


def in_turn(steps: Iterable[Step]) -> list[Step]:
    """Sort steps so that the namespaces take turns, in the order of their first steps."""
    steps_by_namespace: dict[str, list[Step]] = {}
    for step in steps:
        steps_by_namespace.setdefault(step.namespace, []).append(step)
    return [step for turn in zip_longest(*steps_by_namespace.values()) for step in turn if step is not None]
