"""Page tokens: signed cursors, which a client cannot change."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable

from vigil_core.domain.errors import ValidationFailed
from vigil_core.domain.exact_json import JsonValue, canonical
from vigil_core.store.signing_keys import SigningKeyStore

_MAC_BYTES = 16
_SIGNING_KEY_BYTES = 32


class PageTokens:
    """Sign cursors with the page-token key of the namespace. `random_bytes(n)` returns n random bytes."""

    def __init__(self, *, signing_keys: SigningKeyStore, random_bytes: Callable[[int], bytes]) -> None:
        self._signing_keys = signing_keys
        self._random_bytes = random_bytes
        self._keys_by_namespace: dict[str, bytes] = {}

    def sign(self, namespace: str, cursor: str | None, *, list_identity: JsonValue) -> str | None:
        """Return the token of a cursor in one list, or None without a cursor.

        `list_identity` is the route and the filters of the list.
        """
        if cursor is None:
            return None
        return _encode(self._mac(namespace, cursor, list_identity) + cursor.encode())

    def verify(self, namespace: str, token: str | None, *, list_identity: JsonValue) -> str | None:
        """Return the cursor of a token, or None without a token.

        Raises:
            ValidationFailed: The token was not signed for this list.
        """
        if token is None:
            return None
        try:
            signed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            mac, cursor = signed[:_MAC_BYTES], signed[_MAC_BYTES:].decode()
        except (binascii.Error, ValueError):
            signed, mac, cursor = b"", b"", ""
        # Several Base64 texts encode the same bytes, because the last letter has unused bits. Accept only one of them.
        if token != _encode(signed) or not hmac.compare_digest(mac, self._mac(namespace, cursor, list_identity)):
            raise ValidationFailed.at("?page_token", "is not a token of this list with these filters")
        return cursor

    def _mac(self, namespace: str, cursor: str, list_identity: JsonValue) -> bytes:
        signing_key = self._keys_by_namespace.get(namespace)
        if signing_key is None:
            signing_key = self._signing_keys.find_or_add(namespace, self._random_bytes(_SIGNING_KEY_BYTES))
            self._keys_by_namespace[namespace] = signing_key
        signed_bytes = canonical([namespace, list_identity, cursor]).encode()
        return hmac.new(signing_key, signed_bytes, hashlib.sha256).digest()[:_MAC_BYTES]


def _encode(signed: bytes) -> str:
    return base64.urlsafe_b64encode(signed).decode().rstrip("=")
