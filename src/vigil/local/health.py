"""The health of the local cloud: its processes, its API, its state, and every stream reader, queue and timer."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from typing import Any

from vigil.local.cloud import http_status
from vigil.local.condition import clock_time, state_condition
from vigil.local.stack import Stack, client_config, session
from vigil.local.state_dir import StateDir, read_json


@dataclass(frozen=True)
class Health:
    """The current state of the local cloud. `api_status` is the status of GET /openapi.json, or None.

    `queues` and `timers` have `name` and `problem`.
    """

    running: bool
    stack: Stack | None
    api_status: int | None = None
    readers: list[dict[str, Any]] = field(default_factory=list)
    dead_letters: int | None = None
    queues: list[dict[str, Any]] = field(default_factory=list)
    timers: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_healthy(self) -> bool:
        """Whether the local cloud runs, its API answers, and nothing has a problem."""
        return self.running and self.api_status == 200 and not self.problems


def health(state_dir: StateDir) -> Health:
    """Return the current state of the local cloud.

    Raises:
        LocalError: The stack file is invalid.
    """
    running = state_dir.supervisor.alive and state_dir.emulator.alive
    stack = Stack.read(state_dir.stack_file)
    if not running or stack is None:
        return Health(running=running, stack=stack)
    condition = state_condition(stack.endpoint_url)
    return Health(
        running=True,
        stack=stack,
        api_status=http_status(f"{stack.api_url}/openapi.json"),
        readers=(read_json(state_dir.streams_file) or {}).get("readers", []),
        dead_letters=_dead_letters(stack),
        queues=(condition or {}).get("queues", []),
        timers=(condition or {}).get("timers", []),
        problems=problems_of(condition),
    )


def problems_of(condition: dict[str, Any] | None) -> list[str]:
    """Return the problems of the state, the queues and the timers as lines of text."""
    if condition is None:
        return ["The emulator does not report its condition."]
    problems = []
    if condition["failure"] is not None:
        problems.append(
            f"The state cannot be saved since {clock_time(condition['failed_at'])} ({condition['failure']}). "
            "Writes are refused until it can; the last good files remain."
        )
    for kind in ("queue", "timer"):
        problems += [
            f"The {kind} {entry['name']} does not work: {entry['problem']}."
            for entry in condition[f"{kind}s"]
            if entry["problem"]
        ]
    return problems


def _dead_letters(stack: Stack) -> int | None:
    """Count the dead letters in the bucket and in the queues. Return None if the emulator does not answer."""
    from botocore.exceptions import BotoCoreError, ClientError

    aws = session()
    buckets = aws.client("s3", endpoint_url=stack.endpoint_url, config=client_config())
    queues = aws.client("sqs", endpoint_url=stack.endpoint_url, config=client_config())
    with contextlib.suppress(BotoCoreError, ClientError):
        pages = buckets.get_paginator("list_objects_v2").paginate(Bucket=stack.dead_letter_bucket)
        count = sum(page.get("KeyCount", 0) for page in pages)
        for url in (stack.fan_out_queue_url, stack.sweeper_queue_url):
            attributes = queues.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])["Attributes"]
            arn = json.loads(attributes["RedrivePolicy"])["deadLetterTargetArn"]
            queue_url = queues.get_queue_url(QueueName=arn.split(":")[-1])["QueueUrl"]
            attributes_of_queue = queues.get_queue_attributes(
                QueueUrl=queue_url, AttributeNames=["ApproximateNumberOfMessages"]
            )
            count += int(attributes_of_queue["Attributes"]["ApproximateNumberOfMessages"])
        return count
    return None
