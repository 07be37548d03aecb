"""Alarms for the sweeper, on EventBridge Scheduler: schedules that fire once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_boto3_scheduler.client import EventBridgeSchedulerClient

MIN_DELAY = timedelta(seconds=5)
"""A time that has passed when the schedule is made might never come."""


class SchedulerTimers:
    """One-time schedules of the stack's own group, which vanish once they have fired. Without the settings, a function
    has no way to them. The client is made when the first alarm is armed: most requests arm none."""

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
        """Have the function invoked with an event, which is JSON text, within a minute after that time."""
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
                    "Input": event,
                    # The sweep finds what was not delivered by then.
                    "RetryPolicy": {"MaximumEventAgeInSeconds": 60, "MaximumRetryAttempts": 3},
                },
            )
        except client.exceptions.ConflictException:
            return  # armed already

    def cancel(self, name: str) -> None:
        """Forget an alarm, if there is one."""
        client = self._client()
        try:
            client.delete_schedule(Name=name, GroupName=self._group)
        except client.exceptions.ResourceNotFoundException:
            return
