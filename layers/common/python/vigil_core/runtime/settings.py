"""What a function is told by its environment: one frozen class a function, built on first use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from vigil_core.domain.errors import VigilError
from vigil_core.domain.jobs.retention import DEFAULT_RETENTION
from vigil_core.domain.outbound_policy import parse_allowed_hosts


class MissingSetting(VigilError):
    """A variable that the template sets is not in the environment."""

    code = "MISSING_SETTING"


def setting(name: str) -> str:
    """The value of an environment variable. Raises MissingSetting, naming it, when it is absent or empty."""
    value = os.environ.get(name)
    if not value:
        raise MissingSetting(f"The environment variable {name} is not set", variable=name)
    return value


@dataclass(frozen=True, kw_only=True)
class CoreSettings:
    """For every function that works with jobs and waits. A queue's URL is None for those that send nothing there, the
    caller's name for those that dispatch no jobs, what the sweeper's alarms need for those that arm none, the state
    machine for those that have nothing to do with supervisors."""

    table_name: str
    fan_out_queue_url: str | None
    sweeper_queue_url: str | None
    http_executor_function: str | None
    webhooks_queue_url: str | None
    timer_group: str | None
    timer_role: str | None
    sweeper_function: str | None
    payload_bucket: str | None
    supervisor_machine: str | None
    retention: timedelta
    queue_partitions: int

    @classmethod
    def from_environment(cls) -> Self:
        """Raises MissingSetting."""
        return cls(
            table_name=setting("TABLE_NAME"),
            queue_partitions=int(os.environ.get("QUEUE_PARTITIONS", "1")),
            fan_out_queue_url=os.environ.get("FAN_OUT_QUEUE_URL"),
            sweeper_queue_url=os.environ.get("SWEEPER_QUEUE_URL"),
            http_executor_function=os.environ.get("HTTP_EXECUTOR_FUNCTION"),
            webhooks_queue_url=os.environ.get("WEBHOOKS_QUEUE_URL"),
            timer_group=os.environ.get("ALARM_GROUP"),
            timer_role=os.environ.get("ALARM_ROLE"),
            sweeper_function=os.environ.get("SWEEPER_FUNCTION"),
            payload_bucket=os.environ.get("BODIES_BUCKET"),
            supervisor_machine=os.environ.get("SUPERVISOR_MACHINE"),
            retention=timedelta(days=int(os.environ.get("RETENTION_DAYS", DEFAULT_RETENTION.days))),
        )


@dataclass(frozen=True, kw_only=True)
class HttpExecutorSettings:
    """For the function that calls HTTP targets. Secrets are those whose names begin with the prefix and a namespace."""

    secrets_prefix: str

    @classmethod
    def from_environment(cls) -> Self:
        """Raises MissingSetting."""
        return cls(secrets_prefix=setting("SECRETS_PREFIX"))


@dataclass(frozen=True, kw_only=True)
class AuthorizerSettings:
    """For the authorizer."""

    table_name: str

    @classmethod
    def from_environment(cls) -> Self:
        """Raises MissingSetting."""
        return cls(table_name=setting("TABLE_NAME"))


@dataclass(frozen=True, kw_only=True)
class AdminSettings:
    """For the admin function, beside the core's and the sockets'. `*_url` are queues, `*_function` ARNs."""

    dead_letter_bucket: str
    matcher_function: str
    notifier_function: str
    fan_out_queue_url: str
    fan_out_dead_letter_queue_url: str
    sweeper_queue_url: str
    sweeper_dead_letter_queue_url: str
    webhooks_queue_url: str
    webhooks_dead_letter_queue_url: str

    @classmethod
    def from_environment(cls) -> Self:
        """Raises MissingSetting."""
        return cls(
            dead_letter_bucket=setting("DEAD_LETTER_BUCKET"),
            matcher_function=setting("MATCHER_FUNCTION"),
            notifier_function=setting("NOTIFIER_FUNCTION"),
            fan_out_queue_url=setting("FAN_OUT_QUEUE_URL"),
            fan_out_dead_letter_queue_url=setting("FAN_OUT_DEAD_LETTER_QUEUE_URL"),
            sweeper_queue_url=setting("SWEEPER_QUEUE_URL"),
            sweeper_dead_letter_queue_url=setting("SWEEPER_DEAD_LETTER_QUEUE_URL"),
            webhooks_queue_url=setting("WEBHOOKS_QUEUE_URL"),
            webhooks_dead_letter_queue_url=setting("WEBHOOKS_DEAD_LETTER_QUEUE_URL"),
        )


@dataclass(frozen=True, kw_only=True)
class WebSocketSettings:
    """For every function that talks to WebSockets."""

    websocket_endpoint: str

    @classmethod
    def from_environment(cls) -> Self:
        """Raises MissingSetting."""
        return cls(websocket_endpoint=setting("WEBSOCKET_ENDPOINT"))


@dataclass(frozen=True, kw_only=True)
class NotifierSettings:
    """For the notifier. SNS hears of endings, and of every other change of a job too with `all_changes`."""

    topic_arn: str
    all_changes: bool

    @classmethod
    def from_environment(cls) -> Self:
        """`SNS_JOB_EVENTS` is `endings` or `all`. Raises MissingSetting."""
        return cls(
            topic_arn=setting("TOPIC_ARN"),
            all_changes=os.environ.get("SNS_JOB_EVENTS") == "all",
        )


@dataclass(frozen=True, kw_only=True)
class OutboundSettings:
    """For every function that sends requests to addresses that users name: the private hosts that it may send to."""

    allowed_private_hosts: frozenset[str]

    @classmethod
    def from_environment(cls) -> Self:
        """`ALLOWED_PRIVATE_HOSTS` is a list with commas, or empty."""
        return cls(allowed_private_hosts=parse_allowed_hosts(os.environ.get("ALLOWED_PRIVATE_HOSTS", "")))
