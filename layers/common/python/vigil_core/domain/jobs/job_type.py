"""Job types: the executor, target, queue, stages, defaults and payload schema of jobs of one kind. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from vigil_core.domain.exact_json import JsonValue, canonical
from vigil_core.domain.jobs.job import Executor


@dataclass(frozen=True, kw_only=True)
class JobType:
    """One version of a job type.

    `defaults` are members of a creation request. Without a `payload_schema`, every payload is valid. Only the creation
    of a job reads its type, and copies what it needs into the job.
    """

    namespace: str
    name: str
    executor: Executor
    queue: str
    stages: tuple[str, ...]
    defaults: Mapping[str, JsonValue]
    payload_schema: Mapping[str, JsonValue] | None
    description: str | None
    created_at: datetime
    updated_at: datetime
    target: Mapping[str, JsonValue] | None = None
    """The target of the executors `lambda` and `http`."""
    version: int = 1

    @property
    def target_ref(self) -> str | None:
        """The hash of the target. A job stores it, and so keeps the target of its creation."""
        return None if self.target is None else target_ref_of(self.target)

    def as_next_version(self, previous: JobType) -> JobType:
        """Return this definition as the version after `previous`, or `previous` itself if the definitions are equal."""
        after = replace(self, created_at=previous.created_at, version=previous.version + 1)
        unchanged = replace(after, updated_at=previous.updated_at, version=previous.version) == previous
        return previous if unchanged else after


def target_ref_of(target: Mapping[str, JsonValue]) -> str:
    """Return the hash under which a target is stored."""
    return hashlib.sha256(canonical(target).encode()).hexdigest()[:32]
