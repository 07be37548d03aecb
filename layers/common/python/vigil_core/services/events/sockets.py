"""Send messages to a WebSocket, and remove its rows when it is closed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from vigil_core.services.context import UsesConnections


class SocketsContext(UsesConnections, Protocol):
    """The stored connections and subscriptions."""


class Sockets(Protocol):
    """The open WebSockets."""

    def post(self, connection_id: str, text: str) -> bool:
        """Send a message. Return False if the WebSocket is closed."""

    def close(self, connection_id: str) -> bool:
        """Close a WebSocket. Return False if it was closed already."""


def send_messages(
    ctx: SocketsContext, sockets: Sockets, namespace: str, connection_id: str, texts: Iterable[str]
) -> bool:
    """Send messages in order.

    Returns:
        False if the WebSocket is closed. Its connection and subscriptions are removed then.
    """
    for text in texts:
        if not sockets.post(connection_id, text):
            ctx.connections.disconnect(namespace, connection_id)
            return False
    return True


def close_socket(ctx: SocketsContext, sockets: Sockets, namespace: str, connection_id: str) -> bool:
    """Close a WebSocket that cannot receive a message, and remove its connection. The client can connect again.

    Returns:
        False, like `send_messages` for a closed WebSocket.
    """
    ctx.connections.disconnect(namespace, connection_id)
    sockets.close(connection_id)
    return False
