"""An in-process interpreter for the state machine in `statemachines/`.

It implements the parts of the Amazon States Language that the definition uses. Calls of AWS go to a table and to a
function of the test. An execution that waits for its task token stops until the test wakes it.

https://states-language.net/spec.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEFINITION = Path(__file__).parents[2] / "statemachines" / "supervisor.asl.json"
FUNCTION = "${SupervisorFunctionArn}"
SDK = "arn:aws:states:::aws-sdk:dynamodb:"

Table = Callable[[str, Mapping[str, Any]], Any]
"""Function that runs an operation of the DynamoDB client. It raises StateFailed if the operation fails."""


class StateFailed(Exception):
    """Error of a failed state. Its text is the error name."""


@dataclass
class Execution:
    """One execution: its current state, its data, and the token that it waits for."""

    name: str
    state: str
    data: Any
    token: str | None = None
    status: str = "RUNNING"
    visited: list[str] = field(default_factory=list)


@dataclass
class Machine:
    """Executions by their names. `act` replaces the supervisor function."""

    table: Table
    act: Callable[[Mapping[str, Any]], Any]
    executions: dict[str, Execution] = field(default_factory=dict)
    definition: Any = field(default_factory=lambda: json.loads(DEFINITION.read_text()))
    _tokens: int = 0

    # Port of the services

    def start(self, name: str, event: str) -> None:
        if name not in self.executions:
            self.executions[name] = Execution(name=name, state=self.definition["StartAt"], data=json.loads(event))

    def wake(self, token: str) -> None:
        for execution in self.executions.values():
            if execution.token == token and execution.status == "RUNNING":
                execution.token = None
                self._advance(execution, {})

    def is_running(self, name: str) -> bool:
        return name in self.executions and self.executions[name].status == "RUNNING"

    # Methods for tests

    def ready(self) -> list[Execution]:
        """Return the running executions that do not wait for a token."""
        return [each for each in self.executions.values() if each.status == "RUNNING" and each.token is None]

    def stop(self, name: str, status: str = "ABORTED") -> None:
        """Stop an execution, as an operator does in the console."""
        self.executions[name].status = status
        self.executions[name].token = None

    def run(self) -> None:
        """Run every execution until it waits for a token or ends."""
        while ready := self.ready():
            for execution in ready:
                self.step(execution)

    def step(self, execution: Execution) -> None:
        """Run one state. If the function raises an error, the execution stays in this state and is retried."""
        state = self.definition["States"][execution.state]
        execution.visited.append(execution.state)
        try:
            if state["Type"] == "Choice":
                execution.state = self._chosen(state, execution.data)
            elif state["Type"] == "Succeed":
                execution.status = "SUCCEEDED"
            elif state["Type"] == "Pass":
                self._advance(execution, _filled(state["Parameters"], execution.data))
            elif state["Resource"].endswith(".waitForTaskToken"):
                self._tokens += 1
                token = f"token-{self._tokens}"
                request = _filled(state["Parameters"], execution.data, token)
                self.table(state["Resource"].removeprefix(SDK).removesuffix(".waitForTaskToken"), request)
                execution.token = token
            elif state["Resource"] == FUNCTION:
                self._advance(execution, self.act(_filled(state["Parameters"], execution.data)))
            else:
                request = _filled(state["Parameters"], execution.data)
                self._advance(execution, self.table(state["Resource"].removeprefix(SDK), request))
        except StateFailed as error:
            caught = [each for each in state.get("Catch", ()) if str(error) in each["ErrorEquals"]]
            if not caught:
                raise
            execution.state = caught[0]["Next"]

    def time_out(self, execution: Execution) -> None:
        """Apply the timeout of the token that the execution waits for."""
        state = self.definition["States"][execution.state]
        (caught,) = [each for each in state["Catch"] if "States.Timeout" in each["ErrorEquals"]]
        execution.token, execution.state = None, caught["Next"]

    def _advance(self, execution: Execution, result: Any) -> None:
        state = self.definition["States"][execution.state]
        path = state.get("ResultPath", "$")
        if "ResultSelector" in state:
            result = _filled(state["ResultSelector"], result)
        if path is not None:
            execution.data = {**execution.data, path.removeprefix("$."): result}
        if state.get("End"):
            execution.status = "SUCCEEDED"
        else:
            execution.state = state["Next"]

    def _chosen(self, state: Any, data: Any) -> str:
        return next((str(rule["Next"]) for rule in state["Choices"] if _matches(rule, data)), str(state["Default"]))


def _matches(rule: Any, data: Any) -> bool:
    if "And" in rule:
        return all(_matches(each, data) for each in rule["And"])
    if "Or" in rule:
        return any(_matches(each, data) for each in rule["Or"])
    present, value = _look_up(rule["Variable"], data)
    if "IsPresent" in rule:
        return bool(present == rule["IsPresent"])
    if "StringEquals" in rule:
        return bool(present and value == rule["StringEquals"])
    return bool(present and value > rule["NumericGreaterThan"])


def _look_up(path: str, data: Any) -> tuple[bool, Any]:
    for part in path.removeprefix("$.").split("."):
        if not isinstance(data, Mapping) or part not in data:
            return False, None
        data = data[part]
    return True, data


def _filled(parameters: Any, data: Any, token: str | None = None) -> Any:
    if isinstance(parameters, list):
        return [_filled(each, data, token) for each in parameters]
    if not isinstance(parameters, Mapping):
        return parameters
    filled = {}
    for name, value in parameters.items():
        if not name.endswith(".$"):
            filled[name] = _filled(value, data, token)
        elif value == "$$.Task.Token":
            filled[name.removesuffix(".$")] = token
        elif added := re.fullmatch(r"States\.MathAdd\((\$[.\w]+), (\d+)\)", value):
            filled[name.removesuffix(".$")] = _look_up(added[1], data)[1] + int(added[2])
        else:
            present, resolved = _look_up(value, data)
            if not present:
                raise StateFailed("States.ParameterPathFailure")
            filled[name.removesuffix(".$")] = resolved
    return filled
