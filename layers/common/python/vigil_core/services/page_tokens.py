"""Page tokens: where a list goes on, in a form that a client can neither read meaning into nor change."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable

from vigil_core.domain.errors import ValidationFailed
from vigil_core.domain.exact_json import JsonValue, canonical
from vigil_core.store.signing_keys import SecretStore

_MAC_BYTES = 16
_SECRET_BYTES = 32


class PageTokens:
    """Signs places with the namespace's own secret. `random_bytes(n)` gives n random bytes."""

    def __init__(self, *, secrets: SecretStore, random_bytes: Callable[[int], bytes]) -> None:
        self._secrets = secrets
        self._random_bytes = random_bytes
        self._known: dict[str, bytes] = {}

    def sign(self, namespace: str, place: str | None, *, of: JsonValue) -> str | None:
        """A token for a place in the list that `of` describes: its route and filters. None for no place."""
        if place is None:
            return None
        return _text(self._mac(namespace, place, of) + place.encode())

    def place(self, namespace: str, token: str | None, *, of: JsonValue) -> str | None:
        """The inverse of `sign`. Raises ValidationFailed for a token that was not given out for this very list."""
        if token is None:
            return None
        try:
            signed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            mac, place = signed[:_MAC_BYTES], signed[_MAC_BYTES:].decode()
        except (binascii.Error, ValueError):
            signed, mac, place = b"", b"", ""
        # Base64 can spell the same bytes in several ways, by bits that its last letter has to spare.
        if token != _text(signed) or not hmac.compare_digest(mac, self._mac(namespace, place, of)):
            raise ValidationFailed.at("?page_token", "is not a token of this list with these filters")
        return place

    def _mac(self, namespace: str, place: str, of: JsonValue) -> bytes:
        secret = self._known.get(namespace)
        if secret is None:
            secret = self._secrets.find_or_add(namespace, self._random_bytes(_SECRET_BYTES))
            self._known[namespace] = secret
        signed = canonical([namespace, of, place]).encode()
        return hmac.new(secret, signed, hashlib.sha256).digest()[:_MAC_BYTES]


def _text(signed: bytes) -> str:
    return base64.urlsafe_b64encode(signed).decode().rstrip("=")
