"""The results of dependencies: the limits of their readers, and the errors of results that cannot be read. Pure.

A reader shows each result, marks it as left out, or fails with one of these errors. It never replaces data by null.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vigil_core.domain.errors import VigilError
from vigil_core.domain.jobs.conditions import DependencyResult

MAX_INLINE_DEPENDENCIES = 100
"""The number of dependencies that a claim or the event of a function contains."""
MAX_INLINE_BYTES = 256 * 1024
"""The size of all results in a claim or the event of a function."""
MAX_CLAIM_BYTES = 512 * 1024
"""The size of all results in the answer to one claim. With ten payloads, the answer fits into a Lambda response."""
MAX_PAGE_BYTES = 1_500_000
"""The size of the results on one page of dependencies. A Lambda response has at most 6 MB, escaped as JSON."""
MAX_EXPRESSION_DEPENDENCIES = 1_000
"""The number of dependencies that a condition, a join, an output or a template reads."""
MAX_EXPRESSION_BYTES = 6 * 1024 * 1024
"""The size of all results that a condition, a join, an output or a template reads."""
DEPENDENCIES_LIMIT = "dependencies_per_expression"
BYTES_LIMIT = "result_bytes_per_expression"
DEPTH_LIMIT = "result_levels"
RESULT_TOO_LARGE = "RESULT_TOO_LARGE"
RESULT_UNAVAILABLE = "RESULT_UNAVAILABLE"


class ResultUnreadable(VigilError):
    """The results of dependencies cannot all be read."""


class ResultTooLarge(ResultUnreadable):
    """The results of dependencies exceed a limit, which the message names."""

    code = RESULT_TOO_LARGE

    @classmethod
    def by_count(cls, count: int) -> ResultTooLarge:
        """Return the error of too many dependencies."""
        return cls(
            f"The results of {count:,} jobs are needed at once: at most {MAX_EXPRESSION_DEPENDENCIES:,} are allowed "
            f"(limit {DEPENDENCIES_LIMIT})"
        )

    @classmethod
    def by_size(cls, name: str) -> ResultTooLarge:
        """Return the error of results that are too large together; `name` is the first job that exceeds the limit."""
        return cls(
            f"The results up to that of job {name} have more than {MAX_EXPRESSION_BYTES:,} bytes together "
            f"(limit {BYTES_LIMIT})"
        )

    @classmethod
    def by_depth(cls, max_depth: int) -> ResultTooLarge:
        """Return the error of results that are nested too deeply."""
        return cls(f"The results are nested more than {max_depth} levels deep (limit {DEPTH_LIMIT})")


class ResultUnavailable(ResultUnreadable):
    """The result of a dependency no longer exists, or is an upload that is not JSON."""

    code = RESULT_UNAVAILABLE


@dataclass(frozen=True, kw_only=True)
class InlineResults:
    """The first dependencies of a job, as its worker receives them with the job."""

    results: Sequence[DependencyResult] = ()
    truncated: bool = False
    """Whether a dependency or a result is left out."""


def dependencies_url(job_id: str) -> str:
    """Return the path at which all dependencies of a job are listed with their results, page by page."""
    return f"/v1/jobs/{job_id}/dependencies/results"
