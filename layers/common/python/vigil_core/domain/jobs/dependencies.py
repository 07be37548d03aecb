"""Dependencies of a job, as the job and its dependencies store them. Pure. See `trigger_rules` for the rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

DependencyStatus: TypeAlias = Literal["none", "waiting", "satisfied", "failed"]
MAX_DEPENDENCIES = 100
"""The number of dependencies of one job. Its row contains them all."""


@dataclass(frozen=True, kw_only=True)
class Dependency:
    """A dependency of a job, with its version when the job was created. Earlier versions have no effect."""

    job_id: str
    known_version: int


@dataclass(frozen=True, kw_only=True)
class Dependent:
    """A job that waits for a dependency in a certain attempt; `index` is the number of the dependency."""

    job_id: str
    attempt: int
    index: int
    known_version: int
