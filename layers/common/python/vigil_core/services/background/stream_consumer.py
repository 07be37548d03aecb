"""Consume the stream so that a record which cannot be processed delays no other record.

The matcher and the notifier end the work of a record with a permanent error themselves, with a stored reason. This
module decides what happens to the errors that remain:

1. A permanent error makes the record a dead letter at once.
2. A transient error of a whole batch comes from outside. The stream delivers the batch again, which slows the consumer
   down until the cause is over.
3. A transient error of some records, while others succeed, is an error of their keys. These records are postponed:
   stored as rows, which the sweeper finds and the same function processes again. The shard continues.
4. A record that ends the process twice, alone in its batch, becomes a dead letter before a third attempt.

If the process crashes, the stream delivers the batch again. Records that are stored already are stored once more under
the same key, which changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from vigil_core.domain.dead_letters import dead_letter_body, dead_letter_key
from vigil_core.domain.exact_json import dumps
from vigil_core.runtime.failures import error_name, is_transient
from vigil_core.runtime.logging import logger
from vigil_core.services.context import UsesClock, UsesMessageQueues, UsesPostponedRecords, UsesStreamConsumers
from vigil_core.services.messages import RetryPostponed
from vigil_core.services.ports import DeadLetterWriter
from vigil_core.store import keys
from vigil_core.store.postponed_records import PostponedRecord
from vigil_core.store.stream import StreamRecord, stream_records


class StreamConsumerContext(UsesPostponedRecords, UsesMessageQueues, UsesClock, Protocol):
    """The postponed records, the queue of the sweeper, and the time."""


class RequestRetryContext(UsesPostponedRecords, UsesStreamConsumers, UsesClock, Protocol):
    """The postponed records, the consumers of the stream, and the time."""


PERMANENT_ERROR = "PermanentError"
"""The condition of a dead letter whose record can never be processed by this code."""
PROCESS_ENDED = "ProcessEnded"
"""The condition of a dead letter whose record ended the process repeatedly: a timeout, a lack of memory, an exit."""
RETRIES_EXHAUSTED = "RetriesExhausted"
"""The condition of a dead letter whose record was postponed for too long."""
MAX_UNFINISHED_ATTEMPTS = 2
LATE = timedelta(seconds=3)
"""The age of a record that was probably delivered before. Only then are the attempts on it counted."""
FIRST_RETRY_DELAY = timedelta(seconds=5)
MAX_RETRY_DELAY = timedelta(minutes=5)
MAX_POSTPONED = timedelta(hours=23)
"""As long as the stream keeps trying a record."""

RecordErrors = Mapping[str, Exception]
"""The errors of records by sequence number."""


class ProcessRecords(Protocol):
    """Processes stream records, and returns the errors of those that it could neither process nor end."""

    def __call__(self, records: Sequence[StreamRecord], *, is_retry: bool) -> RecordErrors:
        """Process a batch, or one postponed record with `is_retry`."""


@dataclass(frozen=True, kw_only=True)
class StreamConsumer:
    """A function that consumes the stream, and where it stores the records that it cannot process."""

    name: str
    function_arn: str
    dead_letters: Callable[[], DeadLetterWriter]


@dataclass(kw_only=True)
class ConsumeReport:
    """The result of a batch: the error of each record that is delivered again, and the numbers of the others."""

    failed: dict[str, Exception] = field(default_factory=dict)
    dead_letters: int = 0
    postponed: int = 0
    retried: int = 0

    def log_fields(self) -> dict[str, int]:
        """Return the numbers for the log; those of unusual outcomes only if there are any."""
        unusual = {"dead_letters": self.dead_letters, "postponed": self.postponed, "retried": self.retried}
        return {"failed": len(self.failed), **{name: count for name, count in unusual.items() if count}}


class RecordQueued(Exception):
    """Signal that a record must queue behind earlier records of the same job, which are postponed."""

    transient = True


class AttemptUnfinished(Exception):
    """The process ended during each of the last attempts."""


def consume(
    ctx: StreamConsumerContext, consumer: StreamConsumer, records: Sequence[StreamRecord], process: ProcessRecords
) -> ConsumeReport:
    """Process a batch of stream records, and store those that cannot be processed now."""
    report = ConsumeReport()
    # A single late record was probably delivered before, alone: the batch of a failed invocation is split in halves.
    alone = records[0] if len(records) == 1 and _is_late(ctx, records[0]) else None
    if (
        alone is not None
        and _has_ended_process(ctx, consumer, alone)
        and _store_dead_letter(consumer, alone, PROCESS_ENDED, AttemptUnfinished())
    ):
        report.dead_letters += 1
        return report
    try:
        errors = process(records, is_retry=False)
    except Exception:
        if alone is not None:
            _forget_attempts(ctx, consumer, alone)  # An exception does not end the process.
        raise
    transient = {number: error for number, error in errors.items() if is_transient(error)}
    may_postpone = len(transient) < len(records) or alone is not None
    for record in records:
        error = errors.get(record.sequence_number)
        if error is None:
            continue
        if record.sequence_number not in transient and _store_dead_letter(consumer, record, PERMANENT_ERROR, error):
            report.dead_letters += 1
        elif (may_postpone or isinstance(error, RecordQueued)) and _postpone(ctx, consumer, record, error):
            report.postponed += 1
        else:
            _log(consumer, record, "Change cannot be processed now; the stream delivers it again", error)
            report.failed[record.sequence_number] = error
    if alone is not None:
        _forget_attempts(ctx, consumer, alone)
    return report


def retry_postponed(
    ctx: StreamConsumerContext, consumer: StreamConsumer, namespace: str, group: str, process: ProcessRecords
) -> ConsumeReport:
    """Process the postponed records of a group in their order, until one fails again or none is left.

    1. The start of an attempt is counted before it, on the condition that no other process has counted one. Of two
       processes with the same group, one continues.
    2. A record is removed after it is processed. If the process crashes before, it is processed once more.
    3. A later record of the group may be added at any time. It is due by itself, so the sweeper finds it.
    """
    report = ConsumeReport()
    while (postponed := ctx.postponed_records.first(namespace, group)) is not None:
        now = ctx.now()
        if now < postponed.next_attempt_at:
            break
        (record,) = stream_records({"Records": [postponed.record]})
        if postponed.unfinished >= MAX_UNFINISHED_ATTEMPTS:
            error: Exception | None = AttemptUnfinished()
            condition = PROCESS_ENDED
        else:
            if not ctx.postponed_records.start_attempt(postponed, next_attempt_at=now + _retry_delay(postponed)):
                break
            error = process([record], is_retry=True).get(record.sequence_number)
            condition = PERMANENT_ERROR
        if error is not None and is_transient(error):
            if now - postponed.postponed_at < MAX_POSTPONED:
                _log(consumer, record, "Postponed change failed again", error)
                ctx.postponed_records.finish_attempt(postponed)
                break
            condition = RETRIES_EXHAUSTED
        if error is not None:
            if not _store_dead_letter(consumer, record, condition, error):
                break
            report.dead_letters += 1
        ctx.postponed_records.remove(postponed)
        report.retried += 1
    return report


def request_retry(ctx: RequestRetryContext, namespace: str, due_id: str) -> int:
    """Let its consumer retry a due record that is the first one of its group. The others follow it.

    Returns:
        The number of groups whose retry was requested: 1 or 0.
    """
    group, sequence_number = keys.parse_postponed_due_id(due_id)
    first = ctx.postponed_records.first(namespace, group)
    if first is None or first.sequence_number != sequence_number or ctx.now() < first.next_attempt_at:
        return 0
    event = {"postponed": {"namespace": namespace, "group": group}}
    ctx.stream_consumers.retry_postponed(keys.consumer_of_group(group), dumps(event))
    return 1


def _retry_delay(postponed: PostponedRecord) -> timedelta:
    factor: int = 2 ** min(postponed.attempts, 10)
    return min(FIRST_RETRY_DELAY * factor, MAX_RETRY_DELAY)


def _is_late(ctx: StreamConsumerContext, record: StreamRecord) -> bool:
    return record.created_at is not None and ctx.now() - record.created_at > LATE


def _has_ended_process(ctx: StreamConsumerContext, consumer: StreamConsumer, record: StreamRecord) -> bool:
    """Count the start of an attempt, and return whether the process ended during each of the last attempts.

    The count only protects against a record that ends the process. If it fails, the record is processed all the same.
    """
    namespace, _ = keys.postponed_group(consumer.name, record.key.pk)
    try:
        starts = ctx.postponed_records.count_start(namespace, consumer.name, record.sequence_number, now=ctx.now())
    except Exception as error:
        _log(consumer, record, "Attempt cannot be counted", error)
        return False
    return starts > MAX_UNFINISHED_ATTEMPTS


def _forget_attempts(ctx: StreamConsumerContext, consumer: StreamConsumer, record: StreamRecord) -> None:
    """Forget the counted attempts, because the process has survived this one."""
    namespace, _ = keys.postponed_group(consumer.name, record.key.pk)
    try:
        ctx.postponed_records.clear_starts(namespace, consumer.name, record.sequence_number)
    except Exception as error:
        _log(consumer, record, "Counted attempts cannot be removed", error)


def _postpone(ctx: StreamConsumerContext, consumer: StreamConsumer, record: StreamRecord, error: Exception) -> bool:
    """Store a record for a later attempt, and return whether that was possible."""
    namespace, group = keys.postponed_group(consumer.name, record.key.pk)
    now = ctx.now()
    postponed = PostponedRecord(
        namespace=namespace,
        group=group,
        sequence_number=record.sequence_number,
        record=record.deliverable,
        postponed_at=now,
        next_attempt_at=now + FIRST_RETRY_DELAY,
    )
    try:
        ctx.postponed_records.add(postponed)
    except Exception as storage_error:
        _log(consumer, record, "Change cannot be postponed", storage_error)
        return False
    _log(consumer, record, "Change is postponed", error)
    _start_timer(ctx, postponed)
    return True


def _start_timer(ctx: StreamConsumerContext, postponed: PostponedRecord) -> None:
    """Wake the sweeper for the next attempt. Without the message, a sweep finds the record within a minute."""
    due_id = keys.postponed_due_id(postponed.group, postponed.sequence_number)
    message = RetryPostponed(namespace=postponed.namespace, id=due_id).to_json()
    try:
        ctx.message_queues.send_to_sweeper(message, int(FIRST_RETRY_DELAY.total_seconds()))
    except Exception as error:
        logger.info("Postponed change has no timer", extra={"action": "postpone", "reason": error_name(error)})


def _store_dead_letter(consumer: StreamConsumer, record: StreamRecord, condition: str, error: Exception) -> bool:
    """Store a record as a dead letter, and return whether that was possible."""
    body = dead_letter_body(consumer.function_arn, condition, record.deliverable, error=error_name(error))
    try:
        consumer.dead_letters().put(dead_letter_key(consumer.name, record.sequence_number), body)
    except Exception as storage_error:
        _log(consumer, record, "Dead letter cannot be stored", storage_error)
        return False
    _log(consumer, record, "Change cannot be processed; it is a dead letter now", error)
    return True


def _log(consumer: StreamConsumer, record: StreamRecord, message: str, error: Exception) -> None:
    logger.error(
        message,
        extra={"action": consumer.name, "sequence_number": record.sequence_number, "row": record.key},
        exc_info=error,
    )
