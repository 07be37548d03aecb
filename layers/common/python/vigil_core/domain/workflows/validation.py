"""Validate the graph of a workflow, and report all problems at once. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from vigil_core.domain.errors import CircularDependency, FieldProblem, MissingDependency
from vigil_core.domain.jobs.conditions import MAX_CHARS, ConditionError, RootUse, root_use
from vigil_core.domain.jobs.trigger_rules import TriggerRule

MAX_JOBS = 10_000
MAX_EDGES = 100_000
MAX_CONDITION_CHARS = 500_000
"""The length of all different conditions together. Their parsing takes time."""
MAX_PROBLEMS = 100
"""The number of problems that are listed. One further problem gives the number of the others."""
MAX_CYCLE_NAMES = 100
"""The number of jobs up to which a cycle is shown in full. Of a longer cycle, the two ends are shown."""
SUGGESTION_BUDGET = 4_000_000
"""The number of pairs of characters that may be compared to find suggestions for misspelled names."""


@dataclass(frozen=True, kw_only=True)
class NodeSpec:
    """The attributes of a job in a definition that the validation needs."""

    name: str
    depends_on: tuple[str, ...] = ()
    condition: str | None = None
    cancel_losers: bool = False
    trigger_rule: TriggerRule = "all_success"


def graph_problems(jobs: Sequence[NodeSpec]) -> list[FieldProblem]:
    """Return the problems of the graph in the order of its jobs, or an empty list if it can run.

    The pointers refer to the definition, for example `/jobs/3/depends_on/0`.
    """
    index_by_name = _index_by_name(jobs)
    all_problems = [*_size_problems(jobs), *_job_problems(jobs, index_by_name), *_cycle_problems(jobs, index_by_name)]
    all_problems.sort(key=_job_index_of)  # The sort is stable: the problems of one job stay in order.
    listed, omitted = all_problems[:MAX_PROBLEMS], all_problems[MAX_PROBLEMS:]
    if not omitted:
        return listed
    codes = {problem.code for problem in omitted}
    code = codes.pop() if len(codes) == 1 else "VALIDATION_FAILED"
    return [*listed, FieldProblem(pointer="/jobs", detail=f"and {len(omitted):,} more problems like these", code=code)]


def condition_size_problems(conditions: Iterable[object]) -> list[FieldProblem]:
    """Return a problem if the conditions of all jobs together are too long to parse. Only texts are conditions."""
    characters = sum(map(len, {condition for condition in conditions if isinstance(condition, str)}))
    if characters <= MAX_CONDITION_CHARS:
        return []
    detail = f"has conditions of {characters:,} characters in all: at most {MAX_CONDITION_CHARS:,} are allowed"
    return [FieldProblem(pointer="/jobs", detail=detail)]


def _job_index_of(problem: FieldProblem) -> int:
    """Return the index of the job of a problem, or -1 for a problem of all jobs."""
    _, _, *path = problem.pointer.split("/")
    return int(path[0]) if path else -1


def _index_by_name(jobs: Sequence[NodeSpec]) -> dict[str, int]:
    """Return the index of each name. If several jobs have the same name, the first one counts."""
    index_by_name: dict[str, int] = {}
    for index, job in enumerate(jobs):
        index_by_name.setdefault(job.name, index)
    return index_by_name


def _size_problems(jobs: Sequence[NodeSpec]) -> Iterator[FieldProblem]:
    edges = sum(len(job.depends_on) for job in jobs)
    if not jobs:
        yield FieldProblem(pointer="/jobs", detail="must hold at least one job")
    if len(jobs) > MAX_JOBS:
        yield FieldProblem(pointer="/jobs", detail=f"holds {len(jobs):,} jobs: at most {MAX_JOBS:,} are allowed")
    if edges > MAX_EDGES:
        yield FieldProblem(
            pointer="/jobs", detail=f"names {edges:,} dependencies in all: at most {MAX_EDGES:,} are allowed"
        )
    yield from condition_size_problems([job.condition for job in jobs])


def _job_problems(jobs: Sequence[NodeSpec], index_by_name: Mapping[str, int]) -> Iterator[FieldProblem]:
    """Yield the problems of each job by itself: its name, dependencies, condition and race."""
    suggestions = _Suggestions(index_by_name)
    parsed_conditions: dict[str, RootUse | str] = {}
    conditions_too_large = bool(condition_size_problems([job.condition for job in jobs]))
    for job_index, job in enumerate(jobs):
        job_pointer = f"/jobs/{job_index}"
        if (first := index_by_name[job.name]) != job_index:
            yield FieldProblem(
                pointer=f"{job_pointer}/name", detail=f"is already the name of /jobs/{first}: {job.name!r}"
            )
        dependency_names: set[str] = set()
        for index, name in enumerate(job.depends_on):
            pointer = f"{job_pointer}/depends_on/{index}"
            if name in dependency_names:
                yield FieldProblem(pointer=pointer, detail=f"names {name!r} a second time")
            elif name not in index_by_name:
                detail = f"no job has the name {name!r}{suggestions.for_name(name)}"
                yield FieldProblem(pointer=pointer, detail=detail, code=MissingDependency.code)
            elif name == job.name:
                yield FieldProblem(
                    pointer=pointer, detail=f"depends on itself: {name} -> {name}", code=CircularDependency.code
                )
            dependency_names.add(name)
        if job.condition is not None and not conditions_too_large:
            if job.condition not in parsed_conditions:
                parsed_conditions[job.condition] = _parse_condition(job.condition)
            parsed = parsed_conditions[job.condition]
            problem = parsed if isinstance(parsed, str) else _view_problem(parsed, job, index_by_name, suggestions)
            if problem is not None:
                yield FieldProblem(pointer=f"{job_pointer}/condition", detail=problem)
        if job.cancel_losers and (job.trigger_rule != "one_success" or len(dependency_names) < 2):
            yield FieldProblem(
                pointer=f"{job_pointer}/cancel_losers",
                detail="is for a job with `trigger_rule` `one_success` and at least two dependencies",
            )


def _parse_condition(condition: str) -> RootUse | str:
    """Return the data that a condition uses, or the problem of its text."""
    if len(condition) > MAX_CHARS:
        return f"has {len(condition):,} characters: at most {MAX_CHARS:,} are allowed"
    try:
        return root_use(condition)
    except ConditionError as error:
        return f"is no JMESPath expression: {error}"


def _view_problem(
    use: RootUse, job: NodeSpec, index_by_name: Mapping[str, int], suggestions: _Suggestions
) -> str | None:
    """Return the problem of a condition that names data outside its view: the direct dependencies of its job.

    A name that no job has is a member of a result, unless the condition uses it like a misspelled job.
    """
    if not job.depends_on and (use.names or use.is_whole):
        return "names results, but the job depends on no other job"
    dependency_names = frozenset(job.depends_on)
    for name, is_like_job in use.names.items():
        if name in dependency_names:
            continue
        if name in index_by_name:
            return f"names the job {name!r}, which is not in `depends_on`: a condition sees only direct dependencies"
        if is_like_job and (suggestion := suggestions.for_name(name)):
            return f"names {name!r}, and no job has that name{suggestion}"
    return None


class _Suggestions:
    """Suggestions for misspelled names. The comparison of names is slow, so its cost is limited."""

    def __init__(self, names: Mapping[str, int]) -> None:
        self._names = names
        self._cost_per_character = sum(map(len, names))
        self._remaining_budget = SUGGESTION_BUDGET

    def for_name(self, name: str) -> str:
        """Return a question to append to the problem, or an empty text."""
        self._remaining_budget -= len(name) * self._cost_per_character
        close_names = get_close_matches(name, self._names, n=1, cutoff=0.75) if self._remaining_budget >= 0 else []
        return f": did you mean {close_names[0]!r}?" if close_names else ""


def _cycle_problems(jobs: Sequence[NodeSpec], index_by_name: Mapping[str, int]) -> Iterator[FieldProblem]:
    """Yield one problem for each strongly connected component: the shortest cycle through its first job."""
    dependencies = [
        [
            dependency
            for name in dict.fromkeys(job.depends_on)
            if (dependency := index_by_name.get(name)) is not None and dependency != index
        ]
        for index, job in enumerate(jobs)
    ]
    for component in _strongly_connected_components(dependencies):
        cycle = _shortest_cycle(dependencies, component)
        first, last = cycle[0], cycle[-1]
        yield FieldProblem(
            pointer=f"/jobs/{first}/depends_on/{jobs[first].depends_on.index(jobs[last].name)}",
            detail=f"closes a cycle: {_format_cycle([jobs[index].name for index in cycle])}",
            code=CircularDependency.code,
        )


def _format_cycle(names: Sequence[str]) -> str:
    """Format a cycle in the order in which its jobs would run."""
    closed_cycle = [*names, names[0]]
    if len(names) > MAX_CYCLE_NAMES:
        shown_ends = MAX_CYCLE_NAMES // 4
        closed_cycle[shown_ends:-shown_ends] = [f"({len(closed_cycle) - 2 * shown_ends:,} more)"]
    return " -> ".join(closed_cycle)


def _strongly_connected_components(dependencies: Sequence[Sequence[int]]) -> list[set[int]]:
    """Return the strongly connected components of more than one job.

    Tarjan's algorithm, with an explicit stack instead of recursion:
    https://en.wikipedia.org/wiki/Tarjan%27s_strongly_connected_components_algorithm
    """
    components: list[set[int]] = []
    visit_number = [0] * len(dependencies)
    low_link = [0] * len(dependencies)
    stack: list[int] = []
    on_stack = [False] * len(dependencies)
    count = 0
    for root in range(len(dependencies)):
        path = [] if visit_number[root] else [(root, iter(dependencies[root]))]
        while path:
            node, remaining = path[-1]
            if not visit_number[node]:
                count += 1
                visit_number[node] = low_link[node] = count
                stack.append(node)
                on_stack[node] = True
            for dependency in remaining:
                if not visit_number[dependency]:
                    path.append((dependency, iter(dependencies[dependency])))
                    break
                if on_stack[dependency]:
                    low_link[node] = min(low_link[node], visit_number[dependency])
            else:
                path.pop()
                if path:
                    parent = path[-1][0]
                    low_link[parent] = min(low_link[parent], low_link[node])
                if low_link[node] == visit_number[node]:
                    component = set[int]()
                    while node not in component:
                        member = stack.pop()
                        on_stack[member] = False
                        component.add(member)
                    if len(component) > 1:
                        components.append(component)
    return components


def _shortest_cycle(dependencies: Sequence[Sequence[int]], component: set[int]) -> list[int]:
    """Return the shortest cycle through the first job of a component, in the order in which its jobs would run."""
    first = min(component)
    successor_on_path: dict[int, int] = {}
    to_visit = deque([first])
    while first not in successor_on_path:
        node = to_visit.popleft()
        for dependency in dependencies[node]:
            if dependency in component and dependency not in successor_on_path:
                successor_on_path[dependency] = node
                to_visit.append(dependency)
    cycle = [first]
    while (following := successor_on_path[cycle[-1]]) != first:
        cycle.append(following)
    return cycle
