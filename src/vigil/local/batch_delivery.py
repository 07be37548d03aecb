"""How a batch of stream records is delivered to a function: AWS's rules of retrying, splitting and giving up.

Pure of AWS: what it does to the world goes through `Courier`, so that the rules can be tested without any.

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
# AWS backs off between retries and publishes no figures; here nobody should wait long.
MIN_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0


@dataclass(frozen=True)
class Answered:
    """The function returned this value."""

    body: Any


@dataclass(frozen=True)
class Failed:
    """The function raised, ran out of time or crashed; `kind` is AWS's `Handled` or `Unhandled`."""

    kind: str


@dataclass(frozen=True)
class NotInvoked:
    """It could not be invoked: throttled, being deployed, or the service was not there."""

    reason: str


Outcome = Answered | Failed | NotInvoked


class DeliveryTarget(Protocol):
    """What delivery does to the world."""

    def invoke(self, records: Sequence[Record]) -> Outcome:
        """Call the function with these records."""

    def done(self, records: Sequence[Record]) -> None:
        """These are handled, or given up: never to be delivered again."""

    def give_up(self, records: Sequence[Record], condition: str, invocations: int, function_error: str | None) -> None:
        """Tell the failure destination of these."""

    def pause(self, seconds: float) -> bool:
        """Wait. False when the pump stops and delivery must end where it is."""

    def now(self) -> float:
        """The time, in seconds since the epoch."""


def first_failure(records: Sequence[Record], body: object) -> int | None:
    """Where a partial batch answer says to resume: the index of the lowest failed record, None when all went well.

    An answer that cannot be read as one, or names a record that was not sent, fails the whole batch.
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
    """Deliver until every record is handled or given up, in order; ends early only when the courier stops."""
    # The next batch is the last: splitting one puts its halves back in order.
    batches = [_Batch(records)]
    while batches:
        batch = batches.pop()
        batch = _drop_expired(mapping, batch, target)
        if not batch.records:
            continue
        outcome = target.invoke(batch.records)
        if isinstance(outcome, NotInvoked):
            # Neither counts as a try nor splits; only age ends it.
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
            # What comes before the checkpoint is handled; the rest is a new batch with all its tries.
            target.done(batch.records[:resume])
            batches.append(_Batch(batch.records[resume:]))
            attempt = 1
        elif mapping.bisects and len(batch.records) > 1:
            # Splitting does not use up a try.
            middle = len(batch.records) // 2
            batches += [_Batch(batch.records[middle:]), _Batch(batch.records[:middle])]
            attempt = 1
        elif mapping.maximum_retries != NO_LIMIT and batch.invocations > mapping.maximum_retries:
            target.give_up(batch.records, RETRIES_EXHAUSTED, batch.invocations, error)
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
    target.give_up(expired, TOO_OLD, batch.invocations, None)
    target.done(expired)
    return _Batch([record for record in batch.records if record.created_at >= oldest], batch.invocations)


def _backoff_s(attempt: int) -> float:
    return float(min(MAX_BACKOFF_S, MIN_BACKOFF_S * 2 ** (attempt - 1)))
