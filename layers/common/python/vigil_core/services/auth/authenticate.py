"""Say who is asking: from an API key or a ticket to the rights behind it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from vigil_core.domain.access import Access, TokenKind, parse_token
from vigil_core.store.auth.api_keys import ApiKeyStore
from vigil_core.store.auth.tickets import TicketStore

_SCHEME = "bearer "


class Authenticator:
    """Takes whatever a stranger sends, and answers None to all of it that proves nothing. Faults of AWS are raised: an
    outage is no wrong key."""

    def __init__(self, *, api_keys: ApiKeyStore, tickets: TicketStore, now: Callable[[], datetime]) -> None:
        self._api_keys = api_keys
        self._tickets = tickets
        self._now = now

    def by_header(self, authorization: object) -> Access | None:
        """The rights behind an Authorization header, `Bearer <API key>`."""
        if not isinstance(authorization, str) or authorization[: len(_SCHEME)].lower() != _SCHEME:
            return None
        token = parse_token(authorization[len(_SCHEME) :].strip(), TokenKind.API_KEY)
        key = token and self._api_keys.find(token.namespace, token.id)
        if not token or not key or not token.matches_hash(key.secret_hash) or key.revoked:
            return None
        return Access(namespace=key.namespace, scopes=key.scopes, key_id=key.key_id)

    def by_ticket(self, text: object) -> Access | None:
        """The rights behind a ticket, which is used up by this."""
        token = parse_token(text, TokenKind.TICKET)
        ticket = token and self._tickets.find(token.namespace, token.id)
        if not token or not ticket or not token.matches_hash(ticket.secret_hash) or ticket.expires_at <= self._now():
            return None
        key = self._api_keys.find(ticket.namespace, ticket.key_id)
        if key is None or key.revoked or not self._tickets.consume(ticket):
            return None
        return Access(namespace=ticket.namespace, scopes=ticket.scopes, key_id=ticket.key_id)
