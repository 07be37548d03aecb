"""Payloads and results too large for a request: put straight into the bucket, then named in one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from vigil_core.domain.errors import ValidationFailed
from vigil_core.schemas.uploads import MAX_UPLOAD_BYTES
from vigil_core.services.context import UsesClock, UsesJobs


class UploadsContext(UsesJobs, UsesClock, Protocol):
    """What this module uses of the outside world."""


URL_TTL = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class Upload:
    """Where to put so many bytes, and the reference to name them by."""

    reference: str
    url: str
    size: int
    expires_at: datetime


def create_upload_url(ctx: UploadsContext, namespace: str, reference: str, size: int) -> Upload:
    """A place for an upload of exactly this size, in this namespace and no other."""
    url = ctx.jobs.upload_url(namespace, reference, size)
    return Upload(reference=reference, url=url, size=size, expires_at=ctx.now() + URL_TTL)


def require_uploaded(ctx: UploadsContext, namespace: str, reference: str, name: str) -> str:
    """The reference of an upload that is there. Raises ValidationFailed, naming the part that named it."""
    size = ctx.jobs.upload_size(namespace, reference)
    if size is None or size > MAX_UPLOAD_BYTES:
        raise ValidationFailed.at(f"/{name}", "there is no such upload: it has not arrived, or was a day ago")
    return reference
