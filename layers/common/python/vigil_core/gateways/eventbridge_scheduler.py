"""Timers that invoke the sweeper: one-time schedules of EventBridge Scheduler."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from vigil_core.domain.exact_json import to_ascii

if TYPE_CHECKING:
    from mypy_boto3_scheduler.client import EventBridgeSchedulerClient

MIN_DELAY = timedelta(seconds=5)
"""EventBridge Scheduler may ignore a schedule whose time has passed when it is created."""


class SchedulerTimers:
    """One-time schedules in the schedule group of the stack, which delete themselves after they fire.

    The client is created with the first timer, because most requests start none. A function without these settings
    can start no timer.

    Args:
        client: Creates the client of EventBridge Scheduler.
        group: The name of the schedule group.
        function_arn: The function that a timer invokes.
        role_arn: The role that may invoke it.
        now: The clock.
    """

    def __init__(
        self,
        client: Callable[[], EventBridgeSchedulerClient],
        *,
        group: str | None,
        function_arn: str | None,
        role_arn: str | None,
        now: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._group = group or ""
        self._function_arn = function_arn or ""
        self._role_arn = role_arn or ""
        self._now = now

    def start(self, name: str, at: datetime, event: str) -> None:
        """Start a timer that invokes the function with an event (JSON text) at a time, at most a minute late."""
        client = self._client()
        fire_at = max(at, self._now() + MIN_DELAY).astimezone(UTC)
        try:
            client.create_schedule(
                Name=name,
                GroupName=self._group,
                ScheduleExpression=f"at({fire_at:%Y-%m-%dT%H:%M:%S})",
                ScheduleExpressionTimezone="UTC",
                FlexibleTimeWindow={"Mode": "OFF"},
                ActionAfterCompletion="DELETE",
                Target={
                    "Arn": self._function_arn,
                    "RoleArn": self._role_arn,
                    "Input": to_ascii(event),
                    # After that time, the sweep does the work of a lost timer.
                    "RetryPolicy": {"MaximumEventAgeInSeconds": 60, "MaximumRetryAttempts": 3},
                },
            )
        except client.exceptions.ConflictException:
            return  # The timer exists.

    def cancel(self, name: str) -> None:
        """Delete a timer, if it exists."""
        client = self._client()
        try:
            client.delete_schedule(Name=name, GroupName=self._group)
        except client.exceptions.ResourceNotFoundException:
            return
