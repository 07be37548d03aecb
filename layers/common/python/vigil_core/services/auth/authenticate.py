"""Resolve an API key or a ticket to the namespace and scopes of the client.

A key and a ticket contain their namespace, an id and a secret. The namespace and the id name the row; the secret must
match the hash in that row.

Both functions return None for any input that is not a valid key or ticket, even if it is not a string. Errors of AWS
are raised: an outage does not mean that a key is wrong.
"""

from __future__ import annotations

from typing import Protocol

from vigil_core.domain.access import Access, TokenKind, parse_token
from vigil_core.services.auth.context import UsesApiKeys, UsesNamespaces, UsesTickets, UsesTime

_SCHEME = "bearer "


class AuthenticateContext(UsesApiKeys, UsesTickets, UsesNamespaces, UsesTime, Protocol):
    """Access to the API keys, the tickets, the states of namespaces and the time."""


def authenticate_header(ctx: AuthenticateContext, authorization: object) -> Access | None:
    """Resolve the API key of an Authorization header, `Bearer <API key>`, to its namespace and scopes.

    Returns:
        The access of the key; None if the key is unknown, wrong or revoked, or its namespace is not active.
    """
    if not isinstance(authorization, str) or authorization[: len(_SCHEME)].lower() != _SCHEME:
        return None
    token = parse_token(authorization[len(_SCHEME) :].strip(), TokenKind.API_KEY)
    key = token and ctx.api_keys.find(token.namespace, token.id)
    if not token or not key or not token.matches_hash(key.secret_hash) or key.revoked:
        return None
    if not ctx.namespaces.read(key.namespace).active:
        return None
    return Access(namespace=key.namespace, scopes=key.scopes, key_id=key.key_id)


def authenticate_ticket(ctx: AuthenticateContext, text: object) -> Access | None:
    """Resolve a ticket to the namespace and scopes of its key, and consume the ticket.

    Returns:
        The access of the ticket; None if it is unknown, wrong, expired or used, if its key was revoked, or if its
        namespace is not active.
    """
    token = parse_token(text, TokenKind.TICKET)
    ticket = token and ctx.tickets.find(token.namespace, token.id)
    if not token or not ticket or not token.matches_hash(ticket.secret_hash) or ticket.expires_at <= ctx.now():
        return None
    key = ctx.api_keys.find(ticket.namespace, ticket.key_id)
    if key is None or key.revoked or not ctx.namespaces.read(ticket.namespace).active:
        return None
    if not ctx.tickets.consume(ticket):
        return None
    return Access(namespace=ticket.namespace, scopes=ticket.scopes, key_id=ticket.key_id)
