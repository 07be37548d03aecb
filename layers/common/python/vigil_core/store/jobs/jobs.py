"""Jobs in the table: the state row, what is reported alone, payload and result, the history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, Protocol, TypeAlias

from vigil_core.domain.errors import JobCreationFailed
from vigil_core.domain.exact_json import JsonValue, dumps, loads
from vigil_core.domain.jobs.dependencies import Dependency, Verdict
from vigil_core.domain.jobs.job import Job, JobError, JobLogEntry, JobLogKind, Priority
from vigil_core.domain.jobs.retention import DEFAULT_RETENTION, OPEN_JOB_TTL, expires_at_of
from vigil_core.domain.jobs.retry import Lease, RetryPolicy
from vigil_core.domain.jobs.stages import COMPLETE, DEFAULT_STAGES, SUBMIT
from vigil_core.domain.jobs.status import JobStatus
from vigil_core.domain.timestamps import from_epoch_s, from_text, to_epoch_s, to_text
from vigil_core.store import keys
from vigil_core.store.listing import extend_day_ttl
from vigil_core.store.locks import LockAcquisition, lock_put, queue_entry_put
from vigil_core.store.table import (
    ABSENT,
    PRESENT,
    ConditionFailed,
    Delete,
    Put,
    Row,
    Table,
    Update,
    WriteCondition,
    query_all,
    version_is,
)

MAX_STATE_LOG_LINES = 8
"""More lines than that go to a row of their own: the state row is to stay within one write unit."""
TOMBSTONE_TTL = timedelta(days=60)
"""Longer than any wait lives, so that an id cannot come back while somebody waits for its first owner."""
LIVE_ROW_TTL = timedelta(days=30)
"""How long what a job in silence has reported last is kept: each report begins it anew."""
TTL_NAMES = {"#ttl": "ttl"}
SCHEMA_VERSION = 1
PRIORITY_RANKS: Mapping[Priority, int] = {"critical": 0, "high": 1, "normal": 2, "low": 3, "background": 4}
"""Priorities in the order in which workers are given jobs."""


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
            self._table.put(Put(row=_log_row(after, older) | {"ttl": self._side_row_ttl(after)}))
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
        row = {} if job.deleted else _index_attributes(job, self._queue_partitions)
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
        return self._mark(job, "SET awaited = :true, for_matcher = :true")

    def mark_has_subscribers(self, job: Job) -> Job | None:
        """From now on the notifier is to look who subscribed to the job; returns the job as it is now, None when it is
        gone."""
        return self._mark(job, "SET followed = :true")

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
            for line in _log_from_text(row["log"], job.created_at)
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
        self._table.put(Put(row={**_head(key, entity), "body": text, "ttl": ttl}))
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


def job_from_row(state: Row, live: Row | None = None) -> Job:
    """A job from its state row, and from what was reported alone since."""
    namespace, job_id = keys.parse_job(state["pk"])
    created_at = from_text(state["created_at"])
    log = tuple(_log_from_text(state["log"], created_at))
    job = Job(
        namespace=namespace,
        job_id=job_id,
        job_type=state["job_type"],
        name=state.get("name"),
        queue=state.get("queue", "default"),
        priority=state.get("priority", "normal"),
        executor=state.get("executor", "worker"),
        stages=(SUBMIT, *state["stages"], COMPLETE) if "stages" in state else DEFAULT_STAGES,
        status=state["status"],
        stage=state["stage"],
        health=state.get("health"),
        progress=Decimal(state.get("progress", 0)),
        message=state.get("message"),
        milestones=tuple(state.get("milestones", ())),
        fields=_parse_object(state.get("fields")),
        tags=tuple(state.get("tags", ())),
        error=JobError(**state["error"]) if "error" in state else None,
        attempt=state.get("attempt", 1),
        max_attempts=state.get("max_attempts", 1),
        trace_id=state.get("trace_id"),
        correlation_id=state.get("correlation_id"),
        unique_key=state.get("unique_key"),
        mutex_key=state.get("mutex_key"),
        cancel_requested_at=_parse_time(state.get("cancel_requested_at")),
        payload_ref=state.get("payload_ref"),
        result_ref=state.get("result_ref"),
        created_at=created_at,
        updated_at=log[-1].occurred_at,
        started_at=_parse_time(state.get("started_at")),
        finished_at=_parse_time(state.get("finished_at")),
        version=state["version"],
        live_version=state.get("live_version", 0),
        deleted=state.get("deleted", False),
        log=log,
        scheduled_at=_parse_time(state.get("scheduled_at")),
        retry=retry_from_row(state["retry"]) if "retry" in state else None,
        timeout_s=state.get("timeout_s"),
        heartbeat_timeout_s=state.get("heartbeat_timeout_s"),
        fallback_ref=state.get("fallback_ref"),
        target_ref=state.get("target_ref"),
        lease=_lease_from_row(state["lease"]) if "lease" in state else None,
        reported_token=state.get("reported_token"),
        has_waits=state.get("awaited", False),
        has_subscribers=state.get("followed", False),
        queue_on_conflict=state.get("mutex_queues", False),
        mutex_position=state.get("place_in_line"),
        depends_on=tuple(map(_dependency_from_text, state.get("depends_on", ()))),
        trigger_rule=state.get("trigger_rule", "all_success"),
        condition=state.get("condition"),
        dependency_status=state.get("dependency_status", "none"),
        verdict=_verdict_from_row(state["verdict"]) if "verdict" in state else None,
        batch_size=state.get("batch_size"),
        on_item_failure=state.get("on_item_failure", "continue"),
        batch_id=state.get("batch_id"),
        batch_index=state.get("batch_index"),
        workflow_id=state.get("workflow_id"),
        workflow_index=state.get("workflow_place"),
        upstream_names=tuple(state.get("comes_after", ())),
        parked=state.get("held", False),
        expires_at=from_epoch_s(state["ttl"]) if "ttl" in state else None,
        indexed_due_at=keys.timed_at(state["g1sk"]) if state["status"] == "running" and "g1sk" in state else None,
    )
    if live is None or live["attempt"] != job.attempt or live["live_version"] <= job.live_version:
        return job
    lease_extended = job.lease is not None and job.lease.token == live.get("lease_token")
    return replace(
        job,
        lease=replace(job.lease, expires_at=from_text(live["lease_until"]), used=True)
        if job.lease and lease_extended
        else job.lease,
        progress=max(job.progress, Decimal(live["progress"])),
        message=live.get("message"),
        live_version=live["live_version"],
        updated_at=max(job.updated_at, from_text(live["updated_at"])),
    )


def job_to_row(job: Job, *, queue_partitions: int = 1) -> Row:
    """The state row of a job: the inverse of `job_from_row`. Its queue is shown in so many partitions of the index."""
    key = keys.job(job.namespace, job.job_id)
    row: Row = {
        **_head(key, "job"),
        "job_type": job.job_type,
        "name": job.name,
        "queue": _unless_default("default", job.queue),
        "priority": _unless_default("normal", job.priority),
        "executor": _unless_default("worker", job.executor),
        "stages": None if job.stages == DEFAULT_STAGES else list(job.stages[1:-1]),
        "status": job.status,
        "stage": job.stage,
        "health": job.health,
        "progress": _unless_default(0, job.progress),
        "message": job.message,
        "milestones": list(job.milestones) or None,
        "fields": dumps(job.fields) if job.fields else None,
        "tags": list(job.tags) or None,
        "error": None if job.error is None else {"code": job.error.code, "message": job.error.message},
        "attempt": _unless_default(1, job.attempt),
        "max_attempts": _unless_default(1, job.max_attempts),
        "trace_id": job.trace_id,
        "correlation_id": job.correlation_id,
        "unique_key": job.unique_key,
        "mutex_key": job.mutex_key,
        "mutex_queues": job.queue_on_conflict or None,
        "place_in_line": job.mutex_position,
        "depends_on": [f"{each.job_id}#{each.known_version}" for each in job.depends_on] or None,
        "trigger_rule": _unless_default("all_success", job.trigger_rule),
        "condition": job.condition,
        "dependency_status": _unless_default("none", job.dependency_status),
        "verdict": job.verdict and _verdict_to_row(job.verdict),
        "batch_size": job.batch_size,
        "on_item_failure": _unless_default("continue", job.on_item_failure),
        "batch_id": job.batch_id,
        "batch_index": job.batch_index,
        "workflow_id": job.workflow_id,
        "workflow_place": job.workflow_index,
        "comes_after": list(job.upstream_names) or None,
        "held": job.parked or None,
        "cancel_requested_at": job.cancel_requested_at and to_text(job.cancel_requested_at),
        "payload_ref": job.payload_ref,
        "result_ref": job.result_ref,
        "created_at": to_text(job.created_at),
        "started_at": job.started_at and to_text(job.started_at),
        "finished_at": job.finished_at and to_text(job.finished_at),
        "version": job.version,
        "live_version": _unless_default(0, job.live_version),
        "log": _log_to_text(job.log, job.created_at),
        "scheduled_at": job.scheduled_at and to_text(job.scheduled_at),
        "retry": job.retry and retry_to_row(job.retry),
        "timeout_s": job.timeout_s,
        "heartbeat_timeout_s": job.heartbeat_timeout_s,
        "fallback_ref": job.fallback_ref,
        "target_ref": job.target_ref,
        "lease": job.lease and _lease_to_row(job.lease),
        "reported_token": job.reported_token,
        "awaited": job.has_waits or None,
        "followed": job.has_subscribers or None,
        "for_matcher": job.needs_matching or None,
        "ttl": job.expires_at and to_epoch_s(job.expires_at),
    }
    if job.deleted:
        return {**row, "deleted": True, "ttl": to_epoch_s(job.updated_at + TOMBSTONE_TTL)}
    row["g2pk"], row["g2sk"] = keys.listing(job.namespace, "jobs", job.created_at, job.job_id)
    row |= _index_attributes(job, queue_partitions)
    return row


def _index_attributes(job: Job, partitions: int) -> Row:
    """Where index `due` shows a job that has not ended: to workers, or to the sweeper and whoever counts."""
    partition = keys.partition_of(job.job_id, partitions)
    if job.status == "pending" and job.executor != "none" and not job.is_batch:
        partition_of = keys.jobs_to_dispatch if job.dispatchable else keys.ready_jobs
        sort_key = keys.ready_job(PRIORITY_RANKS[job.priority], job.scheduled_at or job.created_at, job.job_id)
        return {"g1pk": partition_of(job.namespace, job.queue, partition), "g1sk": sort_key}
    if job.status == "waiting" and not job.in_run:
        sort_key = keys.timed_job(job.status, job.updated_at, job.job_id)
        return {"g1pk": keys.timed_jobs(job.namespace, job.queue, partition), "g1sk": sort_key}
    if job.due_at is None:
        return {}
    indexed_at = min(job.due_at, job.indexed_due_at or job.due_at)
    return {
        "g1pk": keys.timed_jobs(job.namespace, job.queue, partition),
        "g1sk": keys.timed_job(job.status, indexed_at, job.job_id),
    }


def _unchanged(job: Job) -> WriteCondition:
    """The row is the version that was read, and nobody has begun to wait for the job or to follow it since: a version
    without the mark would be kept from the matcher, or told nobody."""
    condition = version_is(job.version)
    unmarked = [name for name, marked in (("awaited", job.has_waits), ("followed", job.has_subscribers)) if not marked]
    expression = " AND ".join([condition.expression, *(f"attribute_not_exists({name})" for name in unmarked)])
    return WriteCondition(expression=expression, values=condition.values)


def _dependency_from_text(text: str) -> Dependency:
    job_id, version = text.split("#")
    return Dependency(job_id=job_id, known_version=int(version))


def _verdict_to_row(verdict: Verdict) -> Row:
    return {
        "rule": verdict.rule,
        "inputs": dict(verdict.inputs),
        "reason": verdict.reason,
        "through_failure": verdict.through_failure,
    }


def _verdict_from_row(row: Row) -> Verdict:
    inputs = {name: int(count) for name, count in row["inputs"].items()}
    return Verdict(rule=row["rule"], inputs=inputs, reason=row["reason"], through_failure=row["through_failure"])


def _lock_writes(before: Job | None, after: Job, acquisitions: Sequence[LockAcquisition]) -> list[Put | Delete]:
    """What is written together with a version: the holds that it takes, the place in line that it takes or leaves."""
    writes: list[Put | Delete] = [lock_put(after, claim) for claim in acquisitions]
    if after.mutex_position is not None and (before is None or before.mutex_position != after.mutex_position):
        writes.append(queue_entry_put(after, after.mutex_position))
    if before is not None and before.mutex_position is not None and after.mutex_position is None:
        writes.append(
            Delete(key=keys.mutex_queue_entry(before.namespace, str(before.mutex_key), before.mutex_position))
        )
    return writes


def _live_put(job: Job, retention: timedelta) -> Put:
    row = {
        **_head(keys.live(job.namespace, job.job_id), "live"),
        "namespace": job.namespace,
        "job_id": job.job_id,
        "job_type": job.job_type,
        "queue": job.queue,
        "workflow_id": job.workflow_id,
        "attempt": job.attempt,
        "progress": job.progress,
        "message": job.message,
        "live_version": job.live_version,
        "version": job.version,
        "updated_at": to_text(job.updated_at),
        "lease_token": job.lease and job.lease.token,
        "lease_until": job.lease and to_text(job.lease.expires_at),
        "ttl": to_epoch_s(job.updated_at + LIVE_ROW_TTL + retention),
    }
    return Put(
        row=row,
        condition=WriteCondition(
            expression="attribute_not_exists(pk) OR live_version < :next", values={":next": job.live_version}
        ),
    )


def _log_row(job: Job, lines: Sequence[JobLogEntry]) -> Row:
    key = keys.log(job.namespace, job.job_id, lines[0].version)
    return {**_head(key, "log"), "log": _log_to_text(lines, job.created_at)}


_CODE_BY_KIND: dict[JobLogKind, str] = {
    "created": "c", "waiting": "w", "ready": "y", "claimed": "k", "started": "s", "updated": "u", "released": "g",
    "lease_expired": "l", "retrying": "t", "completed": "d", "failed": "f", "cancel_requested": "q", "cancelled": "x",
    "retried": "r", "skipped": "n", "deleted": "z",
}  # fmt: skip
_CODE_BY_STATUS: dict[JobStatus, str] = {
    "scheduled": "s", "waiting": "w", "pending": "p", "running": "r", "completed": "c", "failed": "f",
    "cancelled": "x", "skipped": "k",
}  # fmt: skip
_KIND_BY_CODE = {letter: kind for kind, letter in _CODE_BY_KIND.items()}
_STATUS_BY_CODE = {letter: status for status, letter in _CODE_BY_STATUS.items()}


def _log_to_text(lines: Sequence[JobLogEntry], created_at: datetime) -> str:
    """The first version, then each line in some 30 bytes, for it is written with every change: milliseconds since the
    creation, kind, status, stage, by, why. A stage or name that is the same as in the line before is 0."""
    packed: list[JsonValue] = [lines[0].version]
    stage = actor = ""
    for line in lines:
        packed.append(
            [
                (line.occurred_at - created_at) // timedelta(milliseconds=1),
                _CODE_BY_KIND[line.kind] + _CODE_BY_STATUS[line.status],
                0 if line.stage == stage else line.stage,
                0 if line.actor == actor else line.actor,
                *([line.reason] if line.reason else []),
            ]
        )
        stage, actor = line.stage, line.actor
    return dumps(packed)


def _log_from_text(text: str, created_at: datetime) -> list[JobLogEntry]:
    """The inverse of `_log_to_text`."""
    packed: Any = loads(text)
    first, *lines = packed
    entries: list[JobLogEntry] = []
    stage = actor = ""
    for version, (ms, codes, line_stage, line_actor, *reason) in enumerate(lines, first):
        stage, actor = line_stage or stage, line_actor or actor
        entries.append(
            JobLogEntry(
                version=version,
                occurred_at=created_at + timedelta(milliseconds=ms),
                kind=_KIND_BY_CODE[codes[0]],
                actor=actor,
                status=_STATUS_BY_CODE[codes[1]],
                stage=stage,
                reason=reason[0] if reason else None,
            )
        )
    return entries


def retry_to_row(retry: RetryPolicy) -> Row:
    """A policy as a row holds it."""
    return {
        "max": retry.max_attempts,
        "first": retry.initial_delay,
        "cap": retry.max_delay,
        "factor": retry.multiplier,
        "jitter": retry.jitter,
    }


def retry_from_row(row: Row) -> RetryPolicy:
    """The inverse of `retry_to_row`."""
    return RetryPolicy(
        max_attempts=row["max"],
        initial_delay=Decimal(row["first"]),
        max_delay=Decimal(row["cap"]),
        multiplier=Decimal(row["factor"]),
        jitter=row["jitter"],
    )


def _lease_to_row(lease: Lease) -> Row:
    row: Row = {"token": lease.token, "by": lease.worker, "s": lease.duration_s, "until": to_text(lease.expires_at)}
    if lease.used:
        row["used"] = True
    return row if lease.claim_id is None else {**row, "claim": lease.claim_id}


def _lease_from_row(row: Row) -> Lease:
    return Lease(
        token=row["token"],
        worker=row["by"],
        duration_s=row["s"],
        expires_at=from_text(row["until"]),
        claim_id=row.get("claim"),
        used=row.get("used", False),
    )


def _unless_default(default: object, value: object) -> object:
    """None, which is not stored, for the value that a reader takes an absent one for."""
    return None if value == default else value


def _head(key: keys.Key, entity: str) -> Row:
    return {"pk": key.pk, "sk": key.sk, "entity": entity, "schema_version": SCHEMA_VERSION}


def _parse_object(text: str | None) -> Mapping[str, Any]:
    value: Any = loads(text) if text else {}
    return dict(value)


def _parse_time(text: str | None) -> Any:
    return from_text(text) if text else None
