"""A valid wait request, and the limits of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vigil_core.domain.exact_json import JsonValue
from vigil_core.domain.waits.wait import WaitOptions

DEFAULT_EXPIRES_S = 86_400
MAX_EXPIRES_S = 30 * 86_400
MAX_GET_FIELDS = 100
MAX_CONDITION_BYTES = 8 * 1024
MAX_WAITED_JOBS_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class WaitRequest:
    """A valid wait request, or a wait answer that is posted back."""

    wait_id: str | None
    """The id of the wait whose answer is posted back."""
    wait_on: Mapping[str, JsonValue]
    """Each condition as the client wrote it. Empty if an answer without `wait_on` is posted back."""
    options: WaitOptions
    raw_options: Mapping[str, JsonValue]
    expires_in_s: int
    waited_jobs: Mapping[str, JsonValue]
    """The earlier answer, which the new wait returns unchanged."""
    known_job_ids: frozenset[str]
    """The jobs whose outcomes are in the answer that is posted back."""
    known_outcomes: int
    """The number of outcomes that the client knows. The answer of a large wait does not list all of them."""
