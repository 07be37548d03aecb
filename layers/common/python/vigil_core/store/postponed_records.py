"""Postponed records: stream records that failed for a transient reason while others of their batch succeeded.

The records of one job, run or wait form a group for each consumer, in the order of the stream. The group of a job for
the matcher is in the partition of the job's wait entries, which the matcher reads anyway.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import simplejson

from vigil_core.domain.timestamps import from_text, to_epoch_s, to_text
from vigil_core.store import keys
from vigil_core.store.table import ABSENT, PRESENT, ConditionFailed, Delete, Put, Row, Table, Update, WriteCondition

POSTPONED_TTL = timedelta(days=15)
ATTEMPTS_TTL = timedelta(days=1)
"""Longer than the stream keeps a record."""


@dataclass(frozen=True, kw_only=True)
class PostponedRecord:
    """One postponed record.

    Attributes:
        record: The record as Lambda delivered it.
        attempts: The number of attempts that have started since the record was postponed.
        unfinished: The number of attempts since the last one that finished, with whatever result.
    """

    namespace: str
    group: str
    sequence_number: str
    record: Mapping[str, Any]
    postponed_at: datetime
    next_attempt_at: datetime
    attempts: int = 0
    unfinished: int = 0


class PostponedRecordStore:
    """The postponed records, and the starts of attempts that a process did not survive."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def add(self, record: PostponedRecord) -> None:
        """Store a record, due from its next attempt on. The first store of a record counts."""
        key = _key_of(record)
        g1pk, g1sk = keys.due(
            record.next_attempt_at,
            "postponed",
            record.namespace,
            keys.postponed_due_id(record.group, record.sequence_number),
        )
        row: Row = {
            "pk": key.pk,
            "sk": key.sk,
            "entity": "postponed_record",
            "schema_version": 1,
            "record": zlib.compress(simplejson.dumps(record.record, use_decimal=True, ensure_ascii=True).encode()),
            "attempts": record.attempts,
            "unfinished": record.unfinished,
            "postponed_at": to_text(record.postponed_at),
            "next_attempt_at": to_text(record.next_attempt_at),
            "ttl": to_epoch_s(record.postponed_at + POSTPONED_TTL),
            "g1pk": g1pk,
            "g1sk": g1sk,
        }
        try:
            self._table.put(Put(row=row, condition=ABSENT))
        except ConditionFailed:
            return

    def first(self, namespace: str, group: str) -> PostponedRecord | None:
        """Return the first record of a group by a consistent read, or None if the group is empty."""
        pk = keys.postponed_records(namespace, group)
        page = self._table.query_page(pk, begins=keys.POSTPONED, limit=1)
        return _from_row(namespace, group, page.rows[0]) if page.rows else None

    def start_attempt(self, record: PostponedRecord, *, next_attempt_at: datetime) -> bool:
        """Count the start of an attempt, before it. Return False if another process has started one or is done."""
        update = Update(
            key=_key_of(record),
            expression="SET attempts = :next, unfinished = :unfinished, next_attempt_at = :at",
            values={
                ":next": record.attempts + 1,
                ":unfinished": record.unfinished + 1,
                ":at": to_text(next_attempt_at),
            },
            condition=WriteCondition(expression="attempts = :seen", values={":seen": record.attempts}),
        )
        try:
            self._table.update(update)
        except ConditionFailed:
            return False
        return True

    def finish_attempt(self, record: PostponedRecord) -> None:
        """Record that an attempt has failed and its process survived."""
        update = Update(
            key=_key_of(record),
            expression="SET unfinished = :none",
            values={":none": 0},
            condition=PRESENT,
        )
        try:
            self._table.update(update)
        except ConditionFailed:
            return

    def remove(self, record: PostponedRecord) -> None:
        """Remove a record that is processed, or stored as a dead letter."""
        self._table.delete(Delete(key=_key_of(record)))

    def count_start(self, namespace: str, consumer: str, sequence_number: str, *, now: datetime) -> int:
        """Count the start of an attempt on a record of the stream, and return the unfinished ones with this one."""
        row = self._table.update(
            Update(
                key=keys.record_attempts(namespace, consumer, sequence_number),
                expression="ADD unfinished :one SET entity = :entity, schema_version = :one, #ttl = :ttl",
                names={"#ttl": "ttl"},
                values={":one": 1, ":entity": "record_attempts", ":ttl": to_epoch_s(now + ATTEMPTS_TTL)},
            )
        )
        return int(row["unfinished"])

    def clear_starts(self, namespace: str, consumer: str, sequence_number: str) -> None:
        """Forget the starts of a record, because its process survived."""
        self._table.delete(Delete(key=keys.record_attempts(namespace, consumer, sequence_number)))


def _key_of(record: PostponedRecord) -> keys.Key:
    return keys.postponed_record(record.namespace, record.group, record.sequence_number)


def _from_row(namespace: str, group: str, row: Row) -> PostponedRecord:
    return PostponedRecord(
        namespace=namespace,
        group=group,
        sequence_number=keys.postponed_sequence_number(row["sk"]),
        record=simplejson.loads(zlib.decompress(row["record"]).decode()),
        postponed_at=from_text(row["postponed_at"]),
        next_attempt_at=from_text(row["next_attempt_at"]),
        attempts=int(row["attempts"]),
        unfinished=int(row["unfinished"]),
    )
