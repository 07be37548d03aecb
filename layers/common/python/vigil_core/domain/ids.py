"""Identifiers: UUIDv7 (RFC 9562), lower case."""

from __future__ import annotations

import hashlib
import re
from datetime import datetime

_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def is_uuid7(text: str) -> bool:
    """Return True for a UUIDv7 in its canonical, lower-case form."""
    return _UUID7.fullmatch(text) is not None


def derive_id(parent_id: str, name: str) -> str:
    """Derive an id from a parent id and a name. The same arguments always return the same id.

    A repeated request therefore creates nothing twice. The id has the 48-bit timestamp of its parent, so it sorts next
    to the parent, and it is a valid UUIDv7.
    """
    digest = hashlib.sha256(f"{parent_id}/{name}".encode()).hexdigest()
    variant = "89ab"[int(digest[3], 16) % 4]
    return f"{parent_id[:13]}-7{digest[:3]}-{variant}{digest[4:7]}-{digest[7:19]}"


def workflow_job_id(workflow_id: str, name: str) -> str:
    """Return the id of the job with a name in a run, so that a repeated creation finds the job."""
    return derive_id(workflow_id, f"job/{name}")


def derive_id_at(timestamp: datetime, name: str) -> str:
    """Derive a UUIDv7 with a given timestamp from a name. The same arguments always return the same id."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    ms = f"{int(timestamp.timestamp() * 1000):012x}"
    variant = "89ab"[int(digest[3], 16) % 4]
    return f"{ms[:8]}-{ms[8:]}-7{digest[:3]}-{variant}{digest[4:7]}-{digest[7:19]}"
