"""Serves the WebSocket API.

It answers by posting to the connection: the return value of the function does not reach the client.
"""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools import Logger

from vigil_core.domain.access import Access
from vigil_core.domain.errors import LimitExceeded
from vigil_core.services.events.subscriptions import Peer, connect, disconnect, receive
from vigil_core.wiring import api_keys, context, web_sockets

logger = Logger()


def handler(event: dict[str, Any], _: object) -> dict[str, Any]:
    """Handle one event of a WebSocket. The type of the event decides, because a message can name any route."""
    request = event["requestContext"]
    access, connection_id = Access.from_authorizer_context(request["authorizer"]), request["connectionId"]
    status, outcome = 200, "done"
    match request["eventType"]:
        case "CONNECT":
            try:
                if not connect(context(), api_keys(), access, connection_id):
                    status, outcome = 403, "refused"
            except LimitExceeded:
                status, outcome = 429, "refused"
        case "MESSAGE":
            peer = Peer(access=access, connection_id=connection_id, sockets=web_sockets())
            outcome = receive(context(), peer, event.get("body") or "")
        case "DISCONNECT":
            disconnect(context(), access, connection_id)
    logger.info(
        outcome,
        extra={
            "action": f"websocket_{request['eventType'].lower()}",
            "namespace": access.namespace,
            "key_id": access.key_id,
            "connection_id": connection_id,
        },
    )
    return {"statusCode": status}
