"""WebSocket tickets: one row each, removed by its first use."""

from __future__ import annotations

from vigil_core.domain.access import Scope, Ticket, sort_scopes
from vigil_core.domain.timestamps import from_text, to_epoch_s, to_text
from vigil_core.store import keys
from vigil_core.store.table import ABSENT, PRESENT, ConditionFailed, Delete, Put, Table


class TicketStore:
    """The unused tickets of every namespace."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def add(self, ticket: Ticket) -> None:
        """Store a new ticket, or raise ConditionFailed if its id exists."""
        pk, sk = keys.ticket(ticket.namespace, ticket.ticket_id)
        row = {
            "pk": pk,
            "sk": sk,
            "entity": "ticket",
            "schema_version": 1,
            "namespace": ticket.namespace,
            "ticket_id": ticket.ticket_id,
            "key_id": ticket.key_id,
            "secret_hash": ticket.secret_hash,
            "scopes": list(map(str, sort_scopes(ticket.scopes))),
            "expires_at": to_text(ticket.expires_at),
            "ttl": to_epoch_s(ticket.expires_at),
        }
        self._table.put(Put(row=row, condition=ABSENT))

    def find(self, namespace: str, ticket_id: str) -> Ticket | None:
        """Read an unused ticket, which may have expired."""
        row = self._table.get(keys.ticket(namespace, ticket_id))
        if row is None:
            return None
        return Ticket(
            namespace=row["namespace"],
            ticket_id=row["ticket_id"],
            key_id=row["key_id"],
            secret_hash=row["secret_hash"],
            scopes=frozenset(map(Scope, row["scopes"])),
            expires_at=from_text(row["expires_at"]),
        )

    def consume(self, ticket: Ticket) -> bool:
        """Remove a ticket at its use. Of two uses at the same time, one gets True and the other False."""
        try:
            self._table.delete(Delete(key=keys.ticket(ticket.namespace, ticket.ticket_id), condition=PRESENT))
        except ConditionFailed:
            return False
        return True
