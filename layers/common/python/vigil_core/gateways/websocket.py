"""Open WebSockets, through the management API of API Gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vigil_core.domain.exact_json import to_ascii

if TYPE_CHECKING:
    from mypy_boto3_apigatewaymanagementapi.client import ApiGatewayManagementApiClient


class WebSockets:
    """The sockets of one WebSocket API. Faults of AWS are raised after the retries of the SDK."""

    def __init__(self, client: ApiGatewayManagementApiClient) -> None:
        self._client = client

    def post(self, connection_id: str, text: str) -> bool:
        """Send a message and return True; return False if the client has disconnected."""
        try:
            self._client.post_to_connection(ConnectionId=connection_id, Data=to_ascii(text).encode())
        except self._client.exceptions.GoneException:
            return False
        return True

    def close(self, connection_id: str) -> bool:
        """Close a socket and return True; return False if it is closed already."""
        try:
            self._client.delete_connection(ConnectionId=connection_id)
        except self._client.exceptions.GoneException:
            return False
        return True
