"""Delivery of a batch of stream records to a function: AWS's rules of retries, bisection and abandonment.

All effects go through `DeliveryTarget`, so that tests run the rules without AWS.

https://docs.aws.amazon.com/lambda/latest/dg/services-dynamodb-errors.html
https://docs.aws.amazon.com/lambda/latest/dg/services-ddb-batchfailurereporting.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vigil.local.event_source_mapping import NO_LIMIT, Record, StreamMapping

RETRIES_EXHAUSTED = "RetryAttemptsExhausted"
TOO_OLD = "RecordAgeExceeded"
# AWS does not publish the backoff between its retries. The local cloud uses short delays.
MIN_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0


@dataclass(frozen=True)
class Answered:
    """The outcome of a function that returned."""

    body: Any


@dataclass(frozen=True)
class Failed:
    """The outcome of a function that raised, timed out or crashed. `kind` is AWS's `Handled` or `Unhandled`."""

    kind: str


@dataclass(frozen=True)
class NotInvoked:
    """The outcome without an invocation: the function is throttled or being deployed, or Lambda is unavailable."""

    reason: str


Outcome = Answered | Failed | NotInvoked


class DeliveryTarget(Protocol):
    """The effects of a delivery."""

    def invoke(self, records: Sequence[Record]) -> Outcome:
        """Invoke the function with these records."""

    def done(self, records: Sequence[Record]) -> None:
        """Mark these records as processed or abandoned: they are not delivered again."""

    def abandon(self, records: Sequence[Record], condition: str, invocations: int, function_error: str | None) -> None:
        """Send these records to the failure destination."""

    def pause(self, seconds: float) -> bool:
        """Wait, and return False if the poller stops and the delivery must end."""

    def now(self) -> float:
        """Return the time in seconds since the epoch."""


def first_failure(records: Sequence[Record], body: object) -> int | None:
    """Return the index of the first failed record of a partial batch response, or None if all succeeded.

    A response that is invalid, or names a record that was not sent, fails the whole batch.
    """
    if body is None or body == {}:
        return None
    if not isinstance(body, dict):
        return 0
    failures = body.get("batchItemFailures", ...)
    if failures is None or failures == []:
        return None
    if not isinstance(failures, list):
        return 0
    position = {record.sequence: index for index, record in enumerate(records)}
    try:
        return min(position[failure["itemIdentifier"]] for failure in failures)
    except (KeyError, TypeError):
        return 0


@dataclass
class _Batch:
    records: Sequence[Record]
    invocations: int = 0


def deliver(mapping: StreamMapping, records: Sequence[Record], target: DeliveryTarget) -> None:
    """Deliver the records in order until each is processed or abandoned. End early if the target stops."""
    # A stack: the next batch is the last element. Bisecting a batch pushes its halves in reverse order.
    batches = [_Batch(records)]
    while batches:
        batch = batches.pop()
        batch = _drop_expired(mapping, batch, target)
        if not batch.records:
            continue
        outcome = target.invoke(batch.records)
        if isinstance(outcome, NotInvoked):
            # This counts as no attempt and does not bisect the batch. Only the record age ends it.
            batches.append(batch)
            if not target.pause(_backoff_s(3)):
                return
            continue
        batch.invocations += 1
        if isinstance(outcome, Failed):
            resume, error = 0, outcome.kind
        else:
            failed = first_failure(batch.records, outcome.body) if mapping.reports_item_failures else None
            if failed is None:
                target.done(batch.records)
                continue
            resume, error = failed, None
        if resume:
            # The records before the first failed one are processed. The rest is a new batch with all its attempts.
            target.done(batch.records[:resume])
            batches.append(_Batch(batch.records[resume:]))
            attempt = 1
        elif mapping.bisects and len(batch.records) > 1:
            # Bisection does not count as an attempt.
            middle = len(batch.records) // 2
            batches += [_Batch(batch.records[middle:]), _Batch(batch.records[:middle])]
            attempt = 1
        elif mapping.maximum_retries != NO_LIMIT and batch.invocations > mapping.maximum_retries:
            target.abandon(batch.records, RETRIES_EXHAUSTED, batch.invocations, error)
            target.done(batch.records)
            continue
        else:
            batches.append(batch)
            attempt = batch.invocations
        if not target.pause(_backoff_s(attempt)):
            return


def _drop_expired(mapping: StreamMapping, batch: _Batch, target: DeliveryTarget) -> _Batch:
    if mapping.maximum_age_s == NO_LIMIT:
        return batch
    oldest = target.now() - mapping.maximum_age_s
    expired = [record for record in batch.records if record.created_at < oldest]
    if not expired:
        return batch
    target.abandon(expired, TOO_OLD, batch.invocations, None)
    target.done(expired)
    return _Batch([record for record in batch.records if record.created_at >= oldest], batch.invocations)


def _backoff_s(attempt: int) -> float:
    return float(min(MAX_BACKOFF_S, MIN_BACKOFF_S * 2 ** (attempt - 1)))
