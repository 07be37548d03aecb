"""Whether the jobs of a workflow make a graph that can run: everything that is wrong with it, at once. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from vigil_core.domain.errors import CircularDependency, FieldProblem, MissingDependency
from vigil_core.domain.jobs.conditions import MAX_CHARS, ConditionError, check
from vigil_core.domain.jobs.dependencies import TriggerRule

MAX_JOBS = 10_000
MAX_EDGES = 100_000
MAX_CONDITION_CHARS = 500_000
"""Of all different conditions together: reading them takes time."""
MAX_PROBLEMS = 100
"""How many are told one by one; how many more there are is told in one."""
MAX_SPELLED = 100
"""Jobs of a cycle that is spelled out whole; of a longer one, the two ends are."""
HINT_BUDGET = 4_000_000
"""Pairs of characters that may be compared, in all, to find out what a misspelled name was meant to be."""


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """What is looked at of a job in a definition."""

    name: str
    depends_on: tuple[str, ...] = ()
    condition: str | None = None
    cancel_losers: bool = False
    trigger_rule: TriggerRule = "all_success"


def problems(jobs: Sequence[Sketch]) -> list[FieldProblem]:
    """What is wrong with the graph, in the order of its jobs; empty when it can run.

    Pointers are into the definition: `/jobs/3/depends_on/0`.
    """
    places = _places(jobs)
    found = [*_sizes(jobs), *_by_job(jobs, places), *_cycles(jobs, places)]
    found.sort(key=_job_of)  # stable: what is wrong with one job stays in order
    told, rest = found[:MAX_PROBLEMS], found[MAX_PROBLEMS:]
    if not rest:
        return told
    codes = {problem.code for problem in rest}
    code = codes.pop() if len(codes) == 1 else "VALIDATION_FAILED"
    return [*told, FieldProblem(pointer="/jobs", detail=f"and {len(rest):,} more problems like these", code=code)]


def too_much_to_read(conditions: Iterable[object]) -> list[FieldProblem]:
    """That the conditions of all jobs take too long to be understood, if so. Whatever is no text is none."""
    characters = sum(map(len, {each for each in conditions if isinstance(each, str)}))
    if characters <= MAX_CONDITION_CHARS:
        return []
    detail = f"has conditions of {characters:,} characters in all: at most {MAX_CONDITION_CHARS:,} are allowed"
    return [FieldProblem(pointer="/jobs", detail=detail)]


def _job_of(problem: FieldProblem) -> int:
    """The job that is meant, as its place; before the first where it is all of them."""
    _, _, *inside = problem.pointer.split("/")
    return int(inside[0]) if inside else -1


def _places(jobs: Sequence[Sketch]) -> dict[str, int]:
    """Where each name stands; the first, where several jobs have it."""
    places: dict[str, int] = {}
    for place, job in enumerate(jobs):
        places.setdefault(job.name, place)
    return places


def _sizes(jobs: Sequence[Sketch]) -> Iterator[FieldProblem]:
    edges = sum(len(job.depends_on) for job in jobs)
    if not jobs:
        yield FieldProblem(pointer="/jobs", detail="must hold at least one job")
    if len(jobs) > MAX_JOBS:
        yield FieldProblem(pointer="/jobs", detail=f"holds {len(jobs):,} jobs: at most {MAX_JOBS:,} are allowed")
    if edges > MAX_EDGES:
        yield FieldProblem(
            pointer="/jobs", detail=f"names {edges:,} dependencies in all: at most {MAX_EDGES:,} are allowed"
        )
    yield from too_much_to_read([job.condition for job in jobs])


def _by_job(jobs: Sequence[Sketch], places: Mapping[str, int]) -> Iterator[FieldProblem]:
    """What can be said of each job by itself, and of the names that it names."""
    hints = _Hints(places)
    conditions: dict[str, str | None] = {}
    too_long_to_read = bool(too_much_to_read([job.condition for job in jobs]))
    for place, job in enumerate(jobs):
        at = f"/jobs/{place}"
        if (first := places[job.name]) != place:
            yield FieldProblem(pointer=f"{at}/name", detail=f"is already the name of /jobs/{first}: {job.name!r}")
        named: set[str] = set()
        for index, name in enumerate(job.depends_on):
            pointer = f"{at}/depends_on/{index}"
            if name in named:
                yield FieldProblem(pointer=pointer, detail=f"names {name!r} a second time")
            elif name not in places:
                detail = f"no job has the name {name!r}{hints.for_name(name)}"
                yield FieldProblem(pointer=pointer, detail=detail, code=MissingDependency.code)
            elif name == job.name:
                yield FieldProblem(
                    pointer=pointer, detail=f"depends on itself: {name} -> {name}", code=CircularDependency.code
                )
            named.add(name)
        if job.condition is not None and not too_long_to_read:
            if job.condition not in conditions:
                conditions[job.condition] = _wrong_with(job.condition)
            if wrong := conditions[job.condition]:
                yield FieldProblem(pointer=f"{at}/condition", detail=wrong)
        if job.cancel_losers and (job.trigger_rule != "one_success" or len(named) < 2):
            yield FieldProblem(
                pointer=f"{at}/cancel_losers",
                detail="is for a job with `trigger_rule` `one_success` and at least two dependencies",
            )


def _wrong_with(condition: str) -> str | None:
    if len(condition) > MAX_CHARS:
        return f"has {len(condition):,} characters: at most {MAX_CHARS:,} are allowed"
    try:
        check(condition)
    except ConditionError as error:
        return f"is no JMESPath expression: {error}"
    return None


class _Hints:
    """What a name that no job has was probably meant to be. Comparing names is slow, so there is an end to it."""

    def __init__(self, names: Mapping[str, int]) -> None:
        self._names = names
        self._cost_of_a_character = sum(map(len, names))
        self._left = HINT_BUDGET

    def for_name(self, name: str) -> str:
        """A question to put behind the complaint, or nothing."""
        self._left -= len(name) * self._cost_of_a_character
        close = get_close_matches(name, self._names, n=1, cutoff=0.75) if self._left >= 0 else []
        return f": did you mean {close[0]!r}?" if close else ""


def _cycles(jobs: Sequence[Sketch], places: Mapping[str, int]) -> Iterator[FieldProblem]:
    """One for each set of jobs that all wait for each other: the shortest through its first job."""
    before = [
        [there for name in dict.fromkeys(job.depends_on) if (there := places.get(name)) is not None and there != place]
        for place, job in enumerate(jobs)
    ]
    for knot in _knots(before):
        cycle = _shortest_cycle(before, knot)
        first, last = cycle[0], cycle[-1]
        yield FieldProblem(
            pointer=f"/jobs/{first}/depends_on/{jobs[first].depends_on.index(jobs[last].name)}",
            detail=f"closes a circle: {_spelled([jobs[place].name for place in cycle])}",
            code=CircularDependency.code,
        )


def _spelled(names: Sequence[str]) -> str:
    """A cycle in the order in which its jobs would run."""
    round_trip = [*names, names[0]]
    if len(names) > MAX_SPELLED:
        end = MAX_SPELLED // 4
        round_trip[end:-end] = [f"({len(round_trip) - 2 * end:,} more)"]
    return " -> ".join(round_trip)


def _knots(before: Sequence[Sequence[int]]) -> list[set[int]]:
    """The strongly connected components of more than one job, by Tarjan's algorithm with a stack of its own.

    https://en.wikipedia.org/wiki/Tarjan%27s_strongly_connected_components_algorithm
    """
    found: list[set[int]] = []
    seen_as = [0] * len(before)
    lowest = [0] * len(before)
    open_places: list[int] = []
    is_open = [False] * len(before)
    count = 0
    for root in range(len(before)):
        path = [] if seen_as[root] else [(root, iter(before[root]))]
        while path:
            place, rest = path[-1]
            if not seen_as[place]:
                count += 1
                seen_as[place] = lowest[place] = count
                open_places.append(place)
                is_open[place] = True
            for other in rest:
                if not seen_as[other]:
                    path.append((other, iter(before[other])))
                    break
                if is_open[other]:
                    lowest[place] = min(lowest[place], seen_as[other])
            else:
                path.pop()
                if path:
                    parent = path[-1][0]
                    lowest[parent] = min(lowest[parent], lowest[place])
                if lowest[place] == seen_as[place]:
                    knot = set[int]()
                    while place not in knot:
                        done = open_places.pop()
                        is_open[done] = False
                        knot.add(done)
                    if len(knot) > 1:
                        found.append(knot)
    return found


def _shortest_cycle(before: Sequence[Sequence[int]], knot: set[int]) -> list[int]:
    """The places of a cycle through the first job of a knot, in the order in which they would run."""
    first = min(knot)
    after_on_the_way: dict[int, int] = {}
    to_visit = deque([first])
    while first not in after_on_the_way:
        place = to_visit.popleft()
        for other in before[place]:
            if other in knot and other not in after_on_the_way:
                after_on_the_way[other] = place
                to_visit.append(other)
    cycle = [first]
    while (following := after_on_the_way[cycle[-1]]) != first:
        cycle.append(following)
    return cycle
