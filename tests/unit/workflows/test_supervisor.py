"""The state machine that supervises a run, state by state; the test acts as its tasks."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.state_machine import FUNCTION, Execution, Machine, StateFailed
from vigil_core.services.workflows import supervisor as supervise

EVENT = (
    '{"pk": "team#workflow#r", "namespace": "team", "workflow_id": "r", "generation": "2", "supervisor": "3", '
    '"supervisor_id": "2-3", "progress": {"loops": 0}}'
)
TOKEN_STATES = ["AwaitSignal", "AwaitDecision"]


def text(value: str) -> dict[str, str]:
    return {"S": value}


YES = {"BOOL": True}


@dataclass
class Stage:
    """A machine with one execution, on a row of a run that the test fills in."""

    facts: dict[str, Any] = field(default_factory=dict)
    asked: list[Mapping[str, Any]] = field(default_factory=list)
    writes: list[Mapping[str, Any]] = field(default_factory=list)
    trouble: str | None = None

    def __post_init__(self) -> None:
        self.machine = Machine(table=self._table, act=self._act)
        self.machine.start("r-2-3", EVENT)
        self.execution = self.machine.executions["r-2-3"]

    def _act(self, event: Mapping[str, Any]) -> Any:
        self.asked.append(event)
        return {}

    def _table(self, operation: str, request: Mapping[str, Any]) -> Any:
        if operation == "getItem":
            policy = {"failure_policy": text("fail_fast"), "status": text("running"), "signal_count": {"N": "4"}}
            return {"Item": {**policy, **self.facts}}
        if self.trouble is not None:
            raise StateFailed(self.trouble)
        self.writes.append(request)
        return {}

    def begin(self) -> None:
        """Start the execution, then wake it by a change of the row that shows unhandled signals."""
        while self.execution.token is None:
            self.machine.step(self.execution)
        self.machine.wake(self.execution.token)

    def run(self) -> Execution:
        """Run until no unhandled signal is left."""
        if not self.execution.visited:
            self.begin()
        self.machine.run()
        return self.execution


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ({}, "AwaitSignal"),
        ({"drained": YES}, "Finalise"),
        ({"drained": YES, "cancel_requested_by": text("key")}, "Finalise"),
        ({"cancel_requested_by": text("key")}, "CancelRemaining"),
        ({"deadline_passed": YES}, "CancelRemaining"),
        ({"aborted": YES}, "CancelRemaining"),
        ({"failed_job": text("a")}, "CancelRemaining"),
        ({"failed_job": text("a"), "failure_policy": text("continue_on_failure")}, "AwaitSignal"),
        ({"failed_job": text("a"), "failure_policy": text("manual")}, "AwaitSignal"),
        ({"failed_job": text("a"), "failure_policy": text("manual"), "status": text("paused")}, "AwaitDecision"),
        ({"failure_policy": text("manual"), "status": text("paused"), "has_pending_decisions": YES}, "ApplyDecisions"),
        ({"failure_policy": text("manual"), "status": text("paused"), "deadline_passed": YES}, "CancelRemaining"),
        ({"status": text("paused")}, "AwaitSignal"),
    ],
)
def test_next_state_follows_from_the_signals(facts: dict[str, Any], state: str) -> None:
    stage = Stage(facts)
    stage.begin()
    while stage.execution.state != "SelectNextState":
        stage.machine.step(stage.execution)
    stage.machine.step(stage.execution)
    assert stage.execution.state == state
    told = {"namespace": "team", "workflow_id": "r", "supervisor_id": "2-3"}
    assert stage.asked == [{"action": "start", **told}]
    stage.machine.step(stage.execution)
    actions = {
        "Finalise": "finalise",
        "CancelRemaining": "cancel_remaining",
        "ApplyDecisions": "apply_decisions",
    }
    assert stage.asked[1:] == ([{"action": actions[state], **told}] if state in actions else [])
    assert (stage.execution.token is None) == (state in actions)
    assert stage.execution.status == ("SUCCEEDED" if state == "Finalise" else "RUNNING")


@pytest.mark.parametrize("state", TOKEN_STATES)
def test_waiting_state_stores_its_token_and_seen_signals(state: str) -> None:
    manual = {"failure_policy": text("manual"), "status": text("paused")}
    stage = Stage(manual if state == "AwaitDecision" else {})
    execution = stage.run()
    assert execution.state == state
    first, write = stage.writes
    assert first["ExpressionAttributeValues"][":seen_signals"] == {"N": "0"}, "whatever is a fact already wakes it"
    assert write["Key"] == {"pk": text("team#workflow#r"), "sk": text("A")}
    assert write["ConditionExpression"] == "generation = :generation AND supervisor = :supervisor"
    assert write["ExpressionAttributeValues"] == {
        ":token": text(str(execution.token)),
        ":supervisor_id": text("2-3"),
        ":seen_signals": {"N": "4"},
        ":generation": {"N": "2"},
        ":supervisor": {"N": "3"},
    }


@pytest.mark.parametrize("state", TOKEN_STATES)
def test_woken_or_timed_out_execution_reads_the_run_again(state: str) -> None:
    stage = Stage({"failure_policy": text("manual"), "status": text("paused")} if state == "AwaitDecision" else {})
    execution = stage.run()
    stage.machine.wake(str(execution.token))
    assert execution.state == "ReadRun"
    stage.run()
    assert execution.state == state
    stage.machine.time_out(execution)
    assert execution.state == "ReadRun"
    stage.facts["drained"] = YES
    assert stage.run().status == "SUCCEEDED"
    assert stage.asked[-1]["action"] == "finalise"


@pytest.mark.parametrize("state", TOKEN_STATES)
def test_superseded_execution_ends_without_action(state: str) -> None:
    stage = Stage({"failure_policy": text("manual"), "status": text("paused")} if state == "AwaitDecision" else {})
    stage.begin()
    stage.trouble = "DynamoDb.ConditionalCheckFailedException"
    execution = stage.run()
    assert execution.status == "SUCCEEDED"
    assert execution.visited[-2:] == [state, "Superseded"]
    assert [event["action"] for event in stage.asked] == ["start"]


def test_each_execution_cancels_the_remaining_jobs_once() -> None:
    """Note: a successor cannot know whether its predecessor got this far."""
    for stage in (Stage({"cancel_requested_by": text("key")}) for _ in range(2)):
        for _ in range(3):
            execution = stage.run()
            assert execution.state == "AwaitSignal"
            stage.machine.wake(str(execution.token))
        assert [event["action"] for event in stage.asked] == ["start", "cancel_remaining"]


def test_successor_starts_after_two_hundred_loops() -> None:
    stage = Stage()
    for _ in range(200):
        execution = stage.run()
        assert execution.state == "AwaitSignal"
        stage.machine.wake(str(execution.token))
    assert stage.run().status == "SUCCEEDED"
    assert stage.execution.visited[-2:] == ["StartSuccessor", "Superseded"]
    assert stage.asked[-1] == {
        "action": "start_successor",
        "namespace": "team",
        "workflow_id": "r",
        "supervisor_id": "2-3",
    }
    assert len(stage.execution.visited) * 5 < 25_000, "what an execution's history may hold"


def test_drained_run_is_finalised_even_after_two_hundred_loops() -> None:
    stage = Stage({"drained": YES})
    stage.execution.data["progress"]["loops"] = 500
    stage.run()
    assert [event["action"] for event in stage.asked] == ["start", "finalise"]


def test_exception_of_the_function_is_retried() -> None:
    stage = Stage()
    failures = [RuntimeError("throttled"), None]

    def act(event: Mapping[str, Any]) -> Any:
        if (failure := failures.pop(0)) is not None:
            raise failure
        return stage._act(event)

    stage.machine.act = act
    with pytest.raises(RuntimeError):
        stage.machine.step(stage.execution)
    assert stage.execution.state == "Start"
    stage.begin()
    assert [event["action"] for event in stage.asked] == ["start"]


def test_every_task_state_has_retries_and_a_timeout() -> None:
    states = Machine(table=lambda *_: {}, act=lambda _: {}).definition["States"]
    for name, state in states.items():
        if state["Type"] != "Task":
            assert "Retry" not in state, name
            continue
        assert any("States.ALL" in each["ErrorEquals"] and each["MaxAttempts"] > 3 for each in state["Retry"]), name
        waits = state["Resource"].endswith(".waitForTaskToken")
        assert waits == (name in TOKEN_STATES)
        if waits:
            # A literal time: TimeoutSecondsPath would need it in the input of each execution.
            assert isinstance(state["TimeoutSeconds"], int)
            assert 3_600 <= state["TimeoutSeconds"] <= 30 * 86_400
            caught = {error: each["Next"] for each in state["Catch"] for error in each["ErrorEquals"]}
            assert caught == {
                "DynamoDb.ConditionalCheckFailedException": "Superseded",
                "States.Timeout": "ReadRun",
            }
            never = [each for each in state["Retry"] if each["MaxAttempts"] == 0]
            assert never == state["Retry"][:1], "what is caught is not tried again first"
            assert set(never[0]["ErrorEquals"]) == caught.keys()


def test_every_state_is_reachable_and_leads_to_another() -> None:
    definition = Machine(table=lambda *_: {}, act=lambda _: {}).definition
    states = definition["States"]
    reached = {definition["StartAt"]}
    for state in states.values():
        reached |= {state[key] for key in ("Next", "Default") if key in state}
        reached |= {each["Next"] for each in (*state.get("Catch", ()), *state.get("Choices", ()))}
    assert reached == states.keys()


def test_state_machine_actions_match_the_function() -> None:
    states = Machine(table=lambda *_: {}, act=lambda _: {}).definition["States"]
    asked = {state["Parameters"]["action"] for state in states.values() if state.get("Resource") == FUNCTION}
    tree = ast.parse(inspect.getsource(supervise.supervise))
    known = {
        case.pattern.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Match)
        for case in node.cases
        if isinstance(case.pattern, ast.MatchValue) and isinstance(case.pattern.value, ast.Constant)
    }
    assert asked == known
