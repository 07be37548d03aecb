"""Give out WebSocket tickets: a browser cannot set a header on a WebSocket, and a key has no place in a URL."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from vigil_core.domain.access import ID_BYTES, SECRET_BYTES, TICKET_TTL, Access, Scope, Ticket, Token, TokenKind
from vigil_core.store.auth.tickets import TicketStore


class TicketIssuer:
    """`random_hex(n)` gives n random bytes as 2n hexadecimal digits."""

    def __init__(self, *, tickets: TicketStore, now: Callable[[], datetime], random_hex: Callable[[int], str]) -> None:
        self._tickets = tickets
        self._now = now
        self._random_hex = random_hex

    def __call__(self, access: Access) -> tuple[Token, datetime]:
        """A ticket with the rights of the asker, and when it expires. Raises Forbidden without the scope `read`."""
        access.require(Scope.READ)
        token = Token(
            kind=TokenKind.TICKET,
            namespace=access.namespace,
            id=self._random_hex(ID_BYTES),
            secret=self._random_hex(SECRET_BYTES),
        )
        expires_at = self._now() + TICKET_TTL
        self._tickets.add(
            Ticket(
                namespace=access.namespace,
                ticket_id=token.id,
                key_id=access.key_id,
                secret_hash=token.secret_hash(),
                scopes=access.scopes,
                expires_at=expires_at,
            )
        )
        return token, expires_at
