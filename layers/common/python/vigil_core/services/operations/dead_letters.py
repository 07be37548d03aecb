"""Look at what was given up, and do it again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from vigil_core.domain.dead_letters import DeadLetter, InvalidDeadLetter, parse_dead_letter
from vigil_core.domain.errors import MalformedRequest
from vigil_core.domain.exact_json import loads
from vigil_core.gateways.dead_letter_bucket import DeadLetterBucket, StoredObject
from vigil_core.gateways.dead_letter_queue import DeadLetterQueue
from vigil_core.gateways.lambda_functions import FunctionResponse, LambdaFunctions

MAX_LISTED = 100
"""Batches of the bucket that a list shows: each is an object to read."""
MAX_INVOCATION = timedelta(seconds=75)
"""A redriven function may take its whole timeout of 60 s, so none is started with less time than this left."""


@dataclass(frozen=True, kw_only=True)
class DeadLetterBatch:
    """A batch of stream records in the bucket; `problem` says why it cannot be read, or why it failed again."""

    key: str
    stored_at: datetime
    dead_letter: DeadLetter | None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class DeadLetterList:
    """The oldest batches, how many there are in all, and how many messages lie in each dead-letter queue."""

    batches: Sequence[DeadLetterBatch]
    total: int
    messages: Mapping[str, int]


@dataclass(kw_only=True)
class RedriveReport:
    """What one redrive did. `left` was not tried for want of time: ask again."""

    batches: int = 0
    failed: list[DeadLetterBatch] = field(default_factory=list)
    not_tried: int = 0
    messages: dict[str, int] = field(default_factory=dict)


class DeadLetters:
    """`consumers` are the ARNs of the stream's consumers: nothing else is ever invoked, whatever a letter says."""

    def __init__(
        self,
        *,
        bucket: DeadLetterBucket,
        queues: Mapping[str, DeadLetterQueue],
        functions: LambdaFunctions,
        consumers: Iterable[str],
        now: Callable[[], datetime],
    ) -> None:
        self._bucket = bucket
        self._queues = queues
        self._functions = functions
        self._consumers = tuple(consumers)
        self._now = now

    def list(self) -> DeadLetterList:
        """What lies there now."""
        stored = self._bucket.list()
        return DeadLetterList(
            batches=[self._read(item) for item in stored[:MAX_LISTED]],
            total=len(stored),
            messages={name: queue.count() for name, queue in self._queues.items()},
        )

    def redrive(self, until: datetime) -> RedriveReport:
        """Move messages home and run the consumers over the batches, oldest first, as long as there is time. A batch
        leaves the bucket only once every record in it has been handled."""
        report = RedriveReport()
        for name, queue in self._queues.items():
            report.messages[name] = 0
            while self._now() + MAX_INVOCATION < until and (moved := queue.redrive_batch()):
                report.messages[name] += moved
        stored = self._bucket.list()
        for position, item in enumerate(stored):
            if self._now() + MAX_INVOCATION >= until:
                report.not_tried = len(stored) - position
                break
            batch = self._redrive_batch(self._read(item))
            if batch.problem is None:
                report.batches += 1
            else:
                report.failed.append(batch)
        return report

    def _read(self, item: StoredObject) -> DeadLetterBatch:
        try:
            dead_letter = parse_dead_letter(self._bucket.read(item.key))
        except InvalidDeadLetter as error:
            return DeadLetterBatch(key=item.key, stored_at=item.stored_at, dead_letter=None, problem=error.message)
        return DeadLetterBatch(key=item.key, stored_at=item.stored_at, dead_letter=dead_letter)

    def _redrive_batch(self, batch: DeadLetterBatch) -> DeadLetterBatch:
        dead_letter = batch.dead_letter
        if dead_letter is None:
            return batch
        consumer = next((arn for arn in self._consumers if dead_letter.is_for(arn)), None)
        if consumer is None:
            problem: str | None = f"{dead_letter.function_arn} is no consumer of this stack"
        else:
            problem = _failure_of(self._functions.invoke(consumer, dead_letter.event))
        if problem is None:
            self._bucket.remove(batch.key)
        return DeadLetterBatch(key=batch.key, stored_at=batch.stored_at, dead_letter=dead_letter, problem=problem)


def _failure_of(answer: FunctionResponse) -> str | None:
    """None only for an answer that says that no record failed."""
    try:
        body = loads(answer.body)
    except MalformedRequest:
        return "the function's answer is no JSON"
    fields = body if isinstance(body, Mapping) else {}
    if answer.failed:
        return f"the function failed: {fields.get('errorType', 'Unknown')}: {fields.get('errorMessage', '')}"
    failures = fields.get("batchItemFailures")
    if not isinstance(failures, list):
        return "the function did not say which records failed"
    return f"{len(failures)} records failed again" if failures else None
