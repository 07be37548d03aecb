"""Send messages down a socket, and forget the socket when nobody is there any more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from vigil_core.services.context import UsesConnections


class SocketsContext(UsesConnections, Protocol):
    """What this module uses of the outside world."""


class Sockets(Protocol):
    """The open sockets."""

    def post(self, connection_id: str, text: str) -> bool:
        """Send a message; False when nobody is there any more."""

    def close(self, connection_id: str) -> bool:
        """Close a socket; False when it is closed already."""


def send_messages(
    ctx: SocketsContext, sockets: Sockets, namespace: str, connection_id: str, texts: Iterable[str]
) -> bool:
    """Send messages in order. False when the socket is gone: then everything that was stored of it is removed."""
    for text in texts:
        if not sockets.post(connection_id, text):
            ctx.connections.disconnect(namespace, connection_id)
            return False
    return True
