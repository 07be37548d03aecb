"""Payloads, results and fallbacks of jobs: in a row up to 350 KB, otherwise as an S3 object.

A payload is stored before the version of the job that points to it, under a key of its own. If the process crashes
between the two writes, no job points to the payload, and its TTL or its S3 lifecycle rule removes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, Protocol, TypeAlias

from vigil_core.domain.jobs.dependency_results import ResultUnavailable
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.jobs.retention import OPEN_JOB_TTL, expires_at_of
from vigil_core.domain.timestamps import to_epoch_s
from vigil_core.store import keys
from vigil_core.store.jobs.job_rows import row_head
from vigil_core.store.table import ABSENT, ConditionFailed, Put, Row, Table

MAX_ROW_BYTES = 350 * 1024
"""The largest payload or result in a row, below DynamoDB's limit of 400 KB. A larger one becomes an S3 object."""
MAX_PAYLOAD_BYTES = 2 * 1024 * 1024
"""The limit of a payload or result in a request, as JSON text."""
MAX_RESPONSE_PAYLOAD_BYTES = 2 * MAX_PAYLOAD_BYTES
"""The limit of payloads and results in one response. In Base64, and with the other members, it fits into the 6 MB of a
Lambda response."""

RESULT_ROWS_PER_READ = 25
"""The number of rows with results that one request reads, to limit the memory that they need."""

UPLOAD_TTL = timedelta(days=3)
"""Longer than S3 keeps an upload: a day, and the rest of the day on which it expires."""

RetentionClass: TypeAlias = Literal["open", "ended", "long"]
"""The life of an S3 object after its last renewal: two years, the retention of ended jobs, or without end."""


class PayloadStore(Protocol):
    """The store of payloads and results that are too large for a row."""

    def put(self, key: str, text: str, *, retention_class: RetentionClass) -> None:
        """Store an object."""

    def get(self, key: str) -> str | None:
        """Read the text of an object; None if it no longer exists."""

    def renew(self, key: str, *, retention_class: RetentionClass, source: str | None = None) -> None:
        """Restart the life of an object; with `source`, create it as a copy of that object."""

    def remove(self, keys: Sequence[str]) -> None:
        """Remove objects."""

    def url(self, key: str) -> str:
        """Sign a URL to read an object."""

    def upload_url(self, key: str, size: int) -> str:
        """Sign a URL to upload an object of exactly `size` bytes."""

    def size(self, key: str) -> int | None:
        """Return the size of an object in bytes; None if it does not exist."""


@dataclass(frozen=True, kw_only=True)
class JobPayloads:
    """The payload and result of a job as JSON text; None if absent or replaced by a URL."""

    payload: str | None
    result: str | None
    payload_url: str | None = None
    result_url: str | None = None


@dataclass(frozen=True, kw_only=True)
class StoredResult:
    """The result of a job as JSON text, with its size in bytes.

    Without text, the job has no result, unless a flag gives another reason.
    """

    text: str | None = None
    size: int = 0
    is_over_limit: bool = False
    """Whether the result was not read because of the limit of the reader."""
    is_missing: bool = False
    """Whether the job points to a result that no longer exists."""
    is_upload: bool = False
    """Whether a client uploaded the text, which may be anything."""

    @classmethod
    def of(cls, text: str | None, max_bytes: int) -> StoredResult:
        """Return a stored text, unless it is missing or over the limit."""
        if text is None:
            return cls(is_missing=True)
        size = len(text.encode())
        return cls(text=text, size=size) if size <= max_bytes else cls(is_over_limit=True)


class JobPayloadStore:
    """Stores and reads the payloads of jobs. `JobStore` inherits it."""

    def __init__(
        self, table: Table, objects: PayloadStore, *, now: Callable[[], datetime], retention: timedelta
    ) -> None:
        self._table = table
        self._objects = objects
        self._now = now
        self._retention = retention

    def put_payload(self, job: Job, nonce: str, text: str) -> str:
        """Store a payload, in a row or in S3, before the job that points to it; return the pointer."""
        return self._put_payload_text(job, keys.payload(job.namespace, job.job_id, nonce), "payload", text)

    def put_fallback(self, job: Job, nonce: str, text: str) -> str:
        """Store the fallback of a job, and return the pointer."""
        return self._put_payload_text(job, keys.result(job.namespace, job.job_id, 0, nonce), "result", text)

    def put_payloads(self, job: Job, nonce: str, *, payload: str | None, fallback: str | None) -> Job:
        """Store the payload and fallback of a new job, if any, and return the job with its pointers."""
        return replace(
            job,
            payload_ref=None if payload is None else self.put_payload(job, nonce, payload),
            fallback_ref=None if fallback is None else self.put_fallback(job, nonce, fallback),
        )

    def put_result(self, job: Job, nonce: str, text: str) -> str:
        """Store a result, in a row or in S3, before the version that points to it; return the pointer."""
        return self._put_payload_text(job, keys.result(job.namespace, job.job_id, job.attempt, nonce), "result", text)

    def upload_url(self, namespace: str, reference: str, size: int) -> str:
        """Sign a URL for an upload of `size` bytes, which a job of this namespace can adopt."""
        return self._objects.upload_url(keys.upload_name(namespace, reference), size)

    def upload_size(self, namespace: str, reference: str) -> int | None:
        """Return the size of an upload in bytes; None if it does not exist."""
        return self._objects.size(keys.upload_name(namespace, reference))

    def claim_upload(self, namespace: str, reference: str, job_id: str) -> str:
        """Let an upload belong to a job, unless it belongs to another one; return the job that has it."""
        row = {
            **row_head(keys.upload(namespace, reference), "upload"),
            "job_id": job_id,
            "ttl": to_epoch_s(self._now() + UPLOAD_TTL),
        }
        try:
            self._table.put(Put(row=row, condition=ABSENT))
        except ConditionFailed as error:
            return str(error.old["job_id"]) if error.old else job_id
        return job_id

    def adopt_payload(self, job: Job, nonce: str, reference: str) -> str:
        """Copy an upload to the payload of a new job, and return the pointer."""
        return self._adopt(job, keys.payload(job.namespace, job.job_id, nonce).sk, reference)

    def adopt_result(self, job: Job, nonce: str, reference: str) -> str:
        """Copy an upload to the result of a job, and return the pointer."""
        return self._adopt(job, keys.result(job.namespace, job.job_id, job.attempt, nonce).sk, reference)

    def _adopt(self, job: Job, sk: str, reference: str) -> str:
        """Copy an upload to an object of the job, and return the pointer."""
        name, upload = keys.object_name(job.namespace, job.job_id, sk), keys.upload_name(job.namespace, reference)
        self._objects.renew(name, retention_class=retention_class_of(job), source=upload)
        return keys.object_ref(None, sk)

    def payloads(self, job: Job, *, payload: bool = True, max_bytes: int = MAX_RESPONSE_PAYLOAD_BYTES) -> JobPayloads:
        """Read the payload and the result of a job.

        All rows cost one request, and each object costs one more.

        Args:
            job: The job.
            payload: Whether to read the payload.
            max_bytes: The limit of all objects together. An object over it becomes a URL.
        """
        ref_by_name = {"payload": job.payload_ref if payload else None, "result": job.result_ref}
        refs = {name: ref for name, ref in ref_by_name.items() if ref is not None}
        pk = keys.job(job.namespace, job.job_id).pk
        in_rows = [keys.Key(pk, ref) for ref in refs.values() if keys.parse_object_ref(ref) is None]
        rows = self._table.batch_get(in_rows) if in_rows else {}
        values: dict[str, str | None] = {"payload": None, "result": None}
        for name, ref in refs.items():
            if (parsed := keys.parse_object_ref(ref)) is None:
                row = rows.get(keys.Key(pk, ref))
                values[name] = None if row is None else str(row["body"])
                continue
            size, sk = parsed
            key = keys.object_name(job.namespace, job.job_id, sk)
            if size is None or size > max_bytes:
                values[f"{name}_url"] = self._objects.url(key)
            else:
                max_bytes -= size
                values[name] = self._objects.get(key)
        return JobPayloads(**values)

    def results(
        self, jobs: Sequence[Job], *, max_bytes: int, uploads: bool = False
    ) -> Iterator[tuple[Job, StoredResult]]:
        """Read the results of jobs one after the other. A result over the rest of the limit is not returned.

        Args:
            jobs: The jobs.
            max_bytes: The limit of all results together.
            uploads: Whether to read uploaded results. Otherwise they count as over the limit.
        """
        for start in range(0, len(jobs), RESULT_ROWS_PER_READ):
            part = jobs[start : start + RESULT_ROWS_PER_READ]
            row_keys = [
                _result_key(job, ref) for job in part if (ref := job.result_ref) and not keys.parse_object_ref(ref)
            ]
            rows = self._table.batch_get(row_keys) if row_keys else {}
            for job in part:
                stored = self._stored_result(job, rows, max_bytes, uploads)
                max_bytes -= stored.size
                yield job, stored

    def _stored_result(self, job: Job, rows: Mapping[keys.Key, Row], max_bytes: int, uploads: bool) -> StoredResult:
        if job.result_ref is None:
            return StoredResult()
        if (parsed := keys.parse_object_ref(job.result_ref)) is None:
            row = rows.get(_result_key(job, job.result_ref))
            return StoredResult.of(None if row is None else str(row["body"]), max_bytes)
        size, sk = parsed
        name, is_upload = keys.object_name(job.namespace, job.job_id, sk), size is None
        if size is None and uploads and (size := self._objects.size(name)) is None:
            return StoredResult(is_missing=True)
        if size is None or size > max_bytes:
            return StoredResult(is_over_limit=True, is_upload=is_upload)
        return replace(StoredResult.of(self._objects.get(name), max_bytes), is_upload=is_upload)

    def copy_result(self, job: Job, nonce: str, source: Job) -> str | None:
        """Copy the result of another job to a job, and return the pointer; None if the source has no result.

        An object is copied inside S3, so its size does not matter.

        Raises:
            ResultUnavailable: The result no longer exists.
        """
        key = keys.result(job.namespace, job.job_id, job.attempt, nonce)
        name = keys.object_name(job.namespace, job.job_id, key.sk)
        if (size := self.copy_result_object(source, name, retention_class_of(job))) is not None:
            return keys.object_ref(size or None, key.sk)
        text = self.row_result(source)
        return None if text is None else self.put_result(job, nonce, text)

    def row_result(self, job: Job) -> str | None:
        """Read the result of a job from its row; None if the job has no result.

        Raises:
            ResultUnavailable: The row no longer exists.
        """
        if job.result_ref is None:
            return None
        row = self._table.get(_result_key(job, job.result_ref))
        if row is None:
            raise ResultUnavailable(f"The result of job {job.job_id} no longer exists")
        return str(row["body"])

    def copy_result_object(self, job: Job, name: str, retention_class: RetentionClass) -> int | None:
        """Copy the result of a job to another object, if the result is an object.

        Returns:
            The size of the result, 0 for an upload; None if the result is not an object.

        Raises:
            ResultUnavailable: The object no longer exists.
        """
        parsed = keys.parse_object_ref(job.result_ref or "")
        if parsed is None:
            return None
        source = keys.object_name(job.namespace, job.job_id, parsed[1])
        if self._objects.size(source) is None:
            raise ResultUnavailable(f"The result of job {job.job_id} no longer exists")
        self._objects.renew(name, retention_class=retention_class, source=source)
        return parsed[0] or 0

    def expiry_of(self, job: Job) -> datetime:
        """Compute the expiry of the first version of a job."""
        return expires_at_of(job, job, self._retention)

    def _put_payload_text(self, job: Job, key: keys.Key, entity: str, text: str) -> str:
        """Store the text in a row, or in S3 above `MAX_ROW_BYTES`, and return the pointer."""
        size = len(text.encode())
        if size > MAX_ROW_BYTES:
            self._objects.put(
                keys.object_name(job.namespace, job.job_id, key.sk), text, retention_class=retention_class_of(job)
            )
            return keys.object_ref(size, key.sk)
        ttl = to_epoch_s(self.expiry_of(job)) if job.ended else self._side_row_ttl(job)
        self._table.put(Put(row={**row_head(key, entity), "body": text, "ttl": ttl}))
        return key.sk

    def _side_row_ttl(self, job: Job) -> int:
        """Return the TTL of a side row: the job's expiry, plus the retention while the job is open."""
        expires_at = job.expires_at or self.expiry_of(job)
        return to_epoch_s(expires_at if job.ended else expires_at + self._retention)

    def _object_keys(self, job: Job, *extra_refs: str | None) -> list[str]:
        """Return the keys of the payload object, the fallback object, and the objects of further pointers."""
        refs = dict.fromkeys(ref for ref in (job.payload_ref, job.fallback_ref, *extra_refs) if ref is not None)
        parsed = filter(None, map(keys.parse_object_ref, refs))
        return [keys.object_name(job.namespace, job.job_id, sk) for _, sk in parsed]


def _result_key(job: Job, ref: str) -> keys.Key:
    return keys.Key(keys.job(job.namespace, job.job_id).pk, ref)


def retention_class_of(job: Job) -> RetentionClass:
    """Return the retention class of a job's objects."""
    if job.ended:
        return "ended"
    return "long" if job.scheduled_at is not None and job.scheduled_at > job.updated_at + OPEN_JOB_TTL else "open"
