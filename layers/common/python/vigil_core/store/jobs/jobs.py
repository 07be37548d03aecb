"""Jobs in the table: state row, live row, payload, result, fallback and older history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from vigil_core.domain.errors import JobCreationFailed
from vigil_core.domain.jobs.job import Job, JobLogEntry
from vigil_core.domain.jobs.retention import DEFAULT_RETENTION, expires_at_of
from vigil_core.domain.timestamps import to_epoch_s
from vigil_core.store import keys
from vigil_core.store.jobs.job_rows import (
    index_attributes,
    job_from_row,
    job_to_row,
    live_to_row,
    log_from_text,
    log_to_row,
)
from vigil_core.store.jobs.payloads import JobPayloadStore, PayloadStore, retention_class_of
from vigil_core.store.jobs.targets import TargetStore
from vigil_core.store.listing import extend_day_ttl
from vigil_core.store.locks import LockAcquisition, lock_put, queue_entry_put, ttl_extensions
from vigil_core.store.queues import extend_queue_ttl, queue_ttl
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
"""The number of history lines in the state row. Older lines go to a row of their own, so that a write of the state row
costs one write unit."""
TTL_NAMES = {"#ttl": "ttl"}
QUEUE_CHECK_AGE = timedelta(days=7)
"""The age from which a job extends the TTL of its queue when it enters index `due`. A younger job has extended it at
its creation, and the sweep extends it each day while the queue has jobs in the index."""


@dataclass(frozen=True, kw_only=True)
class IndexedJob:
    """A job and the key of its entry in index `due`; None without an entry."""

    job: Job
    index_entry: tuple[str, str] | None


class JobStore(JobPayloadStore):
    """Reads and writes jobs. Reads ignore expired jobs, because DynamoDB may take days to remove them.

    All rows of a job expire together. While the job is open, its side rows (payload, fallback, older history) expire
    `retention` later than the state row. When the job ends, they get the expiry of the state row.
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
        super().__init__(table, objects, now=now, retention=retention)
        self._queue_partitions = queue_partitions
        self._targets = TargetStore(table)

    def find(self, namespace: str, job_id: str) -> Job | None:
        """Read a job consistently, at one read unit; a tombstone has `deleted` set."""
        key = keys.job(namespace, job_id)
        rows = self._table.query_page(key.pk, between=("A", "B")).rows
        by_sk = {row["sk"]: row for row in rows}
        job = job_from_row(by_sk["A"], by_sk.get("B")) if "A" in by_sk else None
        return None if job is None or self._has_expired(job) else job

    def find_many(
        self, namespace: str, job_ids: Iterable[str], *, live: bool = False, consistent: bool = True
    ) -> dict[str, Job]:
        """Read the existing jobs by id, including tombstones; with `live`, include the live rows."""
        indexed_jobs = self.find_indexed(namespace, job_ids, live=live, consistent=consistent)
        return {job_id: indexed.job for job_id, indexed in indexed_jobs.items()}

    def find_indexed(
        self, namespace: str, job_ids: Iterable[str], *, live: bool = False, consistent: bool = True
    ) -> dict[str, IndexedJob]:
        """Read jobs like `find_many`, each with the key of its entry in index `due`."""
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
        return {job_id: indexed for job_id, indexed in indexed_jobs.items() if not self._has_expired(indexed.job)}

    def create(self, job: Job, acquisitions: Sequence[LockAcquisition] = ()) -> None:
        """Store the first version of a job in one transaction with its lock acquisitions.

        Raises:
            JobCreationFailed: The id is taken.
            ConditionFailed: Another job has acquired one of the locks since it was read.
        """
        job = replace(job, expires_at=self.expiry_of(job))
        if job.scheduled_at is not None and job.scheduled_at > job.created_at:
            self._extend_day_ttl(job)
        self._keep_target(job)
        try:
            self._write(
                [
                    Put(row=job_to_row(job, queue_partitions=self._queue_partitions), condition=ABSENT),
                    *_lock_writes(None, job, acquisitions, ttl=self._side_row_ttl(job)),
                ]
            )
        except ConditionFailed as error:
            if error.index == 0 and error.old is not None and job_from_row(error.old) == job:
                return  # The SDK repeated a request whose response was lost. The first one had stored the job.
            if error.index == 0:
                raise JobCreationFailed(f"Job with ID {job.job_id} already exists") from error
            raise

    def save(self, before: Job, after: Job, acquisitions: Sequence[LockAcquisition] = ()) -> None:
        """Store the version after `before`; write nothing if the two are equal.

        1. A version that only differs in live attributes: write the live row, and nothing else.
        2. Extend the TTL of the side rows if the state row gets a later expiry.
        3. Move older history lines to a row of their own if the state row has too many.
        4. Write the state row on condition that the version is still that of `before`, in one transaction with the
           lock acquisitions.
        5. If the job has ended, give the side rows the expiry of the state row.

        If the process crashes before step 4, only TTLs and copies of history lines have changed, which has no effect.
        If it crashes after step 4, the side rows of the ended job expire later than the state row.

        Raises:
            ConditionFailed: The job has changed since `before` was read.
        """
        if after == before:
            return
        if after.version == before.version:
            self.renew_ttl(before)
            self._table.put(_live_put(after, self._retention))
            return
        after = replace(after, expires_at=expires_at_of(before, after, self._retention))
        if not after.ended and after.expires_at != before.expires_at:
            self._extend_ttl(after, acquisitions)
        self._keep_queue(before, after)
        if len(after.log) > MAX_STATE_LOG_LINES:
            *older, newest = after.log
            self._table.put(Put(row=log_to_row(after, older) | {"ttl": self._side_row_ttl(after)}))
            after = replace(after, log=(newest,))
        self._write(
            [
                Put(row=job_to_row(after, queue_partitions=self._queue_partitions), condition=_unchanged(before)),
                *_lock_writes(before, after, acquisitions, ttl=self._side_row_ttl(after)),
            ]
        )
        if after.ended and not before.ended:
            self._expire_side_rows(before, after)

    def renew_ttl(self, job: Job) -> None:
        """Renew the TTL of an open job in the second half of its life, without a new version."""
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

    def index_entry_of(self, job: Job) -> tuple[str, str] | None:
        """Return the key that a job must have in index `due`; None for no entry."""
        row = {} if job.deleted else index_attributes(job, self._queue_partitions)
        return (row["g1pk"], row["g1sk"]) if row else None

    def repair_index_entry(self, job: Job) -> None:
        """Write the correct key in index `due` into a job's row, without a new version.

        Raises:
            ConditionFailed: The job has changed since it was read.
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
        """Mark a job so that the matcher receives each later version of it.

        Returns:
            The job after the mark; None if it no longer exists.
        """
        return self._mark(job, "SET has_waits = :true, needs_matching = :true")

    def mark_has_subscribers(self, job: Job) -> Job | None:
        """Mark a job so that the notifier looks up its subscriptions for each later version.

        Returns:
            The job after the mark; None if it no longer exists.
        """
        return self._mark(job, "SET has_subscribers = :true")

    def _mark(self, job: Job, expression: str) -> Job | None:
        key = keys.job(job.namespace, job.job_id)
        try:
            row = self._table.update(Update(key=key, expression=expression, values={":true": True}, condition=PRESENT))
        except ConditionFailed:
            return None
        return job_from_row(row)

    def history(self, job: Job, *, from_version: int = 1, limit: int | None = None) -> list[JobLogEntry]:
        """Read the history of a job from a version on, oldest line first, at most `limit` lines.

        The older lines are in rows named after their first versions, so only the rows with these lines are read.
        """
        lines = {line.version: line for line in job.log}
        if from_version < job.log[0].version:
            through = job.log[0].version if limit is None else from_version + limit
            for row in self._log_rows(job, from_version, through):
                lines = {line.version: line for line in log_from_text(row["log"], job.created_at)} | lines
        versions = [version for version in sorted(lines) if from_version <= version <= job.version]
        return [lines[version] for version in versions[:limit]]

    def _log_rows(self, job: Job, from_version: int, before_version: int) -> Iterator[Row]:
        """Yield the rows with the history lines of some versions."""
        pk, first = keys.job(job.namespace, job.job_id).pk, keys.log(job.namespace, job.job_id, from_version).sk
        earlier = self._table.query_page(pk, between=(keys.LOG, first), newest_first=True, limit=1).rows
        low = earlier[0]["sk"] if earlier else first
        last = keys.log(job.namespace, job.job_id, before_version).sk
        return query_all(self._table, pk, between=(low, last))

    def purge(self, job: Job) -> None:
        """Remove the objects of a deleted job, and all its rows except the tombstone."""
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

    def _has_expired(self, job: Job) -> bool:
        return job.expires_at is not None and job.expires_at <= self._now()

    def _extend_ttl(self, job: Job, acquisitions: Sequence[LockAcquisition] = ()) -> None:
        """Extend the life of the side rows, objects, locks and target, before that of the state row.

        Otherwise a job could lose its payload after a crash between the two writes.
        """
        for key in self._object_keys(job):
            self._objects.renew(key, retention_class=retention_class_of(job))
        self._set_ttl(job, job, PRESENT)
        self._extend_day_ttl(job)
        self._keep_target(job)
        acquired = [(acquisition.kind, acquisition.name) for acquisition in acquisitions]
        for update in ttl_extensions(job, ttl=self._side_row_ttl(job), acquired=acquired):
            with suppress(ConditionFailed):
                self._table.update(update)

    def _keep_target(self, job: Job) -> None:
        """Let the target of a job live as long as its side rows."""
        if job.target_ref is not None:
            until = (job.expires_at or self.expiry_of(job)) + self._retention
            self._targets.keep_until(job.namespace, job.target_ref, job.job_type, until)

    def _keep_queue(self, before: Job, after: Job) -> None:
        """Extend the TTL of the queue of an old job that enters index `due`.

        Only the sweep of its queue finds the job there, and the queue may have had no other job for long.
        """
        if after.updated_at - before.created_at < QUEUE_CHECK_AGE:
            return
        if self.index_entry_of(before) is None and self.index_entry_of(after) is not None:
            ttl = queue_ttl(self._now(), self._retention)
            extend_queue_ttl(self._table, after.namespace, after.queue, ttl=ttl)

    def _expire_side_rows(self, before: Job, after: Job) -> None:
        """Give the side rows and objects of an ended job the expiry of its state row.

        A concurrent retry of the job must keep its side rows:

        1. A retry first extends the TTL of the side rows, then writes the open version.
        2. This function updates a row on condition that its TTL is still that of `before`, so it changes no extended
           row.
        3. Objects have no conditions. Therefore the function reads the job after it has set their retention class, and
           extends them again if the job is open.
        """
        unchanged_ttl = WriteCondition(
            expression="#ttl = :was", names=TTL_NAMES, values={":was": self._side_row_ttl(before)}
        )
        self._set_ttl(before, after, unchanged_ttl)
        objects = self._object_keys(before)
        for key in objects:
            self._objects.renew(key, retention_class=retention_class_of(after))
        if objects and (current := self.find(after.namespace, after.job_id)) is not None and not current.ended:
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

    def _extend_day_ttl(self, job: Job) -> None:
        """Extend the TTL of the row of the job's creation day, so that lists show the job until it expires."""
        until = (job.expires_at or job.created_at) + self._retention
        extend_day_ttl(self._table, job.namespace, "jobs", job.created_at.date(), expires_at=until)


def _unchanged(job: Job) -> WriteCondition:
    """Build the condition that neither the version nor the marks of a job have changed since it was read.

    A wait or a subscription may mark the row without a new version. A write that removed the mark would hide later
    versions from the matcher or from the notifier.
    """
    condition = version_is(job.version)
    unmarked = [
        name for name, marked in (("has_waits", job.has_waits), ("has_subscribers", job.has_subscribers)) if not marked
    ]
    expression = " AND ".join([condition.expression, *(f"attribute_not_exists({name})" for name in unmarked)])
    return WriteCondition(expression=expression, values=condition.values)


def _lock_writes(
    before: Job | None, after: Job, acquisitions: Sequence[LockAcquisition], *, ttl: int
) -> list[Put | Delete]:
    """Build the writes of a version's transaction: lock acquisitions, and the queue entry that it adds or removes."""
    writes: list[Put | Delete] = [lock_put(after, acquisition, ttl=ttl) for acquisition in acquisitions]
    if after.mutex.position is not None and (before is None or before.mutex.position != after.mutex.position):
        writes.append(queue_entry_put(after, after.mutex.position, ttl=ttl))
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
