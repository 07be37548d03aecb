"""Reduce a large graph to a readable size: similar jobs share one box of the diagram. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from typing import Literal, TypeAlias

from vigil_core.domain.workflows.graph import invert_edges, longest_path_layers

ClusterKind: TypeAlias = Literal["job", "alike", "sequence", "many"]

MAX_LAYERS = 24
"""The number of layers at which sequences are shortened, even if the diagram has few boxes."""
MIN_ROUNDS = 8
MIN_ROUND_PROGRESS = 0.1
"""The share of the clusters that each further round must merge. A ladder gives each round only its last two jobs."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Jobs that share a box, by their indexes.

    `alike`: jobs with the same neighbours. `sequence`: jobs that run one after the other. `many`: any other group.
    """

    members: tuple[int, ...]
    kind: ClusterKind
    depends_on: tuple[int, ...]
    """Indexes of clusters."""


def cluster_nodes(depends_on: Sequence[Sequence[int]], keys: Sequence[Hashable], *, limit: int) -> list[Cluster]:
    """Group the nodes of an acyclic graph into at most `limit` clusters.

    A small graph gets one cluster for each node. Otherwise nodes with the same neighbours are merged first, then
    sequences, then the nodes of a layer, and finally the nodes of several layers.

    The time is linear in the size of the graph: the rounds of merges end when they merge too few nodes.

    Args:
        depends_on: For each node the indexes of its dependencies.
        keys: For each node a key. A sequence keeps its two ends and is split where the key changes, while the limit
            allows it.
        limit: The largest number of clusters.
    """
    clusters = [
        Cluster(members=(n,), kind="job", depends_on=tuple(dict.fromkeys(dependencies)))
        for n, dependencies in enumerate(depends_on)
    ]

    def fits() -> bool:
        return len(clusters) <= limit

    if fits() and max(longest_path_layers([cluster.depends_on for cluster in clusters]), default=0) < MAX_LAYERS:
        return clusters
    for round_number in count():
        previous_count = len(clusters)
        if fits():
            break
        clusters = _merge(clusters, _same_neighbours(clusters), "alike", limit)
        if not fits():
            clusters = _merge(clusters, _sequence_groups(clusters, keys), "sequence", limit)
        removed_count = previous_count - len(clusters)
        if not removed_count or (round_number >= MIN_ROUNDS and removed_count < previous_count * MIN_ROUND_PROGRESS):
            break
    if max(longest_path_layers([cluster.depends_on for cluster in clusters]), default=0) >= MAX_LAYERS:
        clusters = _merge(clusters, _sequence_groups(clusters, keys), "sequence", 0)
    if not fits():
        clusters = _merge(clusters, _sequence_groups(clusters, [None] * len(keys)), "sequence", limit)
    if not fits():
        clusters = _merge(clusters, _by_layer(clusters, lambda layer: layer), "many", limit)
    if not fits():
        width = -(-len(clusters) // limit)
        clusters = _merge(clusters, _by_layer(clusters, lambda layer: layer // width), "many", 0)
    return clusters


def _same_neighbours(clusters: Sequence[Cluster]) -> list[list[int]]:
    """Group the clusters that have the same dependencies and the same successors."""
    successors = invert_edges([cluster.depends_on for cluster in clusters])
    groups: dict[Hashable, list[int]] = {}
    for n, cluster in enumerate(clusters):
        groups.setdefault((frozenset(cluster.depends_on), frozenset(successors[n])), []).append(n)
    return list(groups.values())


def _sequence_groups(clusters: Sequence[Cluster], keys: Sequence[Hashable]) -> list[list[int]]:
    """Group the inner clusters of sequences.

    In a sequence each cluster is the only dependency of its only successor.
    """
    successors = invert_edges([cluster.depends_on for cluster in clusters])

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
    """Group the clusters of the same layer, or of the same band of layers."""
    groups: dict[int, list[int]] = {}
    for n, layer in enumerate(longest_path_layers([cluster.depends_on for cluster in clusters])):
        groups.setdefault(layer_band(layer), []).append(n)
    return list(groups.values())


def _merge(
    clusters: Sequence[Cluster], groups: Iterable[Sequence[int]], kind: ClusterKind, limit: int
) -> list[Cluster]:
    """Merge groups of clusters, the largest first, until at most `limit` clusters remain."""
    remaining = len(clusters)
    group_of: list[Sequence[int]] = [(n,) for n in range(len(clusters))]
    """For each cluster the group with which it is merged, itself included."""
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
