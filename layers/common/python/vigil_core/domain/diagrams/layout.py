"""Compute the positions of a diagram's boxes and edges, in layers from left to right. Pure.

Sugiyama's method: layers by longest path, order within a layer by barycentres, coordinates by least squares.
https://en.wikipedia.org/wiki/Layered_graph_drawing
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vigil_core.domain.workflows.graph import invert_edges, longest_path_layers

BOX_GAP = 18.0
LINE_GAP = 11.0
MIN_LAYER_GAP = 56.0
MAX_LAYER_GAP = 150.0
MAX_SWEEPS = 6
PASS_THROUGH_WEIGHT = 6.0
"""The weight of an edge segment that passes through a layer. A higher weight keeps long edges straighter."""


@dataclass(frozen=True, kw_only=True)
class LayoutNode:
    """A point that an edge passes through: a box, or a gap in a layer. `y` is its vertical centre."""

    x: float
    y: float
    width: float
    height: float
    is_box: bool


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The layout nodes, boxes first in their order; and for each box the pairs of nodes that its edges connect."""

    nodes: Sequence[LayoutNode]
    edges: Sequence[Sequence[tuple[int, int]]]
    width: float
    height: float


def compute_layout(depends_on: Sequence[Sequence[int]], widths: Sequence[float], heights: Sequence[float]) -> Layout:
    """Compute the layout for boxes of these sizes.

    All edges that leave a box share one path for as long as they cross the same layers.
    """
    layer_of = longest_path_layers(depends_on)
    successors = invert_edges(depends_on)
    edges: list[list[tuple[int, int]]] = []
    for box, others in enumerate(successors):
        path = {layer_of[box]: box}
        for number in range(layer_of[box] + 1, max((layer_of[other] for other in others), default=0)):
            path[number] = len(layer_of)
            layer_of.append(number)
        hops = [(path[number], path[number + 1]) for number in path if number + 1 in path]
        edges.append(hops + [(path[layer_of[other] - 1], other) for other in others])
    predecessors: list[list[int]] = [[] for _ in layer_of]
    node_successors: list[list[int]] = [[] for _ in layer_of]
    for hops in edges:
        for one, other in hops:
            node_successors[one].append(other)
            predecessors[other].append(one)
    layers: list[list[int]] = [[] for _ in range(max(layer_of, default=-1) + 1)]
    for node, layer_number in enumerate(layer_of):
        layers[layer_number].append(node)
    layers = _reduce_crossings(layers, predecessors, node_successors)

    heights_of = [*heights, *[0.0] * (len(layer_of) - len(heights))]
    ys = _assign_y_coordinates(layers, predecessors, node_successors, heights_of, len(heights))
    nodes: dict[int, LayoutNode] = {}
    x = 0.0
    for layer in layers:
        layer_width = max((widths[node] for node in layer if node < len(widths)), default=0.0)
        for node in layer:
            box = node < len(widths)
            nodes[node] = LayoutNode(x=x, y=ys[node], width=layer_width, height=heights_of[node], is_box=box)
        crossing = sum(len(node_successors[node]) for node in layer)
        max_rise = max((abs(ys[node] - ys[other]) for node in layer for other in node_successors[node]), default=0.0)
        gap = min(MIN_LAYER_GAP + crossing * 1.5 + max_rise / 12, MAX_LAYER_GAP)
        x += layer_width + (0.0 if layer is layers[-1] else gap)
    height = max((node.y + node.height / 2 for node in nodes.values()), default=0.0)
    return Layout(nodes=[nodes[n] for n in range(len(layer_of))], edges=edges, width=x, height=height)


def _reduce_crossings(
    layers: list[list[int]], predecessors: Sequence[Sequence[int]], successors: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Order each layer to reduce edge crossings, and return the best order found.

    Several sweeps in both directions move each node to the mean position of its neighbours.
    """
    position = [0] * len(predecessors)

    def record_positions(order: Sequence[int]) -> None:
        for index, node in enumerate(order):
            position[node] = index

    def sweep(orders: Sequence[list[int]], neighbours: Sequence[Sequence[int]]) -> None:
        for order in orders:
            means = {
                node: sum(position[other] for other in neighbours[node]) / len(neighbours[node])
                if neighbours[node]
                else float(position[node])
                for node in order
            }
            order.sort(key=means.__getitem__)
            record_positions(order)

    for order in layers:
        record_positions(order)
    best, fewest = [list(order) for order in layers], _count_crossings(layers, successors, position)
    for sweep_number in range(2 * MAX_SWEEPS):
        if not fewest:
            break
        if sweep_number % 2:
            sweep(layers[-2::-1], successors)
        else:
            sweep(layers[1:], predecessors)
        count = _count_crossings(layers, successors, position)
        if count < fewest:
            best, fewest = [list(order) for order in layers], count
    return best


def _count_crossings(
    layers: Sequence[Sequence[int]], successors: Sequence[Sequence[int]], position: Sequence[int]
) -> int:
    count = 0
    for order in layers:
        ends: list[int] = []
        for node in order:
            reached = sorted(position[other] for other in successors[node])
            count += sum(len(ends) - bisect_right(ends, end) for end in reached)
            for end in reached:
                insort(ends, end)
    return count


def _assign_y_coordinates(
    layers: Sequence[Sequence[int]],
    predecessors: Sequence[Sequence[int]],
    successors: Sequence[Sequence[int]],
    heights: Sequence[float],
    box_count: int,
) -> list[float]:
    """Compute the vertical centre of each node. Edges become as straight as the order within the layers allows."""
    ys = [0.0] * len(heights)

    def min_distance(one: int, other: int) -> float:
        room = BOX_GAP if one < box_count and other < box_count else LINE_GAP
        return (heights[one] + heights[other]) / 2 + room

    def place_layer(order: Sequence[int], target_of: Callable[[int], tuple[float, float]]) -> None:
        offsets = [0.0]
        for one, other in pairwise(order):
            offsets.append(offsets[-1] + min_distance(one, other))
        targets = [target_of(node) for node in order]
        coordinates = _isotonic_regression(
            [(y - offset, weight) for (y, weight), offset in zip(targets, offsets, strict=True)]
        )
        for node, coordinate, offset in zip(order, coordinates, offsets, strict=True):
            ys[node] = coordinate + offset

    def barycentre_of(*sides: Sequence[Sequence[int]]) -> Callable[[int], tuple[float, float]]:
        def target(node: int) -> tuple[float, float]:
            neighbours = [other for side in sides for other in side[node]]
            if not neighbours:
                return ys[node], 0.1
            weights = [PASS_THROUGH_WEIGHT if node >= box_count and other >= box_count else 1.0 for other in neighbours]
            return sum(ys[other] * pull for other, pull in zip(neighbours, weights, strict=True)) / sum(weights), sum(
                weights
            )

        return target

    for order in layers:
        place_layer(order, lambda _: (0.0, 1.0))
    for _ in range(MAX_SWEEPS):
        for order in layers[1:]:
            place_layer(order, barycentre_of(predecessors))
        for order in layers[-2::-1]:
            place_layer(order, barycentre_of(successors))
    for order in layers:
        place_layer(order, barycentre_of(predecessors, successors))
    top = min((y - height / 2 for y, height in zip(ys, heights, strict=True)), default=0.0)
    return [y - top for y in ys]


def _isotonic_regression(targets: Sequence[tuple[float, float]]) -> list[float]:
    """Return the non-decreasing sequence that is closest to the target values, by weighted least squares.

    Algorithm "pool adjacent violators": https://en.wikipedia.org/wiki/Isotonic_regression
    """
    pools: list[tuple[float, float, int]] = []
    for value, weight in targets:
        pool = (value, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            (one, heavy, many), (other, light, few) = pools.pop(), pool
            pool = ((one * heavy + other * light) / (heavy + light), heavy + light, many + few)
        pools.append(pool)
    return [value for value, _, many in pools for _ in range(many)]
