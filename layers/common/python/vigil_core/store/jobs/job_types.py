"""Job types in the table: one partition per namespace, sorted by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from vigil_core.domain.exact_json import dumps, loads
from vigil_core.domain.jobs.job_type import JobType
from vigil_core.domain.timestamps import from_text, to_text
from vigil_core.store import keys
from vigil_core.store.jobs.targets import TARGET_TTL, TargetStore
from vigil_core.store.table import ABSENT, PRESENT, ConditionFailed, Delete, Put, Row, Table, version_is


class JobTypeStore:
    """Reads and writes job types and their targets."""

    def __init__(self, table: Table, *, now: Callable[[], datetime]) -> None:
        self._table = table
        self._targets = TargetStore(table)
        self._now = now

    def find(self, namespace: str, name: str) -> JobType | None:
        """Read a job type consistently, at one read unit per 4 KB."""
        row = self._table.get(keys.job_type(namespace, name))
        return _from_row(namespace, row) if row else None

    def find_many(self, namespace: str, names: Iterable[str]) -> dict[str, JobType]:
        """Read the existing job types of a list of names, at one request per 100."""
        rows = self._table.batch_get([keys.job_type(namespace, name) for name in names])
        return {key.sk: _from_row(namespace, row) for key, row in rows.items()}

    def page(self, namespace: str, *, after: str | None, limit: int) -> tuple[list[JobType], str | None]:
        """Read a page of job types in order of name, and the name after which the next page starts.

        The name is None at the end. A page can be shorter than `limit`, because DynamoDB ends it after 1 MB.
        """
        pk = keys.job_types(namespace)
        cursor = None if after is None else keys.job_type(namespace, after)._asdict()
        page = self._table.query_page(pk, limit=limit, cursor=cursor)
        return [_from_row(namespace, row) for row in page.rows], page.cursor["sk"] if page.cursor else None

    def save(self, before: JobType | None, after: JobType) -> None:
        """Store the version after `before`.

        Raises:
            ConditionFailed: The job type has changed since `before` was read.
        """
        condition = ABSENT if before is None else version_is(before.version)
        self._table.put(Put(row=_to_row(after), condition=condition))

    def store_target(self, job_type: JobType) -> None:
        """Store the target of a job type under its hash, before the job type itself.

        The target stays when the job type changes or is deleted, because jobs refer to it. It expires after them.
        """
        if job_type.target is not None:
            self._targets.put(job_type.namespace, job_type.target, expires_at=self._now() + TARGET_TTL)

    def target(self, namespace: str, target_ref: str) -> Mapping[str, Any]:
        """Read a target consistently."""
        return self._targets.find(namespace, target_ref)

    def remove(self, namespace: str, name: str) -> bool:
        """Remove a job type, and return whether it existed."""
        try:
            self._table.delete(Delete(key=keys.job_type(namespace, name), condition=PRESENT))
        except ConditionFailed:
            return False
        return True


def _to_row(job_type: JobType) -> Row:
    pk, sk = keys.job_type(job_type.namespace, job_type.name)
    return {
        "pk": pk,
        "sk": sk,
        "entity": "job_type",
        "schema_version": 1,
        "executor": job_type.executor,
        "queue": job_type.queue,
        "stages": list(job_type.stages),
        # JSON text keeps every number exactly.
        "defaults": dumps(job_type.defaults) if job_type.defaults else None,
        "payload_schema": None if job_type.payload_schema is None else dumps(job_type.payload_schema),
        "target": None if job_type.target is None else dumps(job_type.target),
        "description": job_type.description,
        "created_at": to_text(job_type.created_at),
        "updated_at": to_text(job_type.updated_at),
        "version": job_type.version,
    }


def _from_row(namespace: str, row: Row) -> JobType:
    defaults: Any = loads(row.get("defaults", "{}"))
    schema: Any = loads(row["payload_schema"]) if "payload_schema" in row else None
    target: Any = loads(row["target"]) if "target" in row else None
    return JobType(
        namespace=namespace,
        name=row["sk"],
        executor=row["executor"],
        queue=row["queue"],
        stages=tuple(row["stages"]),
        defaults=defaults,
        payload_schema=schema,
        target=target,
        description=row.get("description"),
        created_at=from_text(row["created_at"]),
        updated_at=from_text(row["updated_at"]),
        version=row["version"],
    )
