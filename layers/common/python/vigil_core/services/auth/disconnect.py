"""Close every WebSocket that was opened with a key."""

from __future__ import annotations

from vigil_core.services.events.sockets import Sockets
from vigil_core.store.connections import ConnectionStore


class KeyDisconnector:
    """For a key that has just been revoked."""

    def __init__(self, *, connections: ConnectionStore, sockets: Sockets) -> None:
        self._connections = connections
        self._sockets = sockets

    def __call__(self, namespace: str, key_id: str) -> int:
        """How many sockets were open until now. Each is closed before it is forgotten, so that a repeat finds it."""
        closed = 0
        for connection_id in self._connections.connection_ids_of_key(namespace, key_id):
            closed += self._sockets.close(connection_id)
            self._connections.disconnect(namespace, connection_id)
        return closed
