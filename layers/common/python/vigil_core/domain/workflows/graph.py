"""The graph of a workflow, stored when its run is created. Pure.

Jobs are numbered in the order of their definition. The number of a job is its index.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from vigil_core.domain.jobs.trigger_rules import TriggerRule

BLOCK_SIZE = 64
"""The number of jobs whose state records share one row."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A job of a workflow with the attributes that the graph needs."""

    name: str
    job_type: str
    depends_on: tuple[int, ...] = ()
    trigger_rule: TriggerRule = "all_success"
    cancel_losers: bool = False
    condition: str | None = None
    has_start_delay: bool = False
    """Whether the job has a start time of its own and does not start before it."""

    @property
    def is_root(self) -> bool:
        """Whether the job waits for no other job."""
        return not self.depends_on or self.trigger_rule == "always"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The jobs of a workflow, in the order of the definition."""

    nodes: Sequence[Node]

    @cached_property
    def dependents(self) -> Sequence[Sequence[int]]:
        """The indexes of the jobs that depend on each job."""
        return invert_edges([node.depends_on for node in self.nodes])

    @cached_property
    def depth(self) -> Sequence[int]:
        """The number of jobs before each job on the longest path to it."""
        return longest_path_layers([node.depends_on for node in self.nodes])

    @cached_property
    def index_of(self) -> Mapping[str, int]:
        """The index of each job name."""
        return {node.name: index for index, node in enumerate(self.nodes)}

    @cached_property
    def dependencies_by_block(self) -> Sequence[Mapping[int, Sequence[int]]]:
        """The dependencies of each job, grouped by their block."""
        return [group_by_block(node.depends_on) for node in self.nodes]

    @property
    def roots(self) -> list[int]:
        """The indexes of the jobs that wait for no other job."""
        return [index for index, node in enumerate(self.nodes) if node.is_root]

    @property
    def edge_count(self) -> int:
        """The number of dependencies of all jobs."""
        return sum(len(node.depends_on) for node in self.nodes)

    def dependency_names(self, index: int) -> list[str]:
        """Return the names of a job's dependencies, in their order."""
        return [self.nodes[dependency].name for dependency in self.nodes[index].depends_on]

    def successors(self, indexes: Iterable[int]) -> list[int]:
        """Return the jobs that depend on these jobs, one entry for each dependency."""
        return [after for index in indexes for after in self.dependents[index]]

    def race_joins(self, index: int) -> list[int]:
        """Return the joins in whose race a job takes part."""
        return [after for after in self.dependents[index] if self.nodes[after].cancel_losers]

    def downstream(self, indexes: Iterable[int], *, traverses: Callable[[int], bool] = lambda _: True) -> set[int]:
        """Return these jobs and all jobs that are reachable from them.

        Args:
            indexes: The jobs at which the search starts.
            traverses: Whether the search enters a job. A path ends before a job for which this is False.
        """
        reached = set(indexes)
        pending = deque(reached)
        while pending:
            for successor in self.dependents[pending.popleft()]:
                if successor not in reached and traverses(successor):
                    reached.add(successor)
                    pending.append(successor)
        return reached


def longest_path_layers(depends_on: Sequence[Sequence[int]]) -> list[int]:
    """Return for each node the length of the longest path to it.

    A node without dependencies is in layer 0. The nodes are processed in topological order (Kahn's algorithm).

    Args:
        depends_on: For each node the indexes of the nodes on which it depends, without cycles.
    """
    successors = invert_edges(depends_on)
    unplaced_dependencies = [len(dependencies) for dependencies in depends_on]
    layers = [0] * len(depends_on)
    ready = [node for node, count in enumerate(unplaced_dependencies) if not count]
    for node in ready:
        for successor in successors[node]:
            layers[successor] = max(layers[successor], layers[node] + 1)
            unplaced_dependencies[successor] -= 1
            if not unplaced_dependencies[successor]:
                ready.append(successor)
    return layers


def invert_edges(depends_on: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return for each node the nodes that depend on it."""
    successors: list[list[int]] = [[] for _ in depends_on]
    for node, dependencies in enumerate(depends_on):
        for dependency in dependencies:
            successors[dependency].append(node)
    return successors


def block_of(index: int) -> int:
    """Return the number of the block that contains a job."""
    return index // BLOCK_SIZE


def block_numbers(total: int) -> range:
    """Return the numbers of the blocks of a run with this number of jobs."""
    return range((total + BLOCK_SIZE - 1) // BLOCK_SIZE)


def indexes_in_block(block: int, total: int) -> range:
    """Return the indexes of the jobs in a block."""
    return range(block * BLOCK_SIZE, min((block + 1) * BLOCK_SIZE, total))


def group_by_block(indexes: Iterable[int]) -> Mapping[int, Sequence[int]]:
    """Group job indexes by the block that contains them."""
    indexes_by_block: dict[int, list[int]] = {}
    for index in indexes:
        indexes_by_block.setdefault(block_of(index), []).append(index)
    return indexes_by_block
