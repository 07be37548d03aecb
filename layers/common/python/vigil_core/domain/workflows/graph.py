"""The graph of a workflow, frozen when its run is created. Pure.

Jobs are numbered in the order of their definition; a number is a job's place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from vigil_core.domain.diagrams.clustering import longest_path_layers
from vigil_core.domain.jobs.dependencies import TriggerRule

BLOCK_SIZE = 64
"""How many jobs share one row that says how they stand."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A job of a workflow, as far as the graph cares. `delayed`: it has a time of its own, before which it does not
    start."""

    name: str
    job_type: str
    depends_on: tuple[int, ...] = ()
    trigger_rule: TriggerRule = "all_success"
    cancel_losers: bool = False
    condition: str | None = None
    has_start_delay: bool = False

    @property
    def is_root(self) -> bool:
        """Whether it waits for no other job."""
        return not self.depends_on or self.trigger_rule == "always"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The jobs of a workflow, in the order of the definition."""

    nodes: Sequence[Node]

    @cached_property
    def dependents(self) -> Sequence[Sequence[int]]:
        """For each job those that depend on it."""
        dependents: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            for dependency in node.depends_on:
                dependents[dependency].append(index)
        return dependents

    @cached_property
    def depth(self) -> Sequence[int]:
        """For each job how many come before it on the longest way to it."""
        return longest_path_layers([node.depends_on for node in self.nodes])

    @cached_property
    def index_of(self) -> Mapping[str, int]:
        """The place of each name."""
        return {node.name: index for index, node in enumerate(self.nodes)}

    @cached_property
    def dependencies_by_block(self) -> Sequence[Mapping[int, Sequence[int]]]:
        """For each job its dependencies, by the chunk in which they are."""
        return [group_by_block(node.depends_on) for node in self.nodes]

    @property
    def roots(self) -> list[int]:
        """Those that wait for no other job."""
        return [index for index, node in enumerate(self.nodes) if node.is_root]

    @property
    def edge_count(self) -> int:
        """How many dependencies there are."""
        return sum(len(node.depends_on) for node in self.nodes)

    def dependency_names(self, index: int) -> list[str]:
        """The names of a job's dependencies, in their order."""
        return [self.nodes[dependency].name for dependency in self.nodes[index].depends_on]

    def successors(self, indexes: Iterable[int]) -> list[int]:
        """Those that depend on these places."""
        return [after for index in indexes for after in self.dependents[index]]

    def race_joins(self, index: int) -> list[int]:
        """The joins for which a job races others."""
        return [after for after in self.dependents[index] if self.nodes[after].cancel_losers]

    def downstream(self, indexes: Iterable[int], *, traverses: Callable[[int], bool] = lambda _: True) -> set[int]:
        """These places and all that come after them, by ways through places that pass."""
        reached = set(indexes)
        pending = deque(reached)
        while pending:
            for successor in self.dependents[pending.popleft()]:
                if successor not in reached and traverses(successor):
                    reached.add(successor)
                    pending.append(successor)
        return reached


def block_of(index: int) -> int:
    """The chunk in which a place is."""
    return index // BLOCK_SIZE


def block_numbers(total: int) -> range:
    """The chunks of so many jobs."""
    return range((total + BLOCK_SIZE - 1) // BLOCK_SIZE)


def indexes_in_block(block: int, total: int) -> range:
    """The places in a chunk."""
    return range(block * BLOCK_SIZE, min((block + 1) * BLOCK_SIZE, total))


def group_by_block(indexes: Iterable[int]) -> Mapping[int, Sequence[int]]:
    """Places by the chunk in which they are."""
    indexes_by_block: dict[int, list[int]] = {}
    for index in indexes:
        indexes_by_block.setdefault(block_of(index), []).append(index)
    return indexes_by_block
