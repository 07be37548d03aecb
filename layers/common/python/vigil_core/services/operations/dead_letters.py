"""List dead letters, and process them again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from vigil_core.domain.dead_letters import DeadLetter, InvalidDeadLetter, parse_dead_letter
from vigil_core.domain.errors import MalformedRequest
from vigil_core.domain.exact_json import loads
from vigil_core.gateways.dead_letter_bucket import DeadLetterBucket, StoredObject
from vigil_core.gateways.dead_letter_queue import DeadLetterQueue
from vigil_core.gateways.lambda_functions import FunctionResponse, LambdaFunctions

MAX_LISTED = 100
"""Maximum number of batches in a list. Each one is an object that must be read."""
MAX_INVOCATION = timedelta(seconds=75)
"""A redriven function may use its whole timeout of 60 s. No invocation starts with less time left than this."""


@dataclass(frozen=True, kw_only=True)
class DeadLettersContext:
    """The bucket and queues of dead letters, and the functions that consume them.

    `consumers` are the ARNs of the stream's consumers. Vigil invokes no other function, whatever a dead letter names.
    """

    bucket: DeadLetterBucket
    queues: Mapping[str, DeadLetterQueue]
    functions: LambdaFunctions
    consumers: Sequence[str]
    now: Callable[[], datetime]


@dataclass(frozen=True, kw_only=True)
class DeadLetterBatch:
    """A batch of stream records in the bucket.

    `problem` is the reason why the batch cannot be read, or why it failed again.
    """

    key: str
    stored_at: datetime
    dead_letter: DeadLetter | None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class DeadLetterList:
    """The oldest batches, the total number of batches, and the number of messages in each dead-letter queue."""

    batches: Sequence[DeadLetterBatch]
    total: int
    messages: Mapping[str, int]


@dataclass(kw_only=True)
class RedriveReport:
    """The result of one redrive. `not_tried` counts the batches for which no time was left."""

    batches: int = 0
    failed: list[DeadLetterBatch] = field(default_factory=list)
    not_tried: int = 0
    messages: dict[str, int] = field(default_factory=dict)


def list_dead_letters(ctx: DeadLettersContext) -> DeadLetterList:
    """Return the dead letters that exist now."""
    stored = ctx.bucket.list()
    return DeadLetterList(
        batches=[_read(ctx, item) for item in stored[:MAX_LISTED]],
        total=len(stored),
        messages={name: queue.count() for name, queue in ctx.queues.items()},
    )


def redrive(ctx: DeadLettersContext, until: datetime) -> RedriveReport:
    """Process dead letters again, oldest first, until there is no time left.

    Messages return to their source queues. Batches of stream records go to their consumers, and a batch leaves the
    bucket only when its consumer has processed every record.
    """
    report = RedriveReport()
    for name, queue in ctx.queues.items():
        report.messages[name] = 0
        while ctx.now() + MAX_INVOCATION < until and (moved := queue.redrive_batch()):
            report.messages[name] += moved
    stored = ctx.bucket.list()
    for position, item in enumerate(stored):
        if ctx.now() + MAX_INVOCATION >= until:
            report.not_tried = len(stored) - position
            break
        batch = _redrive_batch(ctx, _read(ctx, item))
        if batch.problem is None:
            report.batches += 1
        else:
            report.failed.append(batch)
    return report


def _read(ctx: DeadLettersContext, item: StoredObject) -> DeadLetterBatch:
    try:
        dead_letter = parse_dead_letter(ctx.bucket.read(item.key))
    except InvalidDeadLetter as error:
        return DeadLetterBatch(key=item.key, stored_at=item.stored_at, dead_letter=None, problem=error.message)
    return DeadLetterBatch(key=item.key, stored_at=item.stored_at, dead_letter=dead_letter)


def _redrive_batch(ctx: DeadLettersContext, batch: DeadLetterBatch) -> DeadLetterBatch:
    dead_letter = batch.dead_letter
    if dead_letter is None:
        return batch
    consumer = next((arn for arn in ctx.consumers if dead_letter.is_for(arn)), None)
    if consumer is None:
        problem: str | None = f"{dead_letter.function_arn} is not a consumer of this stack"
    else:
        problem = _failure_of(ctx.functions.invoke(consumer, dead_letter.event))
    if problem is None:
        ctx.bucket.remove(batch.key)
    return DeadLetterBatch(key=batch.key, stored_at=batch.stored_at, dead_letter=dead_letter, problem=problem)


def _failure_of(response: FunctionResponse) -> str | None:
    """Return the failure that a function reported; None only if it reported that no record failed."""
    try:
        body = loads(response.body)
    except MalformedRequest:
        return "the response of the function is not valid JSON"
    fields = body if isinstance(body, Mapping) else {}
    if response.failed:
        return f"the function failed: {fields.get('errorType', 'Unknown')}: {fields.get('errorMessage', '')}"
    failures = fields.get("batchItemFailures")
    if not isinstance(failures, list):
        return "the function did not report which records failed"
    return f"{len(failures)} records failed again" if failures else None
