"""Executor targets in the table: immutable rows under a hash, to which jobs refer.

A target outlives every job that refers to it, and expires after the last one:

1. The definition of a job type stores its target with a TTL of `TARGET_TTL`.
2. The creation of a job, and every renewal of the job's TTL, extends the target's TTL first. If the process crashes in
   between, the target only lives longer.
3. If no job of a job type was created for so long that the target has expired, the creation stores it again from the
   job type, which has a copy.

A process remembers the TTLs that it has read or written, so it writes once per target and `EXTENSION`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from vigil_core.domain.exact_json import dumps, loads
from vigil_core.domain.jobs.job_type import target_ref_of
from vigil_core.domain.jobs.retention import OPEN_JOB_TTL
from vigil_core.domain.timestamps import to_epoch_s
from vigil_core.store import keys
from vigil_core.store.table import ConditionFailed, Table, Update, WriteCondition

TARGET_TTL = 2 * OPEN_JOB_TTL
"""The life of a target after the definition of its job type."""
EXTENSION = timedelta(days=180)
"""The time that an extension adds to the required TTL, so that extensions are rare."""
MAX_REMEMBERED = 10_000


class TargetStore:
    """Reads, writes and extends targets."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._ttls: dict[tuple[str, str], int] = {}

    def find(self, namespace: str, target_ref: str) -> Mapping[str, Any]:
        """Read a target consistently."""
        row = self._table.get(keys.target(namespace, target_ref))
        if row is None:
            raise LookupError(f"target {target_ref} does not exist")
        document: Any = loads(row["target"])
        return dict(document)

    def put(self, namespace: str, target: Mapping[str, Any], *, expires_at: datetime) -> None:
        """Store a target, or extend the TTL of an equal one that expires earlier."""
        target_ref, ttl = target_ref_of(target), to_epoch_s(expires_at)
        update = Update(
            key=keys.target(namespace, target_ref),
            expression="SET entity = :entity, schema_version = :one, target = :target, #ttl = :ttl",
            names={"#ttl": "ttl"},
            values={":entity": "target", ":one": 1, ":target": dumps(target), ":ttl": ttl},
            condition=WriteCondition(expression="attribute_not_exists(pk) OR #ttl < :ttl"),
        )
        self._remember(namespace, target_ref, self._write(update, ttl))

    def keep_until(self, namespace: str, target_ref: str, job_type: str, expires_at: datetime) -> None:
        """Extend the TTL of a target to that of a job, or store an expired target again.

        Args:
            namespace: The namespace.
            target_ref: The hash of the target.
            job_type: The job type of the job, whose row has a copy of the target.
            expires_at: The expiry of the job's rows.
        """
        if self._ttls.get((namespace, target_ref), 0) >= to_epoch_s(expires_at):
            return
        ttl = to_epoch_s(expires_at + EXTENSION)
        update = Update(
            key=keys.target(namespace, target_ref),
            expression="SET #ttl = :ttl",
            names={"#ttl": "ttl"},
            values={":ttl": ttl},
            condition=WriteCondition(
                expression="attribute_exists(pk) AND #ttl < :required", values={":required": to_epoch_s(expires_at)}
            ),
        )
        stored_ttl = self._write(update, ttl)
        if stored_ttl is not None:
            self._remember(namespace, target_ref, stored_ttl)
        elif (target := self._copy_in_job_type(namespace, job_type)) and target_ref_of(target) == target_ref:
            self.put(namespace, target, expires_at=expires_at + EXTENSION)

    def _write(self, update: Update, ttl: int) -> int | None:
        """Write a TTL, and return the one that the row has afterwards; None if the row does not exist."""
        try:
            self._table.update(update)
        except ConditionFailed as error:
            return None if error.old is None else int(error.old["ttl"])
        return ttl

    def _copy_in_job_type(self, namespace: str, job_type: str) -> Mapping[str, Any] | None:
        row = self._table.get(keys.job_type(namespace, job_type))
        if row is None or "target" not in row:
            return None
        document: Any = loads(row["target"])
        return dict(document)

    def _remember(self, namespace: str, target_ref: str, ttl: int | None) -> None:
        if len(self._ttls) >= MAX_REMEMBERED:
            self._ttls.clear()
        self._ttls[namespace, target_ref] = ttl or 0
