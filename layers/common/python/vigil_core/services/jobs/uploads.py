"""Uploads: payloads and results that a client puts directly into the bucket, because a request has no room for them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from vigil_core.domain.errors import ValidationFailed
from vigil_core.schemas.uploads import MAX_UPLOAD_BYTES
from vigil_core.services.context import UsesClock, UsesJobs


class UploadsContext(UsesJobs, UsesClock, Protocol):
    """The collaborators of uploads."""


URL_TTL = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class Upload:
    """An upload URL for a number of bytes, and the reference of the upload."""

    reference: str
    url: str
    size: int
    expires_at: datetime


def create_upload_url(ctx: UploadsContext, namespace: str, reference: str, size: int) -> Upload:
    """Create a signed URL for an upload of exactly this size. Only jobs of this namespace can adopt the upload."""
    url = ctx.jobs.upload_url(namespace, reference, size)
    return Upload(reference=reference, url=url, size=size, expires_at=ctx.now() + URL_TTL)


def require_uploaded(ctx: UploadsContext, namespace: str, reference: str, name: str) -> str:
    """Check that an upload has arrived, and return its reference.

    Raises:
        ValidationFailed: The upload does not exist; the problem points to the member `name`.
    """
    size = ctx.jobs.upload_size(namespace, reference)
    if size is None or size > MAX_UPLOAD_BYTES:
        raise ValidationFailed.at(f"/{name}", "there is no such upload: it has not arrived, or it expired after a day")
    return reference


def claim_upload(ctx: UploadsContext, namespace: str, reference: str, job_id: str, name: str) -> None:
    """Let an upload belong to a job. The same job may name it again, for example in a repeated request.

    Raises:
        ValidationFailed: The upload belongs to another job; the problem points to the member `name`.
    """
    owner = ctx.jobs.claim_upload(namespace, reference, job_id)
    if owner != job_id:
        raise ValidationFailed.at(f"/{name}", f"the upload belongs to job {owner}, which named it first")
