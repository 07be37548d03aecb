"""Create, list and revoke API keys: what an operator does with AWS credentials."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from vigil_core.domain.access import (
    ID_BYTES,
    SECRET_BYTES,
    ApiKey,
    Token,
    TokenKind,
    namespace_problems,
    parse_key_request,
)
from vigil_core.domain.errors import ValidationFailed
from vigil_core.store.auth.api_keys import ApiKeyStore


class ApiKeyManager:
    """`random_hex(n)` gives n random bytes as 2n hexadecimal digits; `disconnect(namespace, key_id)` closes the sockets
    that were opened with a key and says how many."""

    def __init__(
        self,
        *,
        api_keys: ApiKeyStore,
        disconnect: Callable[[str, str], int],
        now: Callable[[], datetime],
        random_hex: Callable[[int], str],
    ) -> None:
        self._api_keys = api_keys
        self._disconnect = disconnect
        self._now = now
        self._random_hex = random_hex

    def create(self, namespace: object, scopes: object, name: object = None) -> tuple[ApiKey, Token]:
        """A new key, and the only sight of its secret. Raises ValidationFailed."""
        granted_namespace, granted_scopes, granted_name = parse_key_request(namespace, scopes, name)
        token = Token(
            kind=TokenKind.API_KEY,
            namespace=granted_namespace,
            id=self._random_hex(ID_BYTES),
            secret=self._random_hex(SECRET_BYTES),
        )
        key = ApiKey(
            namespace=token.namespace,
            key_id=token.id,
            secret_hash=token.secret_hash(),
            scopes=granted_scopes,
            name=granted_name,
            created_at=self._now(),
        )
        self._api_keys.add(key)
        return key, token

    def list(self, namespace: object) -> list[ApiKey]:
        """Every key of a namespace, revoked ones too, oldest first. Raises ValidationFailed."""
        return self._api_keys.find_all(_require_namespace(namespace))

    def revoke(self, namespace: object, key_id: object) -> tuple[ApiKey, int]:
        """The key, revoked, and how many sockets that closed. Can be repeated. Raises ValidationFailed.

        The mark comes before the look at the sockets: one that opens meanwhile sees the mark.
        """
        valid_namespace = _require_namespace(namespace)
        key = (
            self._api_keys.revoke(valid_namespace, key_id, self._now()) if isinstance(key_id, str) and key_id else None
        )
        if key is None:
            raise ValidationFailed.at("/key_id", f"there is no such key in the namespace {valid_namespace}")
        return key, self._disconnect(key.namespace, key.key_id)


def _require_namespace(namespace: object) -> str:
    if problems := namespace_problems(namespace):
        raise ValidationFailed(problems)
    return str(namespace)
