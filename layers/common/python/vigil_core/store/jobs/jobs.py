"""Jobs in the table: the state row, what is reported alone, payload and result, the history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, Protocol, TypeAlias

from vigil_core.domain.errors import JobCreationFailed
from vigil_core.domain.jobs.job import Job, JobLogEntry
from vigil_core.domain.jobs.retention import DEFAULT_RETENTION, OPEN_JOB_TTL, expires_at_of
from vigil_core.domain.timestamps import to_epoch_s
from vigil_core.store import keys
from vigil_core.store.jobs.job_rows import (
    index_attributes,
    job_from_row,
    job_to_row,
    live_to_row,
    log_from_text,
    log_to_row,
    row_head,
)
from vigil_core.store.listing import extend_day_ttl
from vigil_core.store.locks import LockAcquisition, lock_put, queue_entry_put
from vigil_core.store.table import (
    ABSENT,
    PRESENT,
    ConditionFailed,
    Delete,
    Put,
    Table,
    Update,
    WriteCondition,
    query_all,
    version_is,
)

MAX_STATE_LOG_LINES = 8
"""More lines than that go to a row of their own: the state row is to stay within one write unit."""
TTL_NAMES = {"#ttl": "ttl"}


MAX_ROW_BYTES = 350 * 1024
"""What one row holds with room to spare (DynamoDB: 400 KB). A payload or result beyond that is an object."""
MAX_PAYLOAD_BYTES = 2 * 1024 * 1024
"""Of a payload or result that travels in requests and answers, as JSON text."""
MAX_RESPONSE_PAYLOAD_BYTES = 2 * MAX_PAYLOAD_BYTES
"""Of payloads and results in one answer: Lambda's 6 MB hold that in Base64, with all that is told besides."""


RetentionClass: TypeAlias = Literal["open", "ended", "long"]
"""How long an object is kept, from when it was stored or kept anew: two years, as long as an ended job, for ever."""


class PayloadStore(Protocol):
    """What keeps payloads and results that no row can hold."""

    def put(self, key: str, text: str, *, retention_class: RetentionClass) -> None:
        """Store an object."""

    def get(self, key: str) -> str | None:
        """An object's text; None when it is not there any more."""

    def renew(self, key: str, *, retention_class: RetentionClass, source: str | None = None) -> None:
        """Have an object kept as long as a new one; or make it of another."""

    def remove(self, keys: Sequence[str]) -> None:
        """Forget objects."""

    def url(self, key: str) -> str:
        """Where an object can be read for a while, by anybody who has the URL."""

    def upload_url(self, key: str, size: int) -> str:
        """Where an object of exactly this size in bytes can be put for a while, by anybody who has the URL."""

    def size(self, key: str) -> int | None:
        """How large an object is; None when there is none."""


@dataclass(frozen=True, kw_only=True)
class JobPayloads:
    """Payload and result of a job as JSON text; None where there is none, or where its URL stands in for it."""

    payload: str | None
    result: str | None
    payload_url: str | None = None
    result_url: str | None = None


@dataclass(frozen=True, kw_only=True)
class IndexedJob:
    """A job, and where index `due` shows it; None for nowhere."""

    job: Job
    index_entry: tuple[str, str] | None


class JobStore:
    """Reads and writes jobs. Ids and decisions come from the caller. What has expired is not found: DynamoDB takes days
    to remove it.

    A job's rows expire together. The state says when; what is written beside it before the end (payload, fallback,
    older history) is kept for `retention` longer than that, and once the job has ended is given the state's time.
    """

    def __init__(
        self,
        table: Table,
        objects: PayloadStore,
        *,
        now: Callable[[], datetime],
        retention: timedelta = DEFAULT_RETENTION,
        queue_partitions: int = 1,
    ) -> None:
        self._table = table
        self._objects = objects
        self._now = now
        self._retention = retention
        self._queue_partitions = queue_partitions

    def find(self, namespace: str, job_id: str) -> Job | None:
        """The job as a reader sees it; a tombstone has `deleted` set. One read unit, consistent."""
        key = keys.job(namespace, job_id)
        rows = self._table.query_page(key.pk, between=("A", "B")).rows
        by_sk = {row["sk"]: row for row in rows}
        job = job_from_row(by_sk["A"], by_sk.get("B")) if "A" in by_sk else None
        return None if job is None or self._has_expired(job) else job

    def find_many(
        self, namespace: str, job_ids: Iterable[str], *, live: bool = False, consistent: bool = True
    ) -> dict[str, Job]:
        """The jobs that exist, by id; tombstones included. With `live`, progress and message as reported last."""
        indexed_jobs = self.find_indexed(namespace, job_ids, live=live, consistent=consistent)
        return {job_id: shown.job for job_id, shown in indexed_jobs.items()}

    def find_indexed(
        self, namespace: str, job_ids: Iterable[str], *, live: bool = False, consistent: bool = True
    ) -> dict[str, IndexedJob]:
        """The same, each with the place at which index `due` shows it."""
        unique_ids = list(dict.fromkeys(job_ids))
        row_keys = [keys.job(namespace, job_id) for job_id in unique_ids]
        if live:
            row_keys += [keys.live(namespace, job_id) for job_id in unique_ids]
        rows = self._table.batch_get(row_keys, consistent=consistent)
        indexed_jobs = {
            job_id: IndexedJob(
                job=job_from_row(row, rows.get(keys.live(namespace, job_id))),
                index_entry=(row["g1pk"], row["g1sk"]) if "g1pk" in row else None,
            )
            for job_id in unique_ids
            if (row := rows.get(keys.job(namespace, job_id))) is not None
        }
        return {job_id: shown for job_id, shown in indexed_jobs.items() if not self._has_expired(shown.job)}

    def create(self, job: Job, acquisitions: Sequence[LockAcquisition] = ()) -> None:
        """Store the first version, together with the holds that it takes.

        Raises:
            JobCreationFailed: the id is taken.
            ConditionFailed: a hold was taken by somebody else since it was read.
        """
        job = replace(job, expires_at=self.expiry_of(job))
        if job.scheduled_at is not None and job.scheduled_at > job.created_at:
            self._extend_day_ttl(job)
        try:
            self._write(
                [
                    Put(row=job_to_row(job, queue_partitions=self._queue_partitions), condition=ABSENT),
                    *_lock_writes(None, job, acquisitions),
                ]
            )
        except ConditionFailed as error:
            if error.index == 0 and error.old is not None and job_from_row(error.old) == job:
                return  # The SDK repeated a request whose answer was lost, and met what it wrote itself.
            if error.index == 0:
                raise JobCreationFailed(f"Job with ID {job.job_id} already exists") from error
            raise

    def save(self, before: Job, after: Job, acquisitions: Sequence[LockAcquisition] = ()) -> None:
        """Store the version that follows `before`; nothing when they are the same.

        Raises:
            ConditionFailed: the job has moved on since it was read.
        """
        if after == before:
            return
        if after.version == before.version:
            self.renew_ttl(before)
            self._table.put(_live_put(after, self._retention))
            return
        after = replace(after, expires_at=expires_at_of(before, after, self._retention))
        if not after.ended and after.expires_at != before.expires_at:
            self._extend_ttl(after)
        if len(after.log) > MAX_STATE_LOG_LINES:
            *older, newest = after.log
            self._table.put(Put(row=log_to_row(after, older) | {"ttl": self._side_row_ttl(after)}))
            after = replace(after, log=(newest,))
        self._write(
            [
                Put(row=job_to_row(after, queue_partitions=self._queue_partitions), condition=_unchanged(before)),
                *_lock_writes(before, after, acquisitions),
            ]
        )
        if after.ended and not before.ended:
            self._expire_side_rows(before, after)

    def renew_ttl(self, job: Job) -> None:
        """Begin the life of an open job anew, if it is in its second half; nothing otherwise. Changes no version."""
        expires_at = expires_at_of(job, replace(job, updated_at=self._now()), self._retention)
        if job.ended or expires_at == job.expires_at:
            return
        renewed = replace(job, expires_at=expires_at)
        self._extend_ttl(renewed)
        with suppress(ConditionFailed):
            self._table.update(
                Update(
                    key=keys.job(job.namespace, job.job_id),
                    expression="SET #ttl = :ttl",
                    names=TTL_NAMES,
                    values={":ttl": to_epoch_s(expires_at)},
                    condition=version_is(job.version),
                )
            )

    def put_payload(self, job: Job, nonce: str, text: str) -> str:
        """Store a payload, before the job that points to it. Returns the pointer."""
        return self._put_payload_text(job, keys.payload(job.namespace, job.job_id, nonce), "payload", text)

    def put_fallback(self, job: Job, nonce: str, text: str) -> str:
        """Store what is the result of a job that fails for good. Returns the pointer."""
        return self._put_payload_text(job, keys.result(job.namespace, job.job_id, 0, nonce), "result", text)

    def put_payloads(self, job: Job, nonce: str, *, payload: str | None, fallback: str | None) -> Job:
        """Store what a job is to be created with, where there is any. Returns the job, pointing to it."""
        return replace(
            job,
            payload_ref=None if payload is None else self.put_payload(job, nonce, payload),
            fallback_ref=None if fallback is None else self.put_fallback(job, nonce, fallback),
        )

    def upload_url(self, namespace: str, reference: str, size: int) -> str:
        """Where something of this size can be uploaded, to be adopted by a job of this namespace."""
        return self._objects.upload_url(keys.upload_name(namespace, reference), size)

    def upload_size(self, namespace: str, reference: str) -> int | None:
        """How large an upload is; None when there is none."""
        return self._objects.size(keys.upload_name(namespace, reference))

    def adopt_payload(self, job: Job, nonce: str, reference: str) -> str:
        """Make an upload, which stays as it is, the payload of a job to be created. Returns the pointer."""
        return self._adopt(job, keys.payload(job.namespace, job.job_id, nonce).sk, reference)

    def adopt_result(self, job: Job, nonce: str, reference: str) -> str:
        """Make an upload, which stays as it is, the result of a job that ends. Returns the pointer."""
        return self._adopt(job, keys.result(job.namespace, job.job_id, job.attempt, nonce).sk, reference)

    def _adopt(self, job: Job, sk: str, reference: str) -> str:
        name, upload = keys.object_name(job.namespace, job.job_id, sk), keys.upload_name(job.namespace, reference)
        self._objects.renew(name, retention_class=_retention_class(job), source=upload)
        return keys.object_ref(None, sk)

    def index_entry_of(self, job: Job) -> tuple[str, str] | None:
        """Where index `due` is to show a job; None for nowhere."""
        row = {} if job.deleted else index_attributes(job, self._queue_partitions)
        return (row["g1pk"], row["g1sk"]) if row else None

    def repair_index_entry(self, job: Job) -> None:
        """Show a job in index `due` where its state says. Changes no version.

        Raises:
            ConditionFailed: the job has moved on since it was read.
        """
        entry = self.index_entry_of(job)
        expression = "REMOVE g1pk, g1sk" if entry is None else "SET g1pk = :g1pk, g1sk = :g1sk"
        self._table.update(
            Update(
                key=keys.job(job.namespace, job.job_id),
                expression=expression,
                values={} if entry is None else {":g1pk": entry[0], ":g1sk": entry[1]},
                condition=version_is(job.version),
            )
        )

    def mark_has_waits(self, job: Job) -> Job | None:
        """From now on the matcher is to see each version of the job; returns the job as it is now, None when it is
        gone."""
        return self._mark(job, "SET has_waits = :true, needs_matching = :true")

    def mark_has_subscribers(self, job: Job) -> Job | None:
        """From now on the notifier is to look who subscribed to the job; returns the job as it is now, None when it is
        gone."""
        return self._mark(job, "SET has_subscribers = :true")

    def _mark(self, job: Job, expression: str) -> Job | None:
        key = keys.job(job.namespace, job.job_id)
        try:
            row = self._table.update(Update(key=key, expression=expression, values={":true": True}, condition=PRESENT))
        except ConditionFailed:
            return None
        return job_from_row(row)

    def put_result(self, job: Job, nonce: str, text: str) -> str:
        """Store the result of a job that ends, before the version that points to it. Returns the pointer."""
        return self._put_payload_text(job, keys.result(job.namespace, job.job_id, job.attempt, nonce), "result", text)

    def expiry_of(self, job: Job) -> datetime:
        """When this version expires, as far as it says so itself."""
        return expires_at_of(job, job, self._retention)

    def payloads(self, job: Job, *, payload: bool = True, max_bytes: int = MAX_RESPONSE_PAYLOAD_BYTES) -> JobPayloads:
        """Payload and result: rows in one request, and a request for each object that fits into the room in bytes; a
        URL in place of one that does not. The payload only if it is wanted."""
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

    def history(self, job: Job) -> list[JobLogEntry]:
        """Every line of the job's history, oldest first."""
        pk = keys.job(job.namespace, job.job_id).pk
        lines = {
            line.version: line
            for row in query_all(self._table, pk, begins="L#")
            for line in log_from_text(row["log"], job.created_at)
        }
        lines |= {line.version: line for line in job.log}
        return [lines[version] for version in sorted(lines) if version <= job.version]

    def purge(self, job: Job) -> None:
        """Remove every row of a job but its tombstone, and its objects."""
        if objects := self._object_keys(job, job.result_ref):
            self._objects.remove(objects)
        pk = keys.job(job.namespace, job.job_id).pk
        self._table.batch_write(
            deletes=[keys.Key(pk, row["sk"]) for row in query_all(self._table, pk, between=("B", "Z"))]
        )

    def _write(self, actions: Sequence[Put | Delete]) -> None:
        first, *side_writes = actions
        if side_writes or not isinstance(first, Put):
            self._table.transact(actions)
        else:
            self._table.put(first)

    def _put_payload_text(self, job: Job, key: keys.Key, entity: str, text: str) -> str:
        size = len(text.encode())
        if size > MAX_ROW_BYTES:
            self._objects.put(
                keys.object_name(job.namespace, job.job_id, key.sk), text, retention_class=_retention_class(job)
            )
            return keys.object_ref(size, key.sk)
        ttl = to_epoch_s(self.expiry_of(job)) if job.ended else self._side_row_ttl(job)
        self._table.put(Put(row={**row_head(key, entity), "body": text, "ttl": ttl}))
        return key.sk

    def _has_expired(self, job: Job) -> bool:
        return job.expires_at is not None and job.expires_at <= self._now()

    def _side_row_ttl(self, job: Job) -> int:
        """Of a row beside the state of a job that may yet end, as late as that."""
        expires_at = job.expires_at or self.expiry_of(job)
        return to_epoch_s(expires_at if job.ended else expires_at + self._retention)

    def _extend_ttl(self, job: Job) -> None:
        """What lies beside the state is to be kept as long as it, before the state itself is: a job must not lose its
        payload."""
        for key in self._object_keys(job):
            self._objects.renew(key, retention_class=_retention_class(job))
        self._set_ttl(job, job, PRESENT)
        self._extend_day_ttl(job)

    def _expire_side_rows(self, before: Job, after: Job) -> None:
        """What lies beside the state of a job that has ended is to expire with it; not what somebody who revives the
        job has prolonged meanwhile."""
        unchanged_ttl = WriteCondition(
            expression="#ttl = :was", names=TTL_NAMES, values={":was": self._side_row_ttl(before)}
        )
        self._set_ttl(before, after, unchanged_ttl)
        objects = self._object_keys(before)
        for key in objects:
            self._objects.renew(key, retention_class=_retention_class(after))
        if objects and (current := self.find(after.namespace, after.job_id)) is not None and not current.ended:
            # Somebody has revived the job meanwhile, and objects know no conditions.
            self._extend_ttl(current)

    def _set_ttl(self, before: Job, job: Job, condition: WriteCondition) -> None:
        pk = keys.job(job.namespace, job.job_id).pk
        refs = [ref for ref in (job.payload_ref, job.fallback_ref) if ref and not keys.parse_object_ref(ref)]
        if before.log[0].version > 1:
            refs += [row["sk"] for row in query_all(self._table, pk, begins="L#")]
        for ref in refs:
            with suppress(ConditionFailed):
                self._table.update(
                    Update(
                        key=keys.Key(pk, ref),
                        expression="SET #ttl = :ttl",
                        names=TTL_NAMES,
                        values={":ttl": self._side_row_ttl(job)},
                        condition=condition,
                    )
                )

    def _object_keys(self, job: Job, *extra_refs: str | None) -> list[str]:
        """The objects beside the state of a job that may yet end, and of these pointers besides."""
        refs = dict.fromkeys(ref for ref in (job.payload_ref, job.fallback_ref, *extra_refs) if ref is not None)
        parsed = filter(None, map(keys.parse_object_ref, refs))
        return [keys.object_name(job.namespace, job.job_id, sk) for _, sk in parsed]

    def _extend_day_ttl(self, job: Job) -> None:
        """The day of a job that lives longer than usual is to be found in lists as long as it."""
        until = (job.expires_at or job.created_at) + self._retention
        extend_day_ttl(self._table, job.namespace, "jobs", job.created_at.date(), expires_at=until)


def _retention_class(job: Job) -> RetentionClass:
    if job.ended:
        return "ended"
    return "long" if job.scheduled_at is not None and job.scheduled_at > job.updated_at + OPEN_JOB_TTL else "open"


def _unchanged(job: Job) -> WriteCondition:
    """The row is the version that was read, and nobody has begun to wait for the job or to follow it since: a version
    without the mark would be kept from the matcher, or told nobody."""
    condition = version_is(job.version)
    unmarked = [
        name for name, marked in (("has_waits", job.has_waits), ("has_subscribers", job.has_subscribers)) if not marked
    ]
    expression = " AND ".join([condition.expression, *(f"attribute_not_exists({name})" for name in unmarked)])
    return WriteCondition(expression=expression, values=condition.values)


def _lock_writes(before: Job | None, after: Job, acquisitions: Sequence[LockAcquisition]) -> list[Put | Delete]:
    """What is written together with a version: the holds that it takes, the place in line that it takes or leaves."""
    writes: list[Put | Delete] = [lock_put(after, claim) for claim in acquisitions]
    if after.mutex.position is not None and (before is None or before.mutex.position != after.mutex.position):
        writes.append(queue_entry_put(after, after.mutex.position))
    if before is not None and before.mutex.position is not None and after.mutex.position is None:
        writes.append(
            Delete(key=keys.mutex_queue_entry(before.namespace, str(before.mutex.key), before.mutex.position))
        )
    return writes


def _live_put(job: Job, retention: timedelta) -> Put:
    """Build the write of a live row, conditional on a lower live version."""
    condition = WriteCondition(
        expression="attribute_not_exists(pk) OR live_version < :next", values={":next": job.live_version}
    )
    return Put(row=live_to_row(job, retention), condition=condition)
