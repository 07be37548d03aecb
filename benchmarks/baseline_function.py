"""The baseline: the least that a function does to send a new row to a WebSocket. `benchmarks.latency` deploys it."""

from __future__ import annotations

import os
from typing import Any

import boto3

sockets = boto3.client("apigatewaymanagementapi", endpoint_url=os.environ["WEBSOCKET_ENDPOINT"])


def handler(event: dict[str, Any], _: object) -> None:
    """Send the text of each new row to the connection that the row names, and log a line, as Vigil's functions do."""
    for record in event["Records"]:
        row = record["dynamodb"]["NewImage"]
        sockets.post_to_connection(ConnectionId=row["connection"]["S"], Data=row["text"]["S"].encode())
    print(f"sent {len(event['Records'])}")
