"""Where the boxes of a picture stand, and how the lines between them run: in columns, from left to right. Pure.

Sugiyama's method: columns by the longest way, an order within each by barycentres, and places by least squares.
https://en.wikipedia.org/wiki/Layered_graph_drawing
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vigil_core.domain.diagrams.clustering import columns, neighbours_after

BETWEEN_BOXES = 18.0
AROUND_LINES = 11.0
BETWEEN_COLUMNS = 56.0
MOST_BETWEEN_COLUMNS = 150.0
SWEEPS = 6
HEAVY = 6.0
"""How much straighter a line is kept that only passes by, than one that ends."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Something that a line passes through: a box, or the gap in a column on its way. `y` is its middle."""

    x: float
    y: float
    width: float
    height: float
    is_box: bool


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Stops, the boxes first, in their order; and for each box the pairs of stops that the lines from it connect."""

    stops: Sequence[Stop]
    lines: Sequence[Sequence[tuple[int, int]]]
    width: float
    height: float


def layout(depends_on: Sequence[Sequence[int]], widths: Sequence[float], heights: Sequence[float]) -> Layout:
    """Places for boxes of these sizes. All lines that leave a box share one way for as long as they go side by side."""
    column_of = columns(depends_on)
    after = neighbours_after(depends_on)
    lines: list[list[tuple[int, int]]] = []
    for box, others in enumerate(after):
        way = {column_of[box]: box}
        for column in range(column_of[box] + 1, max((column_of[other] for other in others), default=0)):
            way[column] = len(column_of)
            column_of.append(column)
        hops = [(way[column], way[column + 1]) for column in way if column + 1 in way]
        lines.append(hops + [(way[column_of[other] - 1], other) for other in others])
    before_stop: list[list[int]] = [[] for _ in column_of]
    after_stop: list[list[int]] = [[] for _ in column_of]
    for hops in lines:
        for one, other in hops:
            after_stop[one].append(other)
            before_stop[other].append(one)
    ordered: list[list[int]] = [[] for _ in range(max(column_of, default=-1) + 1)]
    for stop, column in enumerate(column_of):
        ordered[column].append(stop)
    ordered = _with_few_crossings(ordered, before_stop, after_stop)

    heights_of = [*heights, *[0.0] * (len(column_of) - len(heights))]
    ys = _balanced(ordered, before_stop, after_stop, heights_of, len(heights))
    stops: dict[int, Stop] = {}
    x = 0.0
    for order in ordered:
        wide = max((widths[stop] for stop in order if stop < len(widths)), default=0.0)
        for stop in order:
            box = stop < len(widths)
            stops[stop] = Stop(x=x, y=ys[stop], width=wide, height=heights_of[stop], is_box=box)
        crossing = sum(len(after_stop[stop]) for stop in order)
        steep = max((abs(ys[stop] - ys[other]) for stop in order for other in after_stop[stop]), default=0.0)
        gap = min(BETWEEN_COLUMNS + crossing * 1.5 + steep / 12, MOST_BETWEEN_COLUMNS)
        x += wide + (0.0 if order is ordered[-1] else gap)
    height = max((stop.y + stop.height / 2 for stop in stops.values()), default=0.0)
    return Layout(stops=[stops[n] for n in range(len(column_of))], lines=lines, width=x, height=height)


def _with_few_crossings(
    ordered: list[list[int]], before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]
) -> list[list[int]]:
    """The best of some sweeps, there and back, that put each stop at the mean place of its neighbours."""
    at = [0] * len(before)

    def note(order: Sequence[int]) -> None:
        for place, stop in enumerate(order):
            at[stop] = place

    def sweep(orders: Sequence[list[int]], neighbours: Sequence[Sequence[int]]) -> None:
        for order in orders:
            means = {
                stop: sum(at[other] for other in neighbours[stop]) / len(neighbours[stop])
                if neighbours[stop]
                else float(at[stop])
                for stop in order
            }
            order.sort(key=means.__getitem__)
            note(order)

    for order in ordered:
        note(order)
    best, fewest = [list(order) for order in ordered], _crossings(ordered, after, at)
    for turn in range(2 * SWEEPS):
        if not fewest:
            break
        if turn % 2:
            sweep(ordered[-2::-1], after)
        else:
            sweep(ordered[1:], before)
        count = _crossings(ordered, after, at)
        if count < fewest:
            best, fewest = [list(order) for order in ordered], count
    return best


def _crossings(ordered: Sequence[Sequence[int]], after: Sequence[Sequence[int]], at: Sequence[int]) -> int:
    count = 0
    for order in ordered:
        ends: list[int] = []
        for stop in order:
            reached = sorted(at[other] for other in after[stop])
            count += sum(len(ends) - bisect_right(ends, end) for end in reached)
            for end in reached:
                insort(ends, end)
    return count


def _balanced(
    ordered: Sequence[Sequence[int]],
    before: Sequence[Sequence[int]],
    after: Sequence[Sequence[int]],
    heights: Sequence[float],
    boxes: int,
) -> list[float]:
    """The middle of each stop, so that lines are as straight as the order within the columns allows."""
    ys = [0.0] * len(heights)

    def apart(one: int, other: int) -> float:
        room = BETWEEN_BOXES if one < boxes and other < boxes else AROUND_LINES
        return (heights[one] + heights[other]) / 2 + room

    def settle(order: Sequence[int], wanted: Callable[[int], tuple[float, float]]) -> None:
        offsets = [0.0]
        for one, other in pairwise(order):
            offsets.append(offsets[-1] + apart(one, other))
        wishes = [wanted(stop) for stop in order]
        places = _rising([(y - offset, weight) for (y, weight), offset in zip(wishes, offsets, strict=True)])
        for stop, place, offset in zip(order, places, offsets, strict=True):
            ys[stop] = place + offset

    def near(*sides: Sequence[Sequence[int]]) -> Callable[[int], tuple[float, float]]:
        def wanted(stop: int) -> tuple[float, float]:
            others = [other for side in sides for other in side[stop]]
            if not others:
                return ys[stop], 0.1
            pulls = [HEAVY if stop >= boxes and other >= boxes else 1.0 for other in others]
            return sum(ys[other] * pull for other, pull in zip(others, pulls, strict=True)) / sum(pulls), sum(pulls)

        return wanted

    for order in ordered:
        settle(order, lambda _: (0.0, 1.0))
    for _ in range(SWEEPS):
        for order in ordered[1:]:
            settle(order, near(before))
        for order in ordered[-2::-1]:
            settle(order, near(after))
    for order in ordered:
        settle(order, near(before, after))
    top = min((y - height / 2 for y, height in zip(ys, heights, strict=True)), default=0.0)
    return [y - top for y in ys]


def _rising(wishes: Sequence[tuple[float, float]]) -> list[float]:
    """The numbers closest to those wished for, by weight, of which none is below the one before.

    Pool adjacent violators: https://en.wikipedia.org/wiki/Isotonic_regression
    """
    pools: list[tuple[float, float, int]] = []
    for value, weight in wishes:
        pool = (value, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            (one, heavy, many), (other, light, few) = pools.pop(), pool
            pool = ((one * heavy + other * light) / (heavy + light), heavy + light, many + few)
        pools.append(pool)
    return [value for value, _, many in pools for _ in range(many)]
