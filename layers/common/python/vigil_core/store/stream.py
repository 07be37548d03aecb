"""The records of the table's stream: rows before and after a change."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

from vigil_core.domain.events.event import ProgressUpdate
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.timestamps import from_text
from vigil_core.domain.workflows.run import RunLogEntry, WorkflowRun
from vigil_core.store.jobs.jobs import job_from_row
from vigil_core.store.keys import Key
from vigil_core.store.table import Row, row_from_image
from vigil_core.store.workflows.runs import run_from_row


@dataclass(frozen=True, kw_only=True)
class StreamRecord:
    """One change of one row. Images are decoded when first asked for: one that cannot be read fails by itself."""

    sequence_number: str
    change: Mapping[str, Any]

    @property
    def key(self) -> Key:
        """Which row it was, for the log; empty where the record does not say."""
        attributes = self.change.get("Keys", {})
        return Key(*(str(attributes.get(name, {}).get("S", "")) for name in Key._fields))

    def old(self) -> Row | None:
        """The row before; None when it is new."""
        return self._old

    def new(self) -> Row | None:
        """The row after; None when it was removed."""
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
    """The records of a batch, as Lambda hands it to a function, in the order of the stream."""
    return [
        StreamRecord(sequence_number=record["dynamodb"]["SequenceNumber"], change=record["dynamodb"])
        for record in event["Records"]
    ]


def _with_bytes(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """An attribute as the SDK reads it: Lambda's event is JSON and has binary values, which no row nests, as Base64."""
    return {"B": b64decode(value["B"])} if isinstance(value.get("B"), str) else value


def progress_from_row(row: Row) -> ProgressUpdate:
    """What was reported alone, from its row."""
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
    """The version of a run that a record of its row tells of, and the line of its history before; None when nothing has
    happened that its history tells."""
    row, old = record.new(), record.old()
    if row is None or (old is not None and old["log"] == row["log"]):
        return None
    run = run_from_row(row)
    if run.log[-1].version != run.version:
        return None
    return run, run.log[-2] if len(run.log) > 1 else None


def job_version_of(record: StreamRecord) -> tuple[Job, Job | None] | None:
    """The version of a job that a record of its row tells of, and the one before it; None when it tells of none: the
    row was removed, or only what the index shows of it was changed."""
    row, old = record.new(), record.old()
    if row is None or (old is not None and old["version"] == row["version"]):
        return None
    return job_from_row(row), None if old is None else job_from_row(old)
