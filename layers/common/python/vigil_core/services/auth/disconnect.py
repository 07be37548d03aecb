"""Close the WebSockets of a key that was revoked."""

from __future__ import annotations

from vigil_core.services.events.sockets import Sockets
from vigil_core.store.connections import ConnectionStore


def disconnect_key(connections: ConnectionStore, sockets: Sockets, namespace: str, key_id: str) -> int:
    """Close every WebSocket that was opened with a key, and return the number that was open.

    Each WebSocket is closed before its row is removed. If the process crashes between the two steps, a second call
    finds the row and continues.
    """
    closed = 0
    for connection_id in connections.connection_ids_of_key(namespace, key_id):
        closed += sockets.close(connection_id)
        connections.disconnect(namespace, connection_id)
    return closed
