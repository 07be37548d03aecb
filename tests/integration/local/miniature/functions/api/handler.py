"""Says what it was asked and by whom."""

import json
from typing import Any

VERSION = 1


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """The route, the path and what the authorizer handed on."""
    print(f"asked for {event['rawPath']}")  # noqa: T201
    said = event["requestContext"].get("authorizer", {}).get("lambda")
    body = {"route": event["routeKey"], "path": event["rawPath"], "caller": said, "version": VERSION}
    return {"statusCode": 404 if event["routeKey"] == "$default" else 200, "body": json.dumps(body)}
