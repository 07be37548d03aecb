"""An admin function that creates keys."""

import uuid
from typing import Any


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Create a key for a namespace."""
    print("made a key")  # noqa: T201
    key_id = uuid.uuid4().hex[:8]
    return {"key": {"key_id": key_id}, "token": f"vgl_{event['namespace']}_{key_id}_{uuid.uuid4().hex}"}
