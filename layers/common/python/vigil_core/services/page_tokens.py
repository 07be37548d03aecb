"""Page tokens: where a list goes on, in a form that a client can neither read meaning into nor change."""

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
    """Signs places with the namespace's own secret. `random_bytes(n)` gives n random bytes."""

    def __init__(self, *, signing_keys: SigningKeyStore, random_bytes: Callable[[int], bytes]) -> None:
        self._signing_keys = signing_keys
        self._random_bytes = random_bytes
        self._keys_by_namespace: dict[str, bytes] = {}

    def sign(self, namespace: str, cursor: str | None, *, list_identity: JsonValue) -> str | None:
        """A token for a place in the list that `of` describes: its route and filters. None for no place."""
        if cursor is None:
            return None
        return _encode(self._mac(namespace, cursor, list_identity) + cursor.encode())

    def verify(self, namespace: str, token: str | None, *, list_identity: JsonValue) -> str | None:
        """The inverse of `sign`. Raises ValidationFailed for a token that was not given out for this very list."""
        if token is None:
            return None
        try:
            signed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            mac, cursor = signed[:_MAC_BYTES], signed[_MAC_BYTES:].decode()
        except (binascii.Error, ValueError):
            signed, mac, cursor = b"", b"", ""
        # Base64 can spell the same bytes in several ways, by bits that its last letter has to spare.
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
