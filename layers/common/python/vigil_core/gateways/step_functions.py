"""The state machine whose executions supervise runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions.client import SFNClient

_TOKEN_EXPIRED_CODES = {"TaskDoesNotExist", "TaskTimedOut", "InvalidToken"}
"""A token of a task that is not waiting any more: it was woken before, or its execution is gone."""


class StepFunctionsSupervisors:
    """Executions of one state machine, by their names, which AWS keeps for 90 days after they have ended. The client is
    made when it is first needed."""

    def __init__(self, client: Callable[[], SFNClient], state_machine_arn: str | None) -> None:
        self._client = client
        self._state_machine_arn = state_machine_arn or ""

    def start(self, name: str, event: str) -> None:
        """Start an execution. One of that name, whatever became of it, is as good."""
        client = self._client()
        try:
            client.start_execution(stateMachineArn=self._state_machine_arn, name=name, input=event)
        except client.exceptions.ExecutionAlreadyExists:
            return

    def wake(self, token: str) -> None:
        """Have an execution that waits go on. One that waits no longer is as good."""
        client = self._client()
        try:
            client.send_task_success(taskToken=token, output="{}")
        except client.exceptions.ClientError as error:
            if error.response["Error"]["Code"] not in _TOKEN_EXPIRED_CODES:
                raise

    def is_running(self, name: str) -> bool:
        """Whether there is an execution of that name that has not ended."""
        client = self._client()
        arn = f"{self._state_machine_arn.replace(':stateMachine:', ':execution:')}:{name}"
        try:
            return client.describe_execution(executionArn=arn)["status"] == "RUNNING"
        except client.exceptions.ExecutionDoesNotExist:
            return False
