"""Validation of a workflow's graph, with all problems at once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vigil_core.domain.errors import (
    CircularDependency,
    FieldProblem,
    MissingDependency,
    ValidationFailed,
    raise_if_any,
)
from vigil_core.domain.workflows.validation import MAX_JOBS, MAX_PROBLEMS, NodeSpec, graph_problems


def node_specs(**depends_on: Iterable[str]) -> list[NodeSpec]:
    return [NodeSpec(name=name, depends_on=tuple(names)) for name, names in depends_on.items()]


def problem_triples(jobs: Sequence[NodeSpec]) -> list[tuple[str, str, str]]:
    return [(problem.pointer, problem.code, problem.detail) for problem in graph_problems(jobs)]


def test_valid_graph_has_no_problems() -> None:
    jobs = [
        *node_specs(extract=[], transform=["extract"], load=["extract", "transform"]),
        NodeSpec(name="won", depends_on=("extract", "load"), trigger_rule="one_success", cancel_losers=True),
        NodeSpec(name="valid", depends_on=("extract",), condition="validation_status == 'valid'"),
    ]
    assert graph_problems(jobs) == []


def test_all_problems_are_reported_in_job_order() -> None:
    jobs = [
        NodeSpec(name="a", depends_on=("c", "c")),
        NodeSpec(name="b", depends_on=("a",), condition="status == "),
        NodeSpec(name="c", depends_on=("b", "nothing")),
        NodeSpec(name="a"),
        NodeSpec(name="d", depends_on=("d",), cancel_losers=True),
    ]
    assert [(pointer, code) for pointer, code, _ in problem_triples(jobs)] == [
        ("/jobs/0/depends_on/1", "VALIDATION_FAILED"),
        ("/jobs/0/depends_on/0", "CIRCULAR_DEPENDENCY"),
        ("/jobs/1/condition", "VALIDATION_FAILED"),
        ("/jobs/2/depends_on/1", "MISSING_DEPENDENCY"),
        ("/jobs/3/name", "VALIDATION_FAILED"),
        ("/jobs/4/depends_on/0", "CIRCULAR_DEPENDENCY"),
        ("/jobs/4/cancel_losers", "VALIDATION_FAILED"),
    ]
    assert problem_triples(jobs)[0][2] == "names 'c' a second time"
    assert problem_triples(jobs)[2][2].startswith("is no JMESPath expression: ")
    assert problem_triples(jobs)[4][2] == "is already the name of /jobs/0: 'a'"
    assert problem_triples(jobs)[5][2] == "depends on itself: d -> d"


def test_cycle_is_reported_in_execution_order() -> None:
    assert problem_triples(node_specs(a=["c"], b=["a"], c=["b"])) == [
        ("/jobs/0/depends_on/0", "CIRCULAR_DEPENDENCY", "closes a cycle: a -> b -> c -> a")
    ]


def test_each_strongly_connected_component_reports_its_shortest_cycle() -> None:
    found = problem_triples(
        node_specs(free=[], a=["free", "d", "b"], b=["a"], c=["b"], d=["c"], x=["y", "a"], y=["x"], z=["y"])
    )
    assert found == [
        ("/jobs/1/depends_on/2", "CIRCULAR_DEPENDENCY", "closes a cycle: a -> b -> a"),
        ("/jobs/5/depends_on/0", "CIRCULAR_DEPENDENCY", "closes a cycle: x -> y -> x"),
    ]


def test_misspelled_dependency_gets_a_suggestion() -> None:
    (_, code, detail), (_, _, unlike) = problem_triples(node_specs(extract=[], load=["extrat", "zzz"]))
    assert code == "MISSING_DEPENDENCY"
    assert detail == "no job has the name 'extrat': did you mean 'extract'?"
    assert unlike == "no job has the name 'zzz'"


@pytest.mark.parametrize(
    ("rule", "depends_on", "allowed"),
    [
        ("one_success", ("a", "b"), True),
        ("one_success", ("a",), False),
        ("one_success", (), False),
        ("all_success", ("a", "b"), False),
        ("one_done", ("a", "b"), False),
    ],
)
def test_cancel_losers_is_allowed_only_for_a_race(rule: str, depends_on: tuple[str, ...], allowed: bool) -> None:
    racing = NodeSpec(name="won", depends_on=depends_on, trigger_rule=rule, cancel_losers=True)  # type: ignore[arg-type]
    assert (problem_triples([*node_specs(a=[], b=[]), racing]) == []) is allowed


def test_jobs_and_dependencies_over_the_limit_are_refused() -> None:
    assert problem_triples([]) == [("/jobs", "VALIDATION_FAILED", "must hold at least one job")]
    jobs = [NodeSpec(name=f"job {n}") for n in range(MAX_JOBS)]
    assert graph_problems(jobs) == []
    assert problem_triples([*jobs, NodeSpec(name="last")]) == [
        ("/jobs", "VALIDATION_FAILED", "holds 10,001 jobs: at most 10,000 are allowed")
    ]
    first = tuple(job.name for job in jobs[:1_000])
    crowd = [*jobs[:1_000], *(NodeSpec(name=f"late {n}", depends_on=first) for n in range(101))]
    assert graph_problems(crowd[:-1]) == []
    assert problem_triples(crowd) == [
        ("/jobs", "VALIDATION_FAILED", "names 101,000 dependencies in all: at most 100,000 are allowed")
    ]


def test_conditions_over_the_limits_are_refused() -> None:
    assert problem_triples([NodeSpec(name="a", condition="a" * 1_025)]) == [
        ("/jobs/0/condition", "VALIDATION_FAILED", "has 1,025 characters: at most 1,024 are allowed")
    ]
    crowd = [NodeSpec(name=str(n), condition=f"{n:0>5} &&" + "!" * 1_000) for n in range(600)]
    began = time.process_time()
    assert problem_triples(crowd) == [
        ("/jobs", "VALIDATION_FAILED", "has conditions of 604,800 characters in all: at most 500,000 are allowed")
    ]
    assert time.process_time() - began < 1
    assert (
        graph_problems(
            [
                NodeSpec(name=str(n), depends_on=(str(n - 1),), condition="validation_status == 'valid'")
                for n in range(1, MAX_JOBS)
            ]
            + [NodeSpec(name="0")]
        )
        == []
    )


def test_problems_over_the_limit_are_counted() -> None:
    jobs = node_specs(**{f"job_{n}": ["nobody"] for n in range(250)})
    *shown, last = graph_problems(jobs)
    assert len(shown) == MAX_PROBLEMS
    assert last == FieldProblem(pointer="/jobs", detail="and 150 more problems like these", code="MISSING_DEPENDENCY")


def test_problems_of_one_kind_raise_its_error_and_mixed_ones_the_general_error() -> None:
    raise_if_any(graph_problems(node_specs(a=[])))
    with pytest.raises(MissingDependency):
        raise_if_any(graph_problems(node_specs(**{f"job_{n}": ["nobody"] for n in range(250)})))
    with pytest.raises(CircularDependency, match="a -> b -> a"):
        raise_if_any(graph_problems(node_specs(a=["b"], b=["a"])))
    with pytest.raises(ValidationFailed) as caught:
        raise_if_any(graph_problems(node_specs(a=["b"], b=["a", "c"])))
    assert type(caught.value) is ValidationFailed
    assert {problem.code for problem in caught.value.problems} == {"MISSING_DEPENDENCY", "CIRCULAR_DEPENDENCY"}


def test_largest_graphs_are_validated_within_5_seconds() -> None:
    names = [f"job_number_{n:05}" for n in range(MAX_JOBS)]
    circle = [NodeSpec(name=name, depends_on=(names[n - 1],)) for n, name in enumerate(names)]
    web = [NodeSpec(name=name, depends_on=tuple(names[max(0, n - 10) : n])) for n, name in enumerate(names)]
    lost = [NodeSpec(name=name, depends_on=tuple(f"{name} {n}" for n in range(10))) for name in names]
    began = time.process_time()
    (cycle,) = graph_problems(circle)
    assert graph_problems(web) == []
    assert len(graph_problems(lost)) == MAX_PROBLEMS + 1
    assert time.process_time() - began < 5
    assert cycle.detail.startswith("closes a cycle: job_number_00000 -> job_number_00001 -> ")
    assert cycle.detail.endswith(" -> job_number_09999 -> job_number_00000")
    assert "(9,951 more)" in cycle.detail


def reached(edges: dict[int, set[int]], start: int) -> set[int]:
    """Return all upstream jobs, direct and indirect."""
    seen: set[int] = set()
    to_visit = [start]
    while to_visit:
        for other in edges[to_visit.pop()] - seen:
            seen.add(other)
            to_visit.append(other)
    return seen


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 13), max_size=4), min_size=1, max_size=12))
def test_reported_problems_are_exactly_the_real_ones(graph: list[list[int]]) -> None:
    jobs = [NodeSpec(name=str(n), depends_on=tuple(map(str, depends_on))) for n, depends_on in enumerate(graph)]
    found = graph_problems(jobs)

    missing = {(n, each) for n, depends_on in enumerate(graph) for each in depends_on if each >= len(graph)}
    assert len([problem for problem in found if problem.code == "MISSING_DEPENDENCY"]) == len(missing)
    again = sum(len(depends_on) - len(set(depends_on)) for depends_on in graph)
    assert len([problem for problem in found if problem.detail.endswith("a second time")]) == again
    on_themselves = [problem for problem in found if problem.detail.startswith("depends on itself")]
    assert len(on_themselves) == sum(n in depends_on for n, depends_on in enumerate(graph))

    edges = {n: {each for each in depends_on if each < len(graph)} - {n} for n, depends_on in enumerate(graph)}
    before = {n: reached(edges, n) for n in edges}
    knots = {frozenset(other for other in edges if other in before[n] and n in before[other]) for n in edges}
    firsts = sorted(min(knot) for knot in knots if knot)
    circles = [problem for problem in found if problem.detail.startswith("closes a cycle")]
    assert [int(problem.pointer.split("/")[2]) for problem in circles] == firsts
    for problem in circles:
        places = [int(name) for name in problem.detail.split(": ")[1].split(" -> ")]
        assert all(one in edges[following] for one, following in pairwise(places))
        job, index = map(int, problem.pointer.split("/")[2::2])
        assert (job, graph[job][index], job) == (places[0], places[-2], places[-1])
