"""WebSocket tickets: a row each, gone with its first use."""

from __future__ import annotations

from vigil_core.domain.access import Scope, Ticket, sort_scopes
from vigil_core.domain.timestamps import from_text, to_epoch_s, to_text
from vigil_core.store import keys
from vigil_core.store.table import ABSENT, PRESENT, ConditionFailed, Delete, Put, Table


class TicketStore:
    """The tickets that have not been used yet."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def add(self, ticket: Ticket) -> None:
        """Store a new ticket. Raises ConditionFailed when its id is taken."""
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
        """A ticket that nobody has used; it may have expired."""
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
        """Use a ticket up. False when somebody else was first: of two at once, one gets in."""
        try:
            self._table.delete(Delete(key=keys.ticket(ticket.namespace, ticket.ticket_id), condition=PRESENT))
        except ConditionFailed:
            return False
        return True
