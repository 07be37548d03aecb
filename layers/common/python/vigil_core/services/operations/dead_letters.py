"""Look at what was given up, and do it again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from vigil_core.domain.dead_letters import DeadLetter, NoDeadLetter, parse_dead_letter
from vigil_core.domain.errors import MalformedRequest
from vigil_core.domain.exact_json import loads
from vigil_core.gateways.dead_letter_bucket import DeadLetterBucket, StoredObject
from vigil_core.gateways.dead_letter_queue import DeadLetterQueue
from vigil_core.gateways.lambda_functions import FunctionAnswer, Functions

SHOWN = 100
"""Batches of the bucket that a list shows: each is an object to read."""
LONGEST_RUN = timedelta(seconds=75)
"""A redriven function may take its whole timeout of 60 s, so none is started with less time than this left."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of stream records in the bucket; `problem` says why it cannot be read, or why it failed again."""

    key: str
    stored_at: datetime
    letter: DeadLetter | None
    problem: str | None = None


@dataclass(frozen=True, kw_only=True)
class DeadLetterList:
    """The oldest batches, how many there are in all, and how many messages lie in each dead-letter queue."""

    batches: Sequence[Batch]
    total: int
    messages: Mapping[str, int]


@dataclass(kw_only=True)
class Redriven:
    """What one redrive did. `left` was not tried for want of time: ask again."""

    batches: int = 0
    failed: list[Batch] = field(default_factory=list)
    left: int = 0
    messages: dict[str, int] = field(default_factory=dict)


class DeadLetters:
    """`consumers` are the ARNs of the stream's consumers: nothing else is ever invoked, whatever a letter says."""

    def __init__(
        self,
        *,
        bucket: DeadLetterBucket,
        queues: Mapping[str, DeadLetterQueue],
        functions: Functions,
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
            batches=[self._read(item) for item in stored[:SHOWN]],
            total=len(stored),
            messages={name: queue.count() for name, queue in self._queues.items()},
        )

    def redrive(self, until: datetime) -> Redriven:
        """Move messages home and run the consumers over the batches, oldest first, as long as there is time. A batch
        leaves the bucket only once every record in it has been handled."""
        done = Redriven()
        for name, queue in self._queues.items():
            done.messages[name] = 0
            while self._now() + LONGEST_RUN < until and (moved := queue.move_some_back()):
                done.messages[name] += moved
        stored = self._bucket.list()
        for tried, item in enumerate(stored):
            if self._now() + LONGEST_RUN >= until:
                done.left = len(stored) - tried
                break
            batch = self._run(self._read(item))
            if batch.problem is None:
                done.batches += 1
            else:
                done.failed.append(batch)
        return done

    def _read(self, item: StoredObject) -> Batch:
        try:
            letter = parse_dead_letter(self._bucket.read(item.key))
        except NoDeadLetter as error:
            return Batch(key=item.key, stored_at=item.stored_at, letter=None, problem=error.message)
        return Batch(key=item.key, stored_at=item.stored_at, letter=letter)

    def _run(self, batch: Batch) -> Batch:
        letter = batch.letter
        if letter is None:
            return batch
        consumer = next((arn for arn in self._consumers if letter.is_for(arn)), None)
        if consumer is None:
            problem: str | None = f"{letter.function_arn} is no consumer of this stack"
        else:
            problem = _what_failed(self._functions.invoke(consumer, letter.event))
        if problem is None:
            self._bucket.remove(batch.key)
        return Batch(key=batch.key, stored_at=batch.stored_at, letter=letter, problem=problem)


def _what_failed(answer: FunctionAnswer) -> str | None:
    """None only for an answer that says that no record failed."""
    try:
        body = loads(answer.body)
    except MalformedRequest:
        return "the function's answer is no JSON"
    said = body if isinstance(body, Mapping) else {}
    if answer.failed:
        return f"the function failed: {said.get('errorType', 'Unknown')}: {said.get('errorMessage', '')}"
    failures = said.get("batchItemFailures")
    if not isinstance(failures, list):
        return "the function did not say which records failed"
    return f"{len(failures)} records failed again" if failures else None
