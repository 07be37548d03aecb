"""Issue WebSocket tickets.

A browser cannot set a header on a WebSocket, and an API key must not appear in a URL. A ticket may, because it expires
after 60 seconds and opens one connection.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from vigil_core.domain.access import ID_BYTES, SECRET_BYTES, TICKET_TTL, Access, Scope, Ticket, Token, TokenKind
from vigil_core.services.auth.context import UsesRandomHex, UsesTickets, UsesTime


class TicketsContext(UsesTickets, UsesTime, UsesRandomHex, Protocol):
    """Access to the tickets, the time and randomness."""


def issue_ticket(ctx: TicketsContext, access: Access) -> tuple[Token, datetime]:
    """Create a ticket with the rights of the client.

    Returns:
        The token of the ticket, and the time at which it expires.

    Raises:
        Forbidden: The key of the client does not have the scope `read`.
    """
    access.require(Scope.READ)
    token = Token(
        kind=TokenKind.TICKET,
        namespace=access.namespace,
        id=ctx.random_hex(ID_BYTES),
        secret=ctx.random_hex(SECRET_BYTES),
    )
    expires_at = ctx.now() + TICKET_TTL
    ctx.tickets.add(
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
