"""The graph of a workflow, frozen when its run is created. Pure.

Jobs are numbered in the order of their definition; a number is a job's place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from vigil_core.domain.diagrams.clustering import columns
from vigil_core.domain.jobs.dependencies import TriggerRule

CHUNK_JOBS = 64
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
    delayed: bool = False

    @property
    def begins(self) -> bool:
        """Whether it waits for no other job."""
        return not self.depends_on or self.trigger_rule == "always"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The jobs of a workflow, in the order of the definition."""

    nodes: Sequence[Node]

    @cached_property
    def dependents(self) -> Sequence[Sequence[int]]:
        """For each job those that depend on it."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for place, node in enumerate(self.nodes):
            for dependency in node.depends_on:
                found[dependency].append(place)
        return found

    @cached_property
    def depth(self) -> Sequence[int]:
        """For each job how many come before it on the longest way to it."""
        return columns([node.depends_on for node in self.nodes])

    @cached_property
    def place_of(self) -> Mapping[str, int]:
        """The place of each name."""
        return {node.name: place for place, node in enumerate(self.nodes)}

    @cached_property
    def dependencies_by_chunk(self) -> Sequence[Mapping[int, Sequence[int]]]:
        """For each job its dependencies, by the chunk in which they are."""
        return [by_chunk(node.depends_on) for node in self.nodes]

    @property
    def beginnings(self) -> list[int]:
        """Those that wait for no other job."""
        return [place for place, node in enumerate(self.nodes) if node.begins]

    @property
    def edges(self) -> int:
        """How many dependencies there are."""
        return sum(len(node.depends_on) for node in self.nodes)

    def names_before(self, place: int) -> list[str]:
        """The names of a job's dependencies, in their order."""
        return [self.nodes[dependency].name for dependency in self.nodes[place].depends_on]

    def after(self, places: Iterable[int]) -> list[int]:
        """Those that depend on these places."""
        return [after for place in places for after in self.dependents[place]]

    def races(self, place: int) -> list[int]:
        """The joins for which a job races others."""
        return [after for after in self.dependents[place] if self.nodes[after].cancel_losers]

    def downstream(self, places: Iterable[int], *, passes: Callable[[int], bool] = lambda _: True) -> set[int]:
        """These places and all that come after them, by ways through places that pass."""
        found = set(places)
        left = deque(found)
        while left:
            for after in self.dependents[left.popleft()]:
                if after not in found and passes(after):
                    found.add(after)
                    left.append(after)
        return found


def chunk_of(place: int) -> int:
    """The chunk in which a place is."""
    return place // CHUNK_JOBS


def chunks(total: int) -> range:
    """The chunks of so many jobs."""
    return range((total + CHUNK_JOBS - 1) // CHUNK_JOBS)


def places_of(chunk: int, total: int) -> range:
    """The places in a chunk."""
    return range(chunk * CHUNK_JOBS, min((chunk + 1) * CHUNK_JOBS, total))


def by_chunk(places: Iterable[int]) -> Mapping[int, Sequence[int]]:
    """Places by the chunk in which they are."""
    found: dict[int, list[int]] = {}
    for place in places:
        found.setdefault(chunk_of(place), []).append(place)
    return found
