"""The Step Functions state machine whose executions supervise workflow runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vigil_core.domain.exact_json import to_ascii

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions.client import SFNClient

_TOKEN_EXPIRED_CODES = {"TaskDoesNotExist", "TaskTimedOut", "InvalidToken"}
"""Errors of a token whose task waits no longer: it was woken before, or its execution has ended."""


class StepFunctionsSupervisors:
    """Executions of one state machine, identified by name.

    AWS keeps the name of an ended execution for 90 days. The client is created with the first call.
    """

    def __init__(self, client: Callable[[], SFNClient], state_machine_arn: str | None) -> None:
        self._client = client
        self._state_machine_arn = state_machine_arn or ""

    def start(self, name: str, event: str) -> None:
        """Start an execution; do nothing if an execution of that name exists, running or ended."""
        client = self._client()
        try:
            client.start_execution(stateMachineArn=self._state_machine_arn, name=name, input=to_ascii(event))
        except client.exceptions.ExecutionAlreadyExists:
            return

    def wake(self, token: str) -> None:
        """Continue a waiting execution; do nothing if it waits no longer."""
        client = self._client()
        try:
            client.send_task_success(taskToken=token, output="{}")
        except client.exceptions.ClientError as error:
            if error.response["Error"]["Code"] not in _TOKEN_EXPIRED_CODES:
                raise

    def is_running(self, name: str) -> bool:
        """Return whether an execution of that name is running."""
        client = self._client()
        arn = f"{self._state_machine_arn.replace(':stateMachine:', ':execution:')}:{name}"
        try:
            return client.describe_execution(executionArn=arn)["status"] == "RUNNING"
        except client.exceptions.ExecutionDoesNotExist:
            return False
