"""The records of the table's stream: each has a row before and after a change."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from typing import Any

from vigil_core.domain.events.event import ProgressUpdate
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.timestamps import from_text
from vigil_core.domain.workflows.run import RunLogEntry, WorkflowRun
from vigil_core.store.jobs.job_rows import job_from_row
from vigil_core.store.keys import Key
from vigil_core.store.table import Row, row_from_image
from vigil_core.store.workflows.run_rows import run_from_row


@dataclass(frozen=True, kw_only=True)
class StreamRecord:
    """One change of one row.

    An image is decoded at its first use, so an unreadable image fails alone and not with its batch.
    """

    sequence_number: str
    change: Mapping[str, Any]
    source: Mapping[str, Any] = field(default_factory=dict)
    """The whole record as Lambda delivers it, so that it can be stored and delivered again."""

    @property
    def key(self) -> Key:
        """The key of the row, for the log; its parts are empty if the record has no keys."""
        attributes = self.change.get("Keys") or self.change.get("NewImage", {})
        return Key(*(str(attributes.get(name, {}).get("S", "")) for name in Key._fields))

    @property
    def created_at(self) -> datetime | None:
        """The time of the change to the second; None if the record does not contain it."""
        seconds = self.change.get("ApproximateCreationDateTime")
        return datetime.fromtimestamp(float(seconds), UTC) if isinstance(seconds, int | float | Decimal) else None

    @property
    def deliverable(self) -> Mapping[str, Any]:
        """The record in the form in which Lambda delivers it."""
        return self.source or {"dynamodb": {**self.change, "SequenceNumber": self.sequence_number}}

    def old(self) -> Row | None:
        """Return the row before the change; None for a new row."""
        return self._old

    def new(self) -> Row | None:
        """Return the row after the change; None for a removed row."""
        return self._new

    @cached_property
    def _old(self) -> Row | None:
        return self._image("OldImage")

    @cached_property
    def _new(self) -> Row | None:
        return self._image("NewImage")

    def _image(self, name: str) -> Row | None:
        if name not in self.change:
            return None
        return row_from_image({name: _with_bytes(value) for name, value in self.change[name].items()})


def stream_records(event: Mapping[str, Any]) -> list[StreamRecord]:
    """Return the records of a Lambda event, in the order of the stream."""
    return [
        StreamRecord(sequence_number=record["dynamodb"]["SequenceNumber"], change=record["dynamodb"], source=record)
        for record in event["Records"]
    ]


def _with_bytes(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Decode a binary attribute, which the JSON of a Lambda event contains as Base64; no row nests binary values."""
    return {"B": b64decode(value["B"])} if isinstance(value.get("B"), str) else value


def progress_from_row(row: Row) -> ProgressUpdate:
    """Convert a `live` row to the progress and message that it reports."""
    return ProgressUpdate(
        namespace=row["namespace"],
        job_id=row["job_id"],
        job_type=row["job_type"],
        queue=row["queue"],
        attempt=row["attempt"],
        version=row["version"],
        live_version=row["live_version"],
        progress=Decimal(row["progress"]),
        message=row.get("message"),
        workflow_id=row.get("workflow_id"),
        reported_at=from_text(row["updated_at"]),
    )


def run_version_of(record: StreamRecord) -> tuple[WorkflowRun, RunLogEntry | None] | None:
    """Return the new version of a run in a record of its row, with the history line before it.

    Returns:
        None if the record adds no line to the history: the supervisor wrote its token, or the row was removed.
    """
    row, old = record.new(), record.old()
    if row is None or (old is not None and old["log"] == row["log"]):
        return None
    run = run_from_row(row)
    if run.log[-1].version != run.version:
        return None
    return run, run.log[-2] if len(run.log) > 1 else None


def job_version_of(record: StreamRecord) -> tuple[Job, Job | None] | None:
    """Return the new version of a job in a record of its row, with the version before it.

    Returns:
        None if the record has no new version: the row was removed, or only its index entry changed.
    """
    row, old = record.new(), record.old()
    if row is None or (old is not None and old["version"] == row["version"]):
        return None
    return job_from_row(row), None if old is None else job_from_row(old)
