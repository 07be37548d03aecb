"""A check of every write of a test: each row expires, except configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from vigil_core.store.keys import Key
from vigil_core.store.table import Action, DynamoTable, Put, Row, Update

CONFIGURATION = frozenset({"schedule", "job_type", "webhook", "api_key", "signing_key", "namespace"})
"""The rows that stay until a client or an operator deletes them."""


class RowWithoutTtl(AssertionError):
    """A row was written that never expires."""


def require_ttl(row: Mapping[str, Any]) -> None:
    """Check a complete row.

    Raises:
        RowWithoutTtl: The row is neither configuration nor does it have a TTL.
    """
    if row.get("entity") not in CONFIGURATION and not row.get("ttl"):
        raise RowWithoutTtl(f"{row.get('entity')} row {row['pk']} {row['sk']} has no ttl")


def require_ttls(monkeypatch: pytest.MonkeyPatch, *, record: Callable[[Row], None] | None = None) -> None:
    """Check each row that is put or updated from now on, and pass it to `record`."""
    put, update, transact, batch_write = (
        DynamoTable.put,
        DynamoTable.update,
        DynamoTable.transact,
        DynamoTable.batch_write,
    )

    def check(row: Row) -> None:
        if record is not None:
            record(row)
        require_ttl(row)

    def checked_put(self: DynamoTable, action: Put) -> None:
        check(action.row)
        put(self, action)

    def checked_update(self: DynamoTable, action: Update) -> Row:
        row = update(self, action)
        check(row)
        return row

    def checked_transact(self: DynamoTable, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Put):
                check(action.row)
        transact(self, actions)

    def checked_batch_write(self: DynamoTable, puts: Sequence[Row] = (), deletes: Sequence[Key] = ()) -> None:
        for row in puts:
            check(row)
        batch_write(self, puts, deletes)

    monkeypatch.setattr(DynamoTable, "put", checked_put)
    monkeypatch.setattr(DynamoTable, "update", checked_update)
    monkeypatch.setattr(DynamoTable, "transact", checked_transact)
    monkeypatch.setattr(DynamoTable, "batch_write", checked_batch_write)
