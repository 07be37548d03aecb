"""Workflow runs after a crash of the process that changes them, on moto."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import uuid6

from tests.model.engine_simulator import CrashingTable, ProcessCrashed
from tests.model.moto_table import empty_table
from tests.support.runs import RunWorld
from tests.support.world import KEY, NAMESPACE
from vigil_core.api.workflows.models import parse_workflow
from vigil_core.domain.workflows.run_state import StateRecord
from vigil_core.services.background.matcher import match_records
from vigil_core.services.workflows import commands as runs
from vigil_core.services.workflows import create as create_run
from vigil_core.services.workflows import supervisor


def test_delayed_job_created_after_its_start_time_starts(world: RunWorld) -> None:
    body: Any = {"name": "test", "jobs": [{"name": "a", "start_delay": 5}, {"name": "b", "depends_on": ["a"]}]}
    run_id = str(uuid6.uuid7())
    new = parse_workflow(NAMESPACE, body, run_id, now=world.time, find_types=world.ctx.job_types.find_many)
    world.pass_time(60)
    create_run.create_run(world.ctx, NAMESPACE, new, actor=KEY)
    world.run_until_idle()
    world.sweep()
    assert world.work() == ["a", "b"]
    assert world.find_run(run_id).status == "completed"


def test_first_state_record_of_a_version_wins(world: RunWorld) -> None:
    run = world.find_run(world.run({"name": "a"}))
    record_states = world.ctx.runs.record_states
    for state in ("failed", "awaiting_decision"):
        record_states(run.namespace, run.workflow_id, 0, {0: StateRecord(state=state, state_version=4)})
    assert world.run_state(run.workflow_id).state_of(0) == "failed"
    record_states(run.namespace, run.workflow_id, 0, {0: StateRecord(state="ignored_failure", state_version=5)})
    record_states(run.namespace, run.workflow_id, 0, {0: StateRecord(state="running", state_version=3)})
    assert world.run_state(run.workflow_id).state_of(0) == "ignored_failure"


def test_repeated_creation_finishes_a_crashed_one(world: RunWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    body: Any = {"name": "test", "jobs": [{"name": "a"}, {"name": "b", "depends_on": ["a"]}]}
    run_id = str(uuid6.uuid7())
    new = parse_workflow(NAMESPACE, body, run_id, now=world.time, find_types=world.ctx.job_types.find_many)
    with monkeypatch.context() as patched:
        patched.setattr(create_run, "prepare_jobs", lambda _, run: run)
        assert not create_run.create_run(world.ctx, NAMESPACE, new, actor=KEY).registration_complete
    assert create_run.create_run(world.ctx, NAMESPACE, new, actor=KEY, resumed=True).registration_complete
    assert world.work() == ["a", "b"]
    assert world.find_run(run_id).status == "completed"


class CrashingWorld(RunWorld):
    """A world in which the process of one action crashes at one of its writes. No sweeper reconciles the runs."""

    def __init__(self, writes: int, *, crash_after_write: bool) -> None:
        self.crashing_table = CrashingTable(empty_table())
        self.crashing_table.crash_after_write = crash_after_write
        self.writes = writes
        self.crashed = False
        super().__init__(self.crashing_table)  # type: ignore[arg-type]

    def run_with_crash(self, work: Callable[[], Any]) -> None:
        """Do the work until the crash."""
        self.crashing_table.writes_left = self.writes
        try:
            work()
        except ProcessCrashed:
            self.crashed = True
        self.crashing_table.writes_left = None

    def match_with_crash(self) -> None:
        """Deliver the stream records to a matcher that crashes. The stream delivers them again later."""
        self.run_with_crash(lambda: match_records(self.ctx, self.table.records))


AtEveryWrite: TypeAlias = Callable[[Callable[[CrashingWorld], None]], None]


@pytest.fixture(params=["before", "after"])
def at_every_write(aws: None, request: pytest.FixtureRequest) -> AtEveryWrite:
    """Run a scenario with a crash before or after the first write, the second, and so on, until none occurs."""

    def run_scenario(scenario: Callable[[CrashingWorld], None]) -> None:
        for writes in range(30):
            world = CrashingWorld(writes, crash_after_write=request.param == "after")
            scenario(world)
            if not world.crashed:
                assert writes > 0, "no process crashed"
                return
        raise AssertionError("the scenario always crashes")

    return run_scenario


def test_dependent_of_a_skipped_job_is_released_after_a_crash(at_every_write: AtEveryWrite) -> None:
    def scenario(world: CrashingWorld) -> None:
        run = world.run(
            {"name": "a"},
            {"name": "b", "depends_on": ["a"]},
            {"name": "c", "depends_on": ["b"]},
            {"name": "d", "depends_on": ["c"], "trigger_rule": "all_done"},
            failure_policy="continue_on_failure",
        )
        world.run_until_idle()
        job = world.claim()
        assert job is not None
        world.finish(job, Exception("NO"))
        world.match_with_crash()
        assert world.work() == ["d"]
        assert world.find_run(run).status == "failed"

    at_every_write(scenario)


def test_run_with_all_jobs_skipped_ends_after_a_crash(at_every_write: AtEveryWrite) -> None:
    def scenario(world: CrashingWorld) -> None:
        run = world.run(
            {"name": "a"},
            {"name": "b", "depends_on": ["a"], "start_delay": 5},
            {"name": "c", "depends_on": ["b"]},
            failure_policy="continue_on_failure",
        )
        world.run_until_idle()
        job = world.claim()
        assert job is not None
        world.finish(job, Exception("NO"))
        world.match_with_crash()
        world.run_until_idle()
        assert world.find_run(run).status == "failed"

    at_every_write(scenario)


def test_dependent_of_a_false_condition_is_released_after_a_crash(at_every_write: AtEveryWrite) -> None:
    def scenario(world: CrashingWorld) -> None:
        run = world.run(
            {"name": "a", "condition": "`false`"},
            {"name": "b", "depends_on": ["a"], "trigger_rule": "none_failed"},
            {"name": "c", "depends_on": ["a"]},
        )
        world.machine.run()
        world.match_with_crash()
        assert world.work() == ["b"]
        assert world.statuses(run) == {"a": "skipped", "b": "completed", "c": "skipped"}
        assert world.find_run(run).status == "completed"

    at_every_write(scenario)


def test_run_is_cancelled_after_a_crash_during_its_cancellation(at_every_write: AtEveryWrite) -> None:
    def scenario(world: CrashingWorld) -> None:
        run = world.run({"name": "a"}, {"name": "b", "depends_on": ["a"]})
        world.run_until_idle()
        runs.request_cancel(world.ctx, NAMESPACE, run, actor=KEY)
        world.deliver_stream()
        (execution,) = world.machine.ready()
        world.run_with_crash(world.machine.run)
        if execution.status == "RUNNING" and execution.token is None:
            world.machine.stop(execution.name, "FAILED")
            supervisor.on_execution_ended(world.ctx, execution.data, "FAILED")
        world.run_until_idle()
        assert world.statuses(run) == {"a": "cancelled", "b": "cancelled"}
        assert world.find_run(run).status == "cancelled"

    at_every_write(scenario)
