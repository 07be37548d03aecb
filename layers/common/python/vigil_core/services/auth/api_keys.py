"""Create, list and revoke API keys. An operator does this with AWS credentials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vigil_core.domain.access import (
    ID_BYTES,
    SECRET_BYTES,
    ApiKey,
    Token,
    TokenKind,
    parse_key_request,
    require_namespace,
)
from vigil_core.domain.errors import ValidationFailed
from vigil_core.services.auth.context import UsesApiKeys, UsesRandomHex, UsesTime


class ApiKeysContext(UsesApiKeys, UsesTime, UsesRandomHex, Protocol):
    """Access to the API keys, the time and randomness."""


def create_key(ctx: ApiKeysContext, namespace: object, scopes: object, name: object = None) -> tuple[ApiKey, Token]:
    """Create an API key.

    Returns:
        The key, and its token. The token contains the secret, which Vigil does not store.

    Raises:
        ValidationFailed: The namespace, the scopes or the name are invalid.
    """
    valid_namespace, valid_scopes, valid_name = parse_key_request(namespace, scopes, name)
    token = Token(
        kind=TokenKind.API_KEY,
        namespace=valid_namespace,
        id=ctx.random_hex(ID_BYTES),
        secret=ctx.random_hex(SECRET_BYTES),
    )
    key = ApiKey(
        namespace=token.namespace,
        key_id=token.id,
        secret_hash=token.secret_hash(),
        scopes=valid_scopes,
        name=valid_name,
        created_at=ctx.now(),
    )
    ctx.api_keys.add(key)
    return key, token


def list_keys(ctx: ApiKeysContext, namespace: object) -> list[ApiKey]:
    """Return every key of a namespace, oldest first, including revoked keys.

    Raises:
        ValidationFailed: The namespace is invalid.
    """
    return ctx.api_keys.find_all(require_namespace(namespace))


def revoke_key(
    ctx: ApiKeysContext, namespace: object, key_id: object, *, disconnect: Callable[[str, str], int]
) -> tuple[ApiKey, int]:
    """Revoke a key, then close its WebSockets. The call is idempotent.

    No WebSocket of the key stays open:

    1. This function marks the key as revoked, then reads the open connections.
    2. A new connection is stored first, then reads the key (`subscriptions.connect`).
    3. So either this function finds the connection, or the new connection sees the mark.

    Args:
        ctx: The collaborators.
        namespace: The namespace of the key.
        key_id: The id of the key.
        disconnect: Closes the WebSockets of (namespace, key id) and returns their number.

    Returns:
        The revoked key, and the number of closed WebSockets.

    Raises:
        ValidationFailed: The namespace is invalid or has no such key.
    """
    valid_namespace = require_namespace(namespace)
    key = ctx.api_keys.revoke(valid_namespace, key_id, ctx.now()) if isinstance(key_id, str) and key_id else None
    if key is None:
        raise ValidationFailed.at("/key_id", f"the namespace {valid_namespace} has no such key")
    return key, disconnect(key.namespace, key.key_id)
