"""An authorizer that allows every key of the admin function."""

import json
from typing import Any


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Return a simple response with a context."""
    header = event["headers"].get("authorization", "")
    print(json.dumps({"level": "INFO", "message": "asked", "route": event["routeKey"]}))  # noqa: T201
    return {"isAuthorized": header.startswith("Bearer vgl_"), "context": {"namespace": "default", "scopes": "admin"}}
