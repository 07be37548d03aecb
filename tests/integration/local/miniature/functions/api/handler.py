"""An API function that returns the request and its authorizer context."""

import json
from typing import Any

VERSION = 1


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Return the route, the path and the context of the authorizer."""
    print(f"asked for {event['rawPath']}")  # noqa: T201
    authorizer_context = event["requestContext"].get("authorizer", {}).get("lambda")
    body = {"route": event["routeKey"], "path": event["rawPath"], "caller": authorizer_context, "version": VERSION}
    return {"statusCode": 404 if event["routeKey"] == "$default" else 200, "body": json.dumps(body)}
