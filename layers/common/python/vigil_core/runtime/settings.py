"""Settings from environment variables: frozen dataclasses, built on first use."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from vigil_core.domain.errors import VigilError
from vigil_core.domain.jobs.retention import DEFAULT_RETENTION
from vigil_core.domain.outbound_policy import parse_allowed_hosts

DEFAULT_CONCURRENCY = 10
"""The concurrent executions of a new AWS account."""


class MissingSetting(VigilError):
    """The environment lacks a variable that the template sets."""

    code = "MISSING_SETTING"
    transient = True


def setting(name: str) -> str:
    """Read an environment variable, or raise MissingSetting with its name if it is absent or empty."""
    value = os.environ.get(name)
    if not value:
        raise MissingSetting(f"The environment variable {name} is not set", variable=name)
    return value


@dataclass(frozen=True, kw_only=True)
class CoreSettings:
    """Settings of every function that works with jobs and waits.

    Optional settings are None in functions that do not use them: the queue URLs, the HTTP executor's name (dispatching
    functions only), the consumers of the stream (functions that retry their records only), the timer group, its role
    and the sweeper's ARN (scheduling functions only), the payload bucket, and the supervisor state machine (workflow
    functions only).
    """

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
    matcher_function: str | None
    notifier_function: str | None
    retention: timedelta
    queue_partitions: int
    concurrency: int
    """The concurrent executions of all functions of the account."""

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings, or raise MissingSetting."""
        return cls(
            table_name=setting("TABLE_NAME"),
            queue_partitions=int(os.environ.get("QUEUE_PARTITIONS", "1")),
            concurrency=int(os.environ.get("CONCURRENCY", DEFAULT_CONCURRENCY)),
            fan_out_queue_url=os.environ.get("FAN_OUT_QUEUE_URL"),
            sweeper_queue_url=os.environ.get("SWEEPER_QUEUE_URL"),
            http_executor_function=os.environ.get("HTTP_EXECUTOR_FUNCTION"),
            webhooks_queue_url=os.environ.get("WEBHOOKS_QUEUE_URL"),
            timer_group=os.environ.get("TIMER_GROUP"),
            timer_role=os.environ.get("TIMER_ROLE"),
            sweeper_function=os.environ.get("SWEEPER_FUNCTION"),
            payload_bucket=os.environ.get("PAYLOAD_BUCKET"),
            supervisor_machine=os.environ.get("SUPERVISOR_MACHINE"),
            matcher_function=os.environ.get("MATCHER_FUNCTION"),
            notifier_function=os.environ.get("NOTIFIER_FUNCTION"),
            retention=timedelta(days=int(os.environ.get("RETENTION_DAYS", DEFAULT_RETENTION.days))),
        )


@dataclass(frozen=True, kw_only=True)
class StreamConsumerSettings:
    """Settings of the functions that consume the stream: the bucket for records that they cannot process."""

    dead_letter_bucket: str

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings, or raise MissingSetting."""
        return cls(dead_letter_bucket=setting("DEAD_LETTER_BUCKET"))


@dataclass(frozen=True, kw_only=True)
class HttpExecutorSettings:
    """Settings of the HTTP executor. A secret's name begins with the prefix and a namespace."""

    secrets_prefix: str

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings, or raise MissingSetting."""
        return cls(secrets_prefix=setting("SECRETS_PREFIX"))


@dataclass(frozen=True, kw_only=True)
class AuthorizerSettings:
    """Settings of the authorizer."""

    table_name: str

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings, or raise MissingSetting."""
        return cls(table_name=setting("TABLE_NAME"))


@dataclass(frozen=True, kw_only=True)
class AdminSettings:
    """Settings of the admin function, in addition to those of the core and the WebSockets."""

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
        """Read the settings, or raise MissingSetting."""
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
    """Settings of every function that sends to WebSockets."""

    websocket_endpoint: str

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings, or raise MissingSetting."""
        return cls(websocket_endpoint=setting("WEBSOCKET_ENDPOINT"))


@dataclass(frozen=True, kw_only=True)
class NotifierSettings:
    """Settings of the notifier.

    SNS receives the ends of jobs, and with `all_changes` every other change of a job too.
    """

    topic_arn: str
    all_changes: bool

    @classmethod
    def from_environment(cls) -> Self:
        """Read the settings, or raise MissingSetting. `SNS_JOB_EVENTS` is `endings` or `all`."""
        return cls(
            topic_arn=setting("TOPIC_ARN"),
            all_changes=os.environ.get("SNS_JOB_EVENTS") == "all",
        )


@dataclass(frozen=True, kw_only=True)
class OutboundSettings:
    """Settings of every function that checks or calls targets of users.

    Vigil may call the private hosts of the list. It never invokes its own functions, whose names begin with that of the
    stack.
    """

    allowed_private_hosts: frozenset[str]
    stack_name: str

    @classmethod
    def from_environment(cls) -> Self:
        """Read `ALLOWED_PRIVATE_HOSTS`, which is empty or a list with commas, and `STACK_NAME`."""
        return cls(
            allowed_private_hosts=parse_allowed_hosts(os.environ.get("ALLOWED_PRIVATE_HOSTS", "")),
            stack_name=os.environ.get("STACK_NAME", ""),
        )
