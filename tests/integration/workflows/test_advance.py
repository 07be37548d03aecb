"""Workflow runs from creation to end, on moto."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from tests.support.runs import RunWorld
from tests.support.world import KEY, NAMESPACE
from vigil_core.api.jobs.models import JobSummary
from vigil_core.domain.exact_json import loads
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.domain.workflows import graph
from vigil_core.domain.workflows.run import WorkflowRun
from vigil_core.gateways.outbound_http import HttpResponse
from vigil_core.services import expressions
from vigil_core.services.executors.call_http import call_target
from vigil_core.services.jobs.open_dependencies import open_dependencies
from vigil_core.services.workflows import commands as runs
from vigil_core.services.workflows import create as create_run
from vigil_core.services.workflows import supervisor
from vigil_core.store.workflows.runs import RunStore


def test_chain_runs_jobs_one_after_another(world: RunWorld) -> None:
    run = world.run({"name": "a"}, {"name": "b", "depends_on": ["a"]}, {"name": "c", "depends_on": ["b"]})
    assert world.work({"c": {"rows": 3}}) == ["a", "b", "c"]
    assert world.find_run(run).status == "completed"
    assert world.statuses(run) == {"a": "completed", "b": "completed", "c": "completed"}


@pytest.mark.parametrize(("limit", "truncated"), [(2, True), (3, False)])
def test_dependency_names_that_a_job_does_not_store_are_marked(
    world: RunWorld, monkeypatch: pytest.MonkeyPatch, limit: int, truncated: bool
) -> None:
    monkeypatch.setattr(create_run, "MAX_UPSTREAM_NAMES", limit)
    run = world.run({"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "d", "depends_on": ["a", "b", "c"]})
    shown = JobSummary.from_job(world.at(run, "d"))
    assert (shown.depends_on, shown.depends_on_truncated) == (["a", "b", "c"][:limit], truncated)


def test_only_open_jobs_of_the_run_are_waited_for(world: RunWorld) -> None:
    run = world.run(
        {"name": "a"}, {"name": "b", "queue": "other"}, {"name": "c", "depends_on": ["a", "b"]}, {"name": "d"},
        failure_policy="continue_on_failure",
    )  # fmt: skip
    jobs = [world.at(run, name) for name in "abcd"]
    assert open_dependencies(world.ctx, jobs) == {jobs[0].job_id: [], jobs[1].job_id: [], jobs[3].job_id: []} | {
        jobs[2].job_id: ["a", "b"]
    }
    world.work()
    waiting = world.at(run, "c")
    assert open_dependencies(world.ctx, [waiting, world.at(run, "b")]) == {waiting.job_id: ["b"]}


def test_fail_fast_cancels_the_remaining_jobs(world: RunWorld) -> None:
    run = world.run(
        {"name": "a", "priority": "high"},
        {"name": "b", "depends_on": ["a"]},
        {"name": "c"},
        {"name": "d", "depends_on": ["c"]},
    )
    assert world.work({"a": Exception("NO")}) == ["a"]
    assert world.find_run(run).status == "failed"
    assert world.statuses(run) == {"a": "failed", "b": "cancelled", "c": "cancelled", "d": "cancelled"}


def test_continue_on_failure_skips_only_dependent_jobs(world: RunWorld) -> None:
    run = world.run(
        {"name": "a", "priority": "high"},
        {"name": "b", "depends_on": ["a"]},
        {"name": "c"},
        {"name": "d", "depends_on": ["c"]},
        failure_policy="continue_on_failure",
    )
    assert world.work({"a": Exception("NO")}) == ["a", "c", "d"]
    assert world.find_run(run).status == "failed"
    assert world.statuses(run) == {"a": "failed", "b": "skipped", "c": "completed", "d": "completed"}


@pytest.mark.parametrize("heard_before_it_begins", [True, False])
def test_retry_reruns_jobs_after_a_retained_success(world: RunWorld, heard_before_it_begins: bool) -> None:
    run = world.run(
        {"name": "a"},
        {"name": "b", "depends_on": ["a"]},
        {"name": "c", "depends_on": ["b"]},
        failure_policy="continue_on_failure",
    )
    assert world.work({"b": Exception("NO")}) == ["a", "b"]
    create_run.prepare_jobs(world.ctx, runs.retry(world.ctx, NAMESPACE, run, from_job=None, actor=KEY))
    while heard_before_it_begins and world.table.records:
        world.deliver_stream()
    assert world.work() == ["b", "c"]
    assert world.find_run(run).status == "completed"


def test_executors_receive_the_results_of_dependencies(world: RunWorld) -> None:
    _define(world, "lambda", {"function": "f"})
    _define(world, "http", {"url": "https://a.example/{{dependencies.0.result.id}}"})
    run = world.run({"name": "first"}, *({"name": name, "depends_on": ["first"]} for name in ("lambda", "http")))
    world.work({"first": {"id": "a b"}})
    ((_, event),) = world.executors.invocations
    assert event["dependencies"] == {
        "first": {
            "job_id": world.id_of(run, "first"),
            "status": "completed",
            "job_health": "success",
            "result": {"id": "a b"},
            "truncated": False,
        }
    }
    assert (event["dependencies_truncated"], event["dependencies_url"]) == (False, None)
    world.pass_time(1)
    target = _Target()
    assert call_target(world.ctx, target, None, world.executors.calls[-1]) == "completed"  # type: ignore[arg-type]
    assert target.urls == ["https://a.example/a%20b"]
    assert world.at(run, "http").status == "completed"


class _Target:
    def __init__(self) -> None:
        self.urls: list[str] = []

    def request(self, method: str, url: str, **_: Any) -> HttpResponse:
        self.urls.append(url)
        return HttpResponse(status=200, headers={}, body=b"")


def _define(world: RunWorld, executor: Literal["lambda", "http"], target: Any) -> None:
    """Store a job type with the name of its executor."""
    now = world.ctx.now()
    job_type = JobType(
        namespace=NAMESPACE, name=executor, executor=executor, queue="default", stages=("submit", "complete"),
        defaults={}, payload_schema=None, description=None, created_at=now, updated_at=now, target=target,
    )  # fmt: skip
    world.ctx.job_types.store_target(job_type)
    world.ctx.job_types.save(None, job_type)


def test_delayed_job_uses_results_recorded_before_its_start(world: RunWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "BLOCK_SIZE", 2)
    run = world.run(
        {"name": "a"},
        {"name": "b"},
        {"name": "slow", "queue": "slow"},
        {"name": "later", "depends_on": ["a", "slow"], "trigger_rule": "one_success", "start_delay": 30},
    )
    world.work()
    world.pass_time(61)
    world.sweep()
    world.run_until_idle()
    assert world.statuses(run)["later"] == "pending", "the state of a is in another block and was recorded before"


def test_ignored_failure_releases_dependents_of_another_block(world: RunWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "BLOCK_SIZE", 2)
    run = world.run(
        {"name": "slow", "queue": "slow"},
        {"name": "after", "depends_on": ["slow", "a"], "trigger_rule": "one_success"},
        {"name": "a"},
        failure_policy="manual",
    )
    world.work({"a": Exception("NO")})
    runs.put_decision(world.ctx, NAMESPACE, run, "a", "skip", decision_id="d1", actor=KEY, comment=None)
    world.run_until_idle()
    assert world.statuses(run)["after"] == "pending"


def test_abort_decision_survives_a_supervisor_crash(world: RunWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    run = world.run({"name": "a"}, {"name": "b", "queue": "other"}, failure_policy="manual")
    world.work({"a": Exception("NO")})
    runs.put_decision(world.ctx, NAMESPACE, run, "a", "abort", decision_id="d1", actor=KEY, comment=None)

    def raise_crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(supervisor, "change_run", raise_crash)
        with pytest.raises(KeyboardInterrupt):
            supervisor.apply_decisions(world.ctx, world.find_run(run))
    world.run_until_idle()
    error = world.find_run(run).error
    assert error is not None
    assert error.code == "ABORTED"
    assert world.statuses(run) == {"a": "failed", "b": "cancelled"}


def test_end_with_already_skipped_successors_reads_no_blocks(world: RunWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail one of many parallel jobs: all later jobs are skipped, and fill a block without open jobs."""
    parts = [f"part-{number:02}" for number in range(graph.BLOCK_SIZE)]
    world.run(
        *({"name": name} for name in parts),
        {"name": "join", "depends_on": parts},
        {"name": "after", "depends_on": ["join"]},
        failure_policy="continue_on_failure",
    )
    world.run_until_idle()
    jobs = [world.claim() for _ in range(5)]
    reads: list[str] = []
    read = RunStore.state_blocks

    def counted(store: RunStore, run: WorkflowRun) -> Any:
        reads.append(run.workflow_id)
        return read(store, run)

    monkeypatch.setattr(RunStore, "state_blocks", counted)
    read_for: list[int] = []
    for job in jobs:
        assert job is not None
        world.finish(job, Exception("NO") if job is jobs[0] else None)
        reads.clear()
        world.run_until_idle()
        read_for.append(len(reads))
    assert read_for[1:] == [0, 0, 0, 0], read_for


def test_transitions_over_the_inline_limit_are_applied_by_fan_out(world: RunWorld) -> None:
    """Fail the first job of a chain whose last job has the trigger rule `always`."""
    total = 1_300
    chain: list[dict[str, Any]] = [
        {"name": "j0"},
        *({"name": f"j{n}", "depends_on": [f"j{n - 1}"]} for n in range(1, total - 1)),
    ]
    last = {"name": "last", "depends_on": [f"j{total - 2}"], "trigger_rule": "all_done"}
    run = world.run(*chain, last, failure_policy="continue_on_failure")
    world.run_until_idle()
    job = world.claim()
    assert job is not None
    world.finish(job, Exception("NO"))
    world.machine.run()
    world.deliver_stream()
    kinds: list[Any] = [loads(message.body) for message in world.queues.fan_out_messages]
    assert [(each["kind"], len(each["blocks"])) for each in kinds] == [("run_apply", 16), ("run_apply", 5)]
    assert world.work() == ["last"]
    assert world.find_run(run).statistics == {
        "scheduled": 0, "waiting": 0, "pending": 0, "running": 0, "completed": 1, "failed": 1, "cancelled": 0,
        "skipped": total - 2,
    }  # fmt: skip


def test_run_whose_conditions_exceed_the_share_of_the_stream_ends_as_usual(
    world: RunWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let `fan_out` evaluate every condition: no batch of stream records has CPU time for one."""
    monkeypatch.setattr(expressions, "INLINE_CPU_S", 0)
    run = world.run(
        {"name": "a"},
        {"name": "yes", "depends_on": ["a"], "condition": "n > `1`"},
        {"name": "no", "depends_on": ["a"], "condition": "n > `2`"},
        {"name": "broken", "depends_on": ["a"], "condition": "abs('x')", "retry": {"max_attempts": 1}},
        {"name": "after-no", "depends_on": ["no"]},
        {"name": "after-yes", "depends_on": ["yes"], "condition": "yes.status == 'completed'"},
        failure_policy="continue_on_failure",
    )
    assert world.work({"a": {"n": 2}}) == ["a", "yes", "after-yes"]
    assert world.statuses(run) == {
        "a": "completed", "yes": "completed", "no": "skipped", "broken": "failed", "after-no": "skipped",
        "after-yes": "completed",
    }  # fmt: skip
    assert world.find_run(run).ended


def test_delayed_job_that_can_never_run_is_skipped_at_once(world: RunWorld) -> None:
    run = world.run(
        {"name": "parent"},
        {"name": "child", "depends_on": ["parent"], "start_delay": 3_600},
        {"name": "grandchild", "depends_on": ["child"], "start_delay": 7_200},
        {"name": "report", "depends_on": ["grandchild"], "trigger_rule": "all_done"},
        failure_policy="continue_on_failure",
    )
    assert world.work({"parent": Exception("NO")}) == ["parent", "report"]
    assert world.find_run(run).status == "failed"
    assert world.statuses(run) == {
        "parent": "failed", "child": "skipped", "grandchild": "skipped", "report": "completed",
    }  # fmt: skip


def test_delayed_job_whose_rule_is_satisfied_starts_at_its_time(world: RunWorld) -> None:
    run = world.run({"name": "parent"}, {"name": "child", "depends_on": ["parent"], "start_delay": 60})
    assert world.work() == ["parent"]
    assert world.statuses(run) == {"parent": "completed", "child": "scheduled"}
    world.pass_time(60)
    world.sweep()
    assert world.work() == ["child"]
    assert world.find_run(run).status == "completed"


def test_late_start_record_of_an_earlier_generation_starts_no_job(world: RunWorld) -> None:
    """While a retry is being prepared, the record that started the previous generation arrives once more."""
    run = world.run({"name": "a"}, {"name": "b", "depends_on": ["a"]})
    world.work({"a": Exception("NO")})
    runs.retry(world.ctx, NAMESPACE, run, from_job=None, actor=KEY)
    retried = world.find_run(run)
    create_run._create_or_rerun(world.ctx, retried, 0)
    world.table.records += world.delivered
    world.deliver_stream()
    assert world.at(run, "a").status == "waiting"
    create_run.prepare_jobs(world.ctx, retried)
    assert world.work() == ["a", "b"]
