"""Consume the stream so that a record which cannot be processed delays no other record.

The consumer ends the work of a record with a permanent error itself, with a stored reason. If even that fails, the
record becomes a dead letter here, and the shard continues. A record with a transient error is delivered again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vigil_core.domain.dead_letters import dead_letter_body, dead_letter_key
from vigil_core.runtime.failures import error_name, is_transient
from vigil_core.runtime.logging import logger
from vigil_core.services.ports import DeadLetterWriter
from vigil_core.store.stream import StreamRecord

PERMANENT_ERROR = "PermanentError"
"""The condition of a dead letter whose record can never be processed by this code."""


@dataclass(frozen=True, kw_only=True)
class StreamConsumer:
    """A function that consumes the stream, and where it stores the records that it cannot process."""

    name: str
    function_arn: str
    dead_letters: Callable[[], DeadLetterWriter]


@dataclass(frozen=True, kw_only=True)
class ConsumeReport:
    """The result of a batch: the error of each record that is delivered again, and the number of dead letters."""

    failed: Mapping[str, Exception]
    dead_letters: int


def consume(
    consumer: StreamConsumer,
    records: Sequence[StreamRecord],
    process: Callable[[Sequence[StreamRecord]], Mapping[str, Exception]],
) -> ConsumeReport:
    """Process a batch of stream records.

    1. `process` returns the error of each record that it could neither process nor end.
    2. A record with a permanent error is stored as a dead letter. If it cannot be stored, it is delivered again.
    3. A record with a transient error is delivered again, and its batch from the first such record.

    If the process crashes, the stream delivers the batch again. A dead letter that is stored twice is one object.
    """
    errors = process(records)
    failed: dict[str, Exception] = {}
    stored = 0
    for record in records:
        error = errors.get(record.sequence_number)
        if error is None:
            continue
        if not is_transient(error) and _store_dead_letter(consumer, record, PERMANENT_ERROR, error):
            stored += 1
        else:
            _log(consumer, record, "Change cannot be processed now; the stream delivers it again", error)
            failed[record.sequence_number] = error
    return ConsumeReport(failed=failed, dead_letters=stored)


def _store_dead_letter(consumer: StreamConsumer, record: StreamRecord, condition: str, error: Exception) -> bool:
    """Store a record as a dead letter, and return whether that was possible."""
    body = dead_letter_body(consumer.function_arn, condition, record.source, error=error_name(error))
    try:
        consumer.dead_letters().put(dead_letter_key(consumer.name, record.sequence_number), body)
    except Exception as storage_error:
        _log(consumer, record, "Dead letter cannot be stored", storage_error)
        return False
    _log(consumer, record, "Change can never be processed; it is a dead letter now", error)
    return True


def _log(consumer: StreamConsumer, record: StreamRecord, message: str, error: Exception) -> None:
    logger.error(
        message,
        extra={"action": consumer.name, "sequence_number": record.sequence_number, "row": record.key},
        exc_info=error,
    )
