"""Jobs with dependencies: each is released or skipped exactly when its rule is decided, in any order of events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import permutations
from typing import Any

import pytest
import uuid6

from tests.support.world import KEY, NAMESPACE, World
from vigil_core.domain.errors import MissingDependency
from vigil_core.domain.jobs.conditions import (
    ConditionError,
    DependencyResult,
    check_expression,
    evaluate,
    evaluate_expression,
)
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.trigger_rules import DependencyCounts, evaluate_rule
from vigil_core.services import expressions
from vigil_core.services.background import matcher
from vigil_core.services.expressions import InlineExpressions
from vigil_core.services.jobs import dependencies, transitions
from vigil_core.services.jobs.dependency_results import load_inline_results
from vigil_core.services.jobs.open_dependencies import open_dependencies
from vigil_core.services.queues.claim import ClaimRequest, claim_jobs
from vigil_core.store import keys
from vigil_core.store.table import DynamoTable


def stored(world: World, job_id: str) -> Job:
    return transitions.find_job(world.ctx, NAMESPACE, job_id)


def dependent_job(world: World, *job_ids: str, **attributes: Any) -> str:
    return world.job(depends_on=job_ids, **attributes)


def end(world: World, job_id: str, how: str) -> None:
    if how == "cancelled":
        world.do(transitions.cancel, job_id)
        return
    world.do(transitions.start, job_id)
    world.complete(job_id, result={"rows": 3}) if how == "success" else world.fail(job_id)


@pytest.mark.parametrize(
    ("rule", "endings", "becomes"),
    [
        ("all_success", ["success", "success"], "pending"),
        ("all_success", ["success", "failed"], "skipped"),
        ("all_success", ["cancelled"], "skipped"),
        ("all_done", ["success", "failed", "cancelled"], "pending"),
        ("all_failed", ["failed", "cancelled"], "pending"),
        ("all_failed", ["failed", "success"], "skipped"),
        ("one_success", ["failed", "success", None], "pending"),
        ("one_success", ["failed", "failed"], "skipped"),
        ("one_failed", ["success", "cancelled", None], "pending"),
        ("one_failed", ["success", "success"], "skipped"),
        ("one_done", ["success", None], "pending"),
        ("none_failed", ["success", "success"], "pending"),
        ("none_failed", ["success", "failed", None], "skipped"),
        ("none_failed_min_one_success", ["success"], "pending"),
        ("none_skipped", ["failed", "success"], "pending"),
        ("all_success", ["success", None], "waiting"),
        ("always", [None, None], "pending"),
    ],
)
def test_each_trigger_rule_releases_or_skips_the_job_or_leaves_it_waiting(
    world: World, rule: str, endings: Sequence[str | None], becomes: str
) -> None:
    before = [world.job() for _ in endings]
    job_id = dependent_job(world, *before, trigger_rule=rule)
    world.run_matcher()
    for other, how in zip(before, endings, strict=True):
        if how is not None:
            end(world, other, how)
            world.run_matcher()
    job = stored(world, job_id)
    assert job.status == becomes
    assert job.dependencies.status == {"pending": "satisfied", "skipped": "failed", "waiting": "waiting"}[becomes]
    assert (job.dependencies.verdict is None) == (becomes == "waiting")
    if job.dependencies.verdict is not None:
        assert job.dependencies.verdict.rule == rule
        assert job.dependencies.verdict.inputs["total"] == len(endings)
        assert rule in job.dependencies.verdict.reason
        failed = {other for other, how in zip(before, endings, strict=True) if how in ("failed", "cancelled")}
        assert set(job.dependencies.verdict.failures) == failed
        assert all(other in job.dependencies.verdict.explanation for other in failed)


def test_only_open_dependencies_are_waited_for(world: World) -> None:
    before = [world.job() for _ in range(3)]
    job_id = dependent_job(world, *before, trigger_rule="all_done")
    world.run_matcher()
    for number, other in enumerate(before):
        job = stored(world, job_id)
        assert open_dependencies(world.ctx, [job]) == {job_id: before[number:]}
        end(world, other, ["failed", "success", "cancelled"][number])
        world.delete(other)
        world.run_matcher()
    assert open_dependencies(world.ctx, [stored(world, job_id)]) == {}


def test_skip_caused_by_a_failure_propagates_as_a_failure(world: World) -> None:
    first = world.job()
    second = dependent_job(world, first)
    third = dependent_job(world, second, trigger_rule="one_failed")
    fourth = dependent_job(world, second, trigger_rule="none_failed")
    world.run_matcher()
    end(world, first, "failed")
    world.run_matcher()
    assert [stored(world, each).status for each in (second, third, fourth)] == ["skipped", "pending", "skipped"]


def test_job_skipped_by_its_condition_does_not_count_as_failed(world: World) -> None:
    first = world.job()
    second = dependent_job(world, first, condition="rows > `5`")
    third = dependent_job(world, second, trigger_rule="none_failed")
    world.run_matcher()
    end(world, first, "success")
    world.run_matcher()
    skipped = stored(world, second)
    assert (skipped.status, skipped.health, skipped.dependencies.status) == ("skipped", "skipped", "satisfied")
    assert skipped.dependencies.verdict
    assert skipped.dependencies.verdict.reason == "the condition is false"
    assert stored(world, third).status == "pending"


@pytest.mark.parametrize(
    ("condition", "becomes"),
    [
        ("rows == `3`", "pending"),
        ("{id}.result.rows == `3` && {id}.status == 'completed'", "pending"),
        ("missing", "skipped"),
        ("max(rows)", "failed"),
        ("[{rows}]".replace("{rows}", "rows") + " | [@,@][] | " * 40 + "@", "failed"),
    ],
)
def test_condition_releases_skips_or_fails_the_job(world: World, condition: str, becomes: str) -> None:
    first = world.job()
    job_id = dependent_job(world, first, condition=condition.replace("{id}", f'"{first}"'))
    end(world, first, "success")
    world.run_matcher()
    job = stored(world, job_id)
    assert job.status == becomes
    if becomes == "failed":
        assert job.error
        assert (job.error.code, job.health) == ("CONDITION_FAILED", "failed")


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "condition",
    [
        "[@,@]|" * 100 + "to_string(@)",
        "{a:[a,a],b:[b,b]}|" * 50 + "a==b",
        "{a:[a,a],b:[b,b]}|" * 50 + "contains([a],b)",
    ],
    ids=["text", "comparison", "search"],
)
def test_condition_with_exponential_work_fails_at_once(condition: str) -> None:
    """Check nested lists that contain the same list twice on each level, so that each level doubles the work."""
    inputs = [DependencyResult(name="x", status="completed", health=None, result='{"a": [1], "b": [1]}')]
    with pytest.raises(ConditionError, match=r"it exceeds the limit expression_(values|chars|steps)"):
        evaluate(condition, inputs)


@pytest.mark.parametrize(
    "literal", ['"\\ud800"', '["\\udfff"]', '{"\\ud800": 1}', "1e999", "-1e999", "[[1e400]]", "9" * 4301]
)
def test_expression_with_a_refused_literal_is_refused(literal: str) -> None:
    for template in ("`{}`", "abs(`{}`)", "[a, b[?x == `{}`]] | [0]"):
        with pytest.raises(ConditionError):
            check_expression(template.format(literal)[:1024] if len(literal) < 100 else f"`{literal}`")


@pytest.mark.parametrize(
    "expression",
    ["&a", "[&a]", "{x: &a}", "n", "[n]", "sum(`[1e308, 1e308]`)", "sum(l)", "avg(`[1e308, 1e308]`)", "max([n, `1`])"],
)
def test_value_of_an_expression_that_is_no_json_is_an_error(expression: str) -> None:
    digits = "9" * 4300
    inputs = [
        DependencyResult(name="x", status="completed", health=None, result=f'{{"n":1e999,"l":[{digits},{digits}]}}')
    ]
    with pytest.raises(ConditionError):
        evaluate_expression(expression, inputs)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", 1), ("-1.50", -1.5), ("1e3", 1000.0), ("inf", None), ("nan", None), ("-Infinity", None), ("1e999", None),
        ("1_000", None), (" 1", None), ("0x1", None), ("9" * 4301, None), ("1e99999999999999999999", None), ("", None),
    ],
    ids=lambda value: str(value)[:12],
)  # fmt: skip
def test_function_to_number_accepts_the_numbers_of_json(text: str, number: float | None) -> None:
    inputs = [DependencyResult(name="x", status="completed", health=None, result=f'{{"t":"{text}","s":["{text}"]}}')]
    assert evaluate_expression("to_number(t)", inputs) == number
    assert evaluate_expression("s[].to_number(@)", inputs) == [number] * (number is not None)


def test_error_of_a_condition_quotes_no_half_pair() -> None:
    assert "\ud800" not in str(ConditionError("no \ud800 here"))


EXPENSIVE = "rows[?" + "||".join(["@==`-1`"] * 60) + "] == `[]`"


def evaluating_inline(world: World) -> World:
    """Give the world the CPU budgets that one batch of stream records has."""
    world.ctx = world.ctx.with_expressions(InlineExpressions())
    return world


def test_expensive_conditions_of_many_dependents_are_evaluated_by_fan_out(world: World) -> None:
    full_ctx, first = world.ctx, world.job()
    expensive_ids = [dependent_job(world, first, condition=EXPENSIVE) for _ in range(10)]
    world.run_matcher()
    world.do(transitions.start, first)
    world.complete(first, result={"rows": list(range(300))})
    evaluating_inline(world).run_matcher()
    assert [stored(world, job_id).status for job_id in expensive_ids].count("waiting") >= 8
    world.ctx = full_ctx
    world.run_fan_out()
    world.run_matcher()
    assert {stored(world, job_id).status for job_id in expensive_ids} == {"pending"}
    assert not world.queues.fan_out_messages


def test_cheap_conditions_are_evaluated_by_the_matcher(world: World) -> None:
    first = world.job()
    job_ids = [dependent_job(world, first, condition="rows > `1`") for _ in range(10)]
    world.run_matcher()
    end(world, first, "success")
    evaluating_inline(world).run_matcher()
    assert {stored(world, job_id).status for job_id in job_ids} == {"pending"}
    assert not world.queues.fan_out_messages


def test_condition_on_ended_dependencies_is_deferred_and_evaluated_by_fan_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expressions, "INLINE_CPU_S", 0)
    full_ctx, first = world.ctx, world.job()
    end(world, first, "success")
    job_id = dependent_job(world, first, condition="rows > `1`")
    evaluating_inline(world).run_matcher()
    assert stored(world, job_id).status == "waiting"
    world.ctx = full_ctx
    world.run_fan_out()
    assert stored(world, job_id).status == "pending"


def test_rule_over_ended_dependencies_is_applied_at_creation(world: World) -> None:
    first = world.job()
    end(world, first, "success")
    assert stored(world, dependent_job(world, first)).status == "pending"
    failed = world.job()
    end(world, failed, "failed")
    late = dependent_job(world, first, failed)
    world.run_matcher()
    assert stored(world, late).status == "skipped"


def test_unknown_dependencies_are_named(world: World) -> None:
    known_id, unknown_id = world.job(), str(uuid6.uuid7())
    with pytest.raises(MissingDependency) as refused:
        dependent_job(world, known_id, unknown_id, "rubbish")
    assert [problem.pointer for problem in refused.value.problems] == ["/depends_on/1", "/depends_on/2"]


def test_scheduled_job_applies_its_rule_after_its_start_time(world: World) -> None:
    first = world.job()
    job_id = dependent_job(world, first, scheduled_at=world.time + timedelta(seconds=30))
    end(world, first, "success")
    world.run_matcher()
    assert stored(world, job_id).status == "scheduled"
    world.pass_time(30)
    transitions.apply_timers(world.ctx, NAMESPACE, job_id)
    world.run_matcher()
    assert stored(world, job_id).status == "pending"


@pytest.mark.parametrize("failed_at", ["before creation", "before registration", "after registration"])
def test_scheduled_job_that_can_never_run_is_skipped_before_its_start_time(world: World, failed_at: str) -> None:
    first = world.job()
    if failed_at == "before creation":
        end(world, first, "failed")
    job_id = dependent_job(world, first, scheduled_at=world.time + timedelta(hours=1))
    after = dependent_job(world, job_id, trigger_rule="all_done")
    if failed_at == "before registration":
        end(world, first, "failed")
    world.run_matcher()
    if failed_at == "after registration":
        assert stored(world, job_id).status == "scheduled"
        end(world, first, "failed")
        world.run_matcher()
    skipped = stored(world, job_id)
    assert (skipped.status, skipped.dependencies.status) == ("skipped", "failed")
    assert skipped.dependencies.verdict is not None
    assert skipped.dependencies.verdict.through_failure
    assert stored(world, after).status == "pending"
    world.pass_time(3_600)
    transitions.apply_timers(world.ctx, NAMESPACE, job_id)
    assert stored(world, job_id).version == skipped.version


def test_retry_delay_of_a_released_job_ignores_its_dependencies(world: World) -> None:
    """A job between two attempts is scheduled as well, but its rule has been decided."""
    job = replace(
        stored(world, world.job()),
        status="scheduled",
        dependencies=replace(stored(world, dependent_job(world, world.job())).dependencies, status="satisfied"),
    )
    assert not job.can_be_skipped


def test_released_job_still_waits_for_its_mutex(world: World) -> None:
    first, owner = world.job(), world.job(mutex_key="m")
    job_id = dependent_job(world, first, mutex_key="m", queue_on_conflict=True)
    end(world, first, "success")
    world.run_matcher()
    job = stored(world, job_id)
    assert (job.status, job.dependencies.status, job.awaits_dependencies) == ("waiting", "satisfied", False)
    world.do(transitions.cancel, owner)
    world.run_matcher()
    assert stored(world, job_id).status == "pending"


def test_retried_job_applies_its_rule_again(world: World, table: DynamoTable) -> None:
    first = world.job()
    job_id = dependent_job(world, first)
    world.run_matcher()
    world.do(transitions.cancel, job_id)
    end(world, first, "success")
    world.run_matcher()
    assert stored(world, job_id).status == "cancelled"
    assert not table.query_page(keys.entries_of_job(NAMESPACE, first)).rows
    world.do(transitions.retry, job_id)
    assert stored(world, job_id).status == "waiting"
    world.run_matcher()
    assert stored(world, job_id).status == "pending"


def test_late_removal_of_an_earlier_attempt_does_not_unregister_the_retried_job(world: World) -> None:
    """Deliver a record of the first attempt after the second attempt has registered under the same key."""
    first = world.job()
    job_id = dependent_job(world, first)
    world.run_matcher()
    late = world.ctx.waits.entries_of_job(NAMESPACE, first, limit=10).dependents
    world.do(transitions.cancel, job_id)
    world.do(transitions.retry, job_id)
    world.run_matcher()
    world.ctx.dependencies.remove_dependent(NAMESPACE, first, late[0])
    end(world, first, "success")
    world.run_matcher()
    assert stored(world, job_id).status == "pending"


def test_dependents_are_limited_to_the_requested_number(world: World) -> None:
    first = world.job()
    for _ in range(5):
        dependent_job(world, first)
    world.run_matcher()
    assert len(world.ctx.dependencies.dependents(NAMESPACE, first, 3)) == 3


def test_claimed_job_receives_the_results_of_its_dependencies(world: World) -> None:
    first, second = world.job(), world.job()
    job_id = dependent_job(world, first, second, trigger_rule="all_done")
    end(world, first, "success")
    end(world, second, "failed")
    world.run_matcher()
    request = ClaimRequest(queue="default", worker="w", limit=1, lease_s=60, claim_id=None)
    (job,) = claim_jobs(world.ctx, NAMESPACE, request, actor=KEY, until=world.time)
    assert job.job_id == job_id
    inline = load_inline_results(world.ctx, job)
    assert [(each.name, each.status, each.result) for each in inline.results] == [
        (first, "completed", '{"rows":3}'),
        (second, "failed", None),
    ]


def test_records_in_any_order_and_repeated_release_each_job_once(world: World) -> None:
    first, second = world.job(), world.job()
    ids = [dependent_job(world, first, second) for _ in range(6)]
    created_jobs = list(world.unmatched)
    world.unmatched.clear()
    for job in created_jobs:
        matcher.handle_job_change(world.ctx, job)
    end(world, first, "success")
    end(world, second, "success")
    versions = [job for job in world.unmatched if job.needs_matching and job.ended]
    assert len(versions) == 2
    for order in permutations([*versions, *versions]):
        matcher.match_versions(world.ctx, [replace(job) for job in order])
    assert [stored(world, job_id).version for job_id in ids] == [2] * 6
    assert {stored(world, job_id).status for job_id in ids} == {"pending"}


def test_dependency_that_ends_during_registration_is_not_missed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the dependency after the dependent's rows are written and before the dependency is marked.

    The stream does not report this end to the matcher, so the registration itself must detect it.
    """
    first = world.job()
    job_id = dependent_job(world, first)
    put = world.ctx.dependencies.put_dependents

    def put_then_end_dependency(job: Job) -> None:
        put(job)
        end(world, first, "success")
        assert not stored(world, first).needs_matching

    monkeypatch.setattr(type(world.ctx.dependencies), "put_dependents", lambda _, job: put_then_end_dependency(job))
    matcher.handle_job_change(world.ctx, stored(world, job_id))
    assert stored(world, job_id).status == "pending"


def test_upstream_and_downstream_jobs_are_returned(world: World) -> None:
    first = world.job(name="first")
    second = dependent_job(world, first)
    world.run_matcher()
    related = dependencies.related_jobs(world.ctx, stored(world, first))
    assert (related.upstream, [job.job_id for job in related.downstream]) == ([], [second])
    related = dependencies.related_jobs(world.ctx, stored(world, second))
    assert ([job.name for job in related.upstream], related.downstream) == (["first"], [])


@pytest.mark.parametrize(("limit", "truncated"), [(1, True), (2, False)])
def test_related_jobs_over_the_limit_are_marked(
    world: World, monkeypatch: pytest.MonkeyPatch, limit: int, truncated: bool
) -> None:
    monkeypatch.setattr(dependencies, "MAX_RELATED_JOBS", limit)
    first = world.job()
    second = dependent_job(world, first)
    dependent_job(world, first, second)
    world.run_matcher()
    assert dependencies.related_jobs(world.ctx, stored(world, first)).truncated == truncated


def test_dependents_over_the_inline_limit_are_released_by_fan_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matcher, "MAX_INLINE_WAITS", 3)
    first = world.job()
    ids = [dependent_job(world, first) for _ in range(8)]
    world.run_matcher()
    end(world, first, "success")
    world.run_matcher()
    assert world.queues.fan_out_messages
    world.run_fan_out()
    assert {stored(world, job_id).status for job_id in ids} == {"pending"}


def test_each_rule_counts_skipped_dependencies() -> None:
    one_skipped = DependencyCounts(total=2, success=1, skipped=1)
    statuses = {
        rule: evaluate_rule(rule, one_skipped)
        for rule in (
            "all_success",
            "none_failed",
            "none_failed_min_one_success",
            "none_skipped",
            "one_done",
            "all_done",
        )
    }
    assert statuses == {
        "all_success": False,
        "none_failed": True,
        "none_failed_min_one_success": True,
        "none_skipped": False,
        "one_done": True,
        "all_done": True,
    }
    assert evaluate_rule("none_failed_min_one_success", DependencyCounts(total=1, skipped=1)) is False
