"""A large graph made small enough to look at: jobs that play the same part share a box. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeAlias

from vigil_core.domain.workflows.graph import invert_edges, longest_path_layers

ClusterKind: TypeAlias = Literal["job", "alike", "sequence", "many"]

MAX_LAYERS = 24
"""Of a picture before sequences in it are shortened, however few its boxes."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """One or more jobs, by their places: `alike` have the same neighbours, a `sequence` runs one by one."""

    members: tuple[int, ...]
    kind: ClusterKind
    depends_on: tuple[int, ...]
    """Places of boxes."""


def cluster_nodes(depends_on: Sequence[Sequence[int]], keys: Sequence[Hashable], *, limit: int) -> list[Cluster]:
    """The boxes of a graph without cycles: one a job if they are few enough, else as many as there may be, or fewer.

    Of a sequence the ends stay, and it is cut where the key changes, as long as there is room.
    """
    clusters = [
        Cluster(members=(n,), kind="job", depends_on=tuple(dict.fromkeys(each))) for n, each in enumerate(depends_on)
    ]

    def fits() -> bool:
        return len(clusters) <= limit

    if fits() and max(longest_path_layers([box.depends_on for box in clusters]), default=0) < MAX_LAYERS:
        return clusters
    previous_count = 0
    while previous_count != len(clusters) and not fits():
        previous_count = len(clusters)
        clusters = _merge(clusters, _same_neighbours(clusters), "alike", limit)
        if not fits():
            clusters = _merge(clusters, _sequence_groups(clusters, keys), "sequence", limit)
    if max(longest_path_layers([box.depends_on for box in clusters]), default=0) >= MAX_LAYERS:
        clusters = _merge(clusters, _sequence_groups(clusters, keys), "sequence", 0)
    if not fits():
        clusters = _merge(clusters, _sequence_groups(clusters, [None] * len(keys)), "sequence", limit)
    if not fits():
        clusters = _merge(clusters, _by_layer(clusters, lambda column: column), "many", limit)
    if not fits():
        width = -(-len(clusters) // limit)
        clusters = _merge(clusters, _by_layer(clusters, lambda column: column // width), "many", 0)
    return clusters


def _same_neighbours(clusters: Sequence[Cluster]) -> list[list[int]]:
    """Boxes that depend on the same ones, and on which the same ones depend."""
    successors = invert_edges([box.depends_on for box in clusters])
    groups: dict[Hashable, list[int]] = {}
    for n, box in enumerate(clusters):
        groups.setdefault((frozenset(box.depends_on), frozenset(successors[n])), []).append(n)
    return list(groups.values())


def _sequence_groups(clusters: Sequence[Cluster], keys: Sequence[Hashable]) -> list[list[int]]:
    """Boxes of which each is the only one before the next, and the next the only one after it; but for the two ends."""
    successors = invert_edges([box.depends_on for box in clusters])

    def follows(n: int) -> bool:
        return len(clusters[n].depends_on) == 1 and len(successors[clusters[n].depends_on[0]]) == 1

    sequences = []
    for n in range(len(clusters)):
        if follows(n):
            continue
        sequence = [n]
        while len(successors[sequence[-1]]) == 1 and follows(successors[sequence[-1]][0]):
            sequence.append(successors[sequence[-1]][0])
        inner = (
            sequence[1:-1]
            if len(clusters[sequence[0]].members) == len(clusters[sequence[-1]].members) == 1
            else sequence
        )
        same_key_groups = groupby(inner, key=lambda n: {keys[member] for member in clusters[n].members})
        sequences += [list(part) for _, part in same_key_groups]
    return sequences


def _by_layer(clusters: Sequence[Cluster], layer_band: Callable[[int], int]) -> list[list[int]]:
    """Boxes of the same column, or of columns side by side."""
    groups: dict[int, list[int]] = {}
    for n, layer in enumerate(longest_path_layers([box.depends_on for box in clusters])):
        groups.setdefault(layer_band(layer), []).append(n)
    return list(groups.values())


def _merge(
    clusters: Sequence[Cluster], groups: Iterable[Sequence[int]], kind: ClusterKind, limit: int
) -> list[Cluster]:
    """The graph with these groups as one box each, the largest first, and no more of them than it takes."""
    remaining = len(clusters)
    group_of: list[Sequence[int]] = [(n,) for n in range(len(clusters))]
    """The boxes with which each makes one, itself included."""
    for group in sorted((group for group in groups if len(group) > 1), key=len, reverse=True):
        if remaining <= limit:
            break
        remaining -= len(group) - 1
        for n in group:
            group_of[n] = group
    merged_groups = [part for n, part in enumerate(group_of) if n == part[0]]
    merged_index = {n: index for index, part in enumerate(merged_groups) for n in part}
    return [
        Cluster(
            members=tuple(member for n in part for member in clusters[n].members),
            kind=_merged_kind([clusters[n].kind for n in part], kind),
            depends_on=tuple(
                dict.fromkeys(
                    merged_index[other]
                    for n in part
                    for other in clusters[n].depends_on
                    if merged_index[other] != index
                )
            ),
        )
        for index, part in enumerate(merged_groups)
    ]


def _merged_kind(kinds: Sequence[ClusterKind], merged_as: ClusterKind) -> ClusterKind:
    if len(kinds) == 1:
        return kinds[0]
    return merged_as if set(kinds) <= {"job", merged_as} else "many"
