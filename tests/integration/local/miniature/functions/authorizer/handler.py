"""Lets in whoever has a key that the admin function made."""

import json
from typing import Any


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """A simple response with a context."""
    given = event["headers"].get("authorization", "")
    print(json.dumps({"level": "INFO", "message": "asked", "route": event["routeKey"]}))  # noqa: T201
    return {"isAuthorized": given.startswith("Bearer vgl_"), "context": {"namespace": "default", "scopes": "admin"}}
