"""A condition sees the direct dependencies of its job, and validation names every mistake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil.client import VigilError
from vigil.workflow import Workflow
from vigil_core.domain.jobs.conditions import DependencyResult, evaluate_expression, result_of_one_job, root_use
from vigil_core.domain.workflows.validation import NodeSpec, graph_problems

NAMES = ["extract", "transform", "load"]
TEMPLATES = [
    "{0}", "{0}.result.rows", "{0}.result.rows > `0`", "{0}.result && {1}.status", "!{0}", "[{0}, {1}.result]",
    "{{x: {0}.result, y: {1}}}", "length({0}.result.rows) > `1`", "{0}.result.rows[?n > `1`]", "{0}.result | rows",
    "sort_by({0}.result.rows, &n)", "{0}.result.rows[0].n", "{0}.result.rows[*].n || {1}.result", "{0}.result.*",
    "max_by({0}.result.rows, &{1})",
]  # fmt: skip


def problems_of(condition: str, depends_on: tuple[str, ...]) -> list[str]:
    jobs = [
        NodeSpec(name="extract"),
        NodeSpec(name="transform", depends_on=("extract",)),
        NodeSpec(name="load", depends_on=depends_on, condition=condition),
    ]
    return [problem.detail for problem in graph_problems(jobs) if problem.pointer == "/jobs/2/condition"]


@given(template=st.sampled_from(TEMPLATES), names=st.permutations(NAMES), deps=st.sets(st.sampled_from(NAMES[:2])))
def test_condition_is_refused_if_it_names_a_job_outside_its_view(
    template: str, names: list[str], deps: set[str]
) -> None:
    condition = template.format(*names)
    used = root_use(condition).names
    found = problems_of(condition, tuple(sorted(deps)))
    outside = [name for name in used if name in NAMES and name not in deps]
    if not deps:
        assert found == ["names results, but the job depends on no other job"]
    elif outside:
        assert len(found) == 1
        assert repr(outside[0]) in found[0]
    else:
        assert found == []


@given(template=st.sampled_from(TEMPLATES), name=st.sampled_from(NAMES))
def test_names_at_the_root_decide_the_value(template: str, name: str) -> None:
    """Check that a job outside the names at the root has no effect on the value."""
    expression = template.format(name, name)
    rows = '{"rows": [{"n": 1}, {"n": 2}]}'
    jobs = [DependencyResult(name=each, status="completed", health="success", result=rows) for each in NAMES]
    used = root_use(expression).names

    def value_of(results: list[DependencyResult]) -> object:
        try:
            return evaluate_expression(expression, results)
        except Exception as error:
            return type(error)

    assert set(used) & set(NAMES) == {name}
    assert value_of(jobs) == value_of([job for job in jobs if job.name in used])


@pytest.mark.parametrize(
    ("condition", "problem"),
    [
        ("extrct.result.rows", "names 'extrct', and no job has that name: did you mean 'extract'?"),
        ("load.status == 'completed'", "names the job 'load', which is not in `depends_on`"),
        ("rows > `0`", None),
        ("extrct > `0`", None),
        ("keys(@)", None),
        ("`false`", None),
        ("extract.result.load", None),
    ],
)
def test_misspelled_job_is_named_and_a_member_of_a_result_is_accepted(condition: str, problem: str | None) -> None:
    found = problems_of(condition, ("extract",))
    assert len(found) == (0 if problem is None else 1)
    assert problem is None or found[0].startswith(problem)


@pytest.mark.parametrize(("condition", "accepted"), [("`false`", True), ("rows", False), ("@", False)])
def test_condition_of_a_first_job_may_only_be_constant(condition: str, accepted: bool) -> None:
    assert (problems_of(condition, ()) == []) == accepted


def test_client_refuses_the_same_condition_without_a_request() -> None:
    workflow = Workflow("w")
    workflow.job("extract").then("transform").then("load", condition="extract.result.rows > `0`")
    with pytest.raises(VigilError) as refusal:
        workflow.validate()
    assert [error["pointer"] for error in refusal.value.errors] == ["/jobs/2/condition"]


@pytest.mark.parametrize(
    ("expression", "job"),
    [
        ("a.result", "a"), ('"a"."result"', "a"), ("a", None), ("a.result.x", None), ("b.result", None),
        ("a.status", None), ("a.result || a", None), ("a.b.result", None), ("a[0].result", None),
    ],
)  # fmt: skip
def test_expression_that_only_passes_on_a_result_is_recognised(expression: str, job: str | None) -> None:
    assert result_of_one_job(expression, {"a"}) == job
