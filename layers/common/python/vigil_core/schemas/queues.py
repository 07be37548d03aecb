"""Request models of queues."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from vigil_core.domain.exact_json import integral_to_int
from vigil_core.schemas.base import LeaseSeconds, Name, RequestModel

MAX_CLAIM_SIZE = 10


class ClaimBody(RequestModel):
    """A worker's request for jobs."""

    max: Annotated[int, Field(ge=1, le=MAX_CLAIM_SIZE), BeforeValidator(integral_to_int)] | None = Field(
        default=None, description="Maximum number of jobs. 1 when absent"
    )
    lease: LeaseSeconds | None = Field(default=None, description="Length of each lease in seconds. 60 when absent")
    worker: Name | None = Field(default=None, description="Name of the worker. The id of the API key when absent")
    claim_id: Name | None = Field(
        default=None,
        description="Makes the claim idempotent: a repeated claim with the same id returns the same jobs, for example "
        "after a lost answer",
    )
