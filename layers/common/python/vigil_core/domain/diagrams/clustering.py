"""A large graph made small enough to look at: jobs that play the same part share a box. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["job", "alike", "sequence", "many"]

MOST_COLUMNS = 24
"""Of a picture before sequences in it are shortened, however few its boxes."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """One or more jobs, by their places: `alike` have the same neighbours, a `sequence` runs one by one."""

    members: tuple[int, ...]
    kind: Kind
    depends_on: tuple[int, ...]
    """Places of boxes."""


def boxes(depends_on: Sequence[Sequence[int]], keys: Sequence[Hashable], *, at_most: int) -> list[Box]:
    """The boxes of a graph without cycles: one a job if they are few enough, else as many as there may be, or fewer.

    Of a sequence the ends stay, and it is cut where the key changes, as long as there is room.
    """
    found = [Box(members=(n,), kind="job", depends_on=tuple(dict.fromkeys(each))) for n, each in enumerate(depends_on)]

    def fits() -> bool:
        return len(found) <= at_most

    if fits() and max(columns([box.depends_on for box in found]), default=0) < MOST_COLUMNS:
        return found
    before = 0
    while before != len(found) and not fits():
        before = len(found)
        found = _merged(found, _alike(found), "alike", at_most)
        if not fits():
            found = _merged(found, _sequences(found, keys), "sequence", at_most)
    if max(columns([box.depends_on for box in found]), default=0) >= MOST_COLUMNS:
        found = _merged(found, _sequences(found, keys), "sequence", 0)
    if not fits():
        found = _merged(found, _sequences(found, [None] * len(keys)), "sequence", at_most)
    if not fits():
        found = _merged(found, _by_column(found, lambda column: column), "many", at_most)
    if not fits():
        width = -(-len(found) // at_most)
        found = _merged(found, _by_column(found, lambda column: column // width), "many", 0)
    return found


def columns(depends_on: Sequence[Sequence[int]]) -> list[int]:
    """How many others come before each, at the least: the length of the longest way to it."""
    after = neighbours_after(depends_on)
    open_before = [len(each) for each in depends_on]
    found = [0] * len(depends_on)
    ready = [n for n, count in enumerate(open_before) if not count]
    for n in ready:
        for other in after[n]:
            found[other] = max(found[other], found[n] + 1)
            open_before[other] -= 1
            if not open_before[other]:
                ready.append(other)
    return found


def neighbours_after(depends_on: Sequence[Sequence[int]]) -> list[list[int]]:
    """The same edges, seen from their other ends."""
    after: list[list[int]] = [[] for _ in depends_on]
    for n, each in enumerate(depends_on):
        for other in each:
            after[other].append(n)
    return after


def _alike(found: Sequence[Box]) -> list[list[int]]:
    """Boxes that depend on the same ones, and on which the same ones depend."""
    after = neighbours_after([box.depends_on for box in found])
    groups: dict[Hashable, list[int]] = {}
    for n, box in enumerate(found):
        groups.setdefault((frozenset(box.depends_on), frozenset(after[n])), []).append(n)
    return list(groups.values())


def _sequences(found: Sequence[Box], keys: Sequence[Hashable]) -> list[list[int]]:
    """Boxes of which each is the only one before the next, and the next the only one after it; but for the two ends."""
    after = neighbours_after([box.depends_on for box in found])

    def follows(n: int) -> bool:
        return len(found[n].depends_on) == 1 and len(after[found[n].depends_on[0]]) == 1

    runs = []
    for n in range(len(found)):
        if follows(n):
            continue
        run = [n]
        while len(after[run[-1]]) == 1 and follows(after[run[-1]][0]):
            run.append(after[run[-1]][0])
        inner = run[1:-1] if len(found[run[0]].members) == len(found[run[-1]].members) == 1 else run
        alike = groupby(inner, key=lambda n: {keys[member] for member in found[n].members})
        runs += [list(part) for _, part in alike]
    return runs


def _by_column(found: Sequence[Box], band: Callable[[int], int]) -> list[list[int]]:
    """Boxes of the same column, or of columns side by side."""
    groups: dict[int, list[int]] = {}
    for n, column in enumerate(columns([box.depends_on for box in found])):
        groups.setdefault(band(column), []).append(n)
    return list(groups.values())


def _merged(found: Sequence[Box], groups: Iterable[Sequence[int]], kind: Kind, at_most: int) -> list[Box]:
    """The graph with these groups as one box each, the largest first, and no more of them than it takes."""
    left = len(found)
    parts: list[Sequence[int]] = [(n,) for n in range(len(found))]
    """The boxes with which each makes one, itself included."""
    for group in sorted((group for group in groups if len(group) > 1), key=len, reverse=True):
        if left <= at_most:
            break
        left -= len(group) - 1
        for n in group:
            parts[n] = group
    made = [part for n, part in enumerate(parts) if n == part[0]]
    place = {n: index for index, part in enumerate(made) for n in part}
    return [
        Box(
            members=tuple(member for n in part for member in found[n].members),
            kind=_kind([found[n].kind for n in part], kind),
            depends_on=tuple(
                dict.fromkeys(place[other] for n in part for other in found[n].depends_on if place[other] != index)
            ),
        )
        for index, part in enumerate(made)
    ]


def _kind(kinds: Sequence[Kind], merged_as: Kind) -> Kind:
    if len(kinds) == 1:
        return kinds[0]
    return merged_as if set(kinds) <= {"job", merged_as} else "many"
