"""Lambda function `authorizer`: resolves an API key or ticket, for the HTTP API and the WebSocket API."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import Any

import boto3
from aws_lambda_powertools import Logger
from botocore.config import Config

from vigil_core.api.authorizer import authenticate_event, authorizer_response, is_websocket
from vigil_core.runtime.settings import AuthorizerSettings
from vigil_core.services.auth.context import AuthContext
from vigil_core.store.auth.api_keys import ApiKeyStore
from vigil_core.store.auth.tickets import TicketStore
from vigil_core.store.namespaces import NamespaceStore
from vigil_core.store.table import DynamoTable

logger = Logger()

# API Gateway and the client wait for the answer. Two attempts end within this function's timeout of 5 seconds.
FAIL_FAST_CONFIG = Config(connect_timeout=1, read_timeout=1, retries={"mode": "standard", "total_max_attempts": 2})


@cache
def auth_context() -> AuthContext:
    """Return the context, built once per process.

    It is not in `wiring`, whose imports would slow down each cold start.
    """
    table_name = AuthorizerSettings.from_environment().table_name
    table = DynamoTable(boto3.client("dynamodb", config=FAIL_FAST_CONFIG), table_name)
    return AuthContext(
        api_keys=ApiKeyStore(table),
        tickets=TicketStore(table),
        namespaces=NamespaceStore(table, now=now, concurrency=0),
        now=now,
    )


def now() -> datetime:
    """Return the current time."""
    return datetime.now(UTC)


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Answer one authorizer request, and write one log line without the token."""
    access = authenticate_event(auth_context(), event)
    logger.info(
        "allowed" if access else "refused",
        extra={
            "action": "authorize",
            "api": "websocket" if is_websocket(event) else "http",
            "namespace": access.namespace if access else None,
            "key_id": access.key_id if access else None,
        },
    )
    return authorizer_response(event, access)
