"""Job types: what all jobs of a kind have in common, given a name once so that no creation has to repeat it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from vigil_core.domain.exact_json import JsonValue, canonical
from vigil_core.domain.jobs.job import Executor


@dataclass(frozen=True, kw_only=True)
class JobType:
    """One version of a job type. `defaults` is part of a creation's body; `payload_schema` None lets any payload pass.

    It is read when a job is created and never after: what a job took from its type stays with the job.
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
    """What the executors `lambda` and `http` have run."""
    version: int = 1

    @property
    def target_ref(self) -> str | None:
        """The name of this very target: the same for the same, so that a job keeps the one that it was created with."""
        return None if self.target is None else hashlib.sha256(canonical(self.target).encode()).hexdigest()[:32]

    def as_next_version(self, previous: JobType) -> JobType:
        """This as the next version of what stands under the same name; that itself when nothing differs."""
        after = replace(self, created_at=previous.created_at, version=previous.version + 1)
        unchanged = replace(after, updated_at=previous.updated_at, version=previous.version) == previous
        return previous if unchanged else after
