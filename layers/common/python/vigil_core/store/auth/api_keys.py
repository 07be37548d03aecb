"""API keys: one partition per namespace, read by id or listed together."""

from __future__ import annotations

from datetime import datetime

from vigil_core.domain.access import ApiKey, Scope, sort_scopes
from vigil_core.domain.timestamps import from_text, to_text
from vigil_core.store import keys
from vigil_core.store.table import ABSENT, PRESENT, ConditionFailed, Put, Row, Table, Update, query_all


class ApiKeyStore:
    """The API keys of every namespace."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def add(self, key: ApiKey) -> None:
        """Store a new key, or raise ConditionFailed if its id exists."""
        self._table.put(Put(row=_to_row(key), condition=ABSENT))

    def find(self, namespace: str, key_id: str) -> ApiKey | None:
        """Read a key, revoked or not."""
        row = self._table.get(keys.api_key(namespace, key_id))
        return _from_row(row) if row else None

    def find_all(self, namespace: str) -> list[ApiKey]:
        """Read all keys of a namespace, oldest first."""
        rows = query_all(self._table, keys.api_keys(namespace))
        return sorted(map(_from_row, rows), key=lambda key: (key.created_at, key.key_id))

    def revoke(self, namespace: str, key_id: str, now: datetime) -> ApiKey | None:
        """Mark a key as revoked and return it; None if there is no such key. The first revocation time stays."""
        update = Update(
            key=keys.api_key(namespace, key_id),
            expression="SET revoked_at = if_not_exists(revoked_at, :now)",
            values={":now": to_text(now)},
            condition=PRESENT,
        )
        try:
            return _from_row(self._table.update(update))
        except ConditionFailed:
            return None


def _to_row(key: ApiKey) -> Row:
    pk, sk = keys.api_key(key.namespace, key.key_id)
    return {
        "pk": pk,
        "sk": sk,
        "entity": "api_key",
        "schema_version": 1,
        "namespace": key.namespace,
        "secret_hash": key.secret_hash,
        "scopes": list(map(str, sort_scopes(key.scopes))),
        "name": key.name,
        "created_at": to_text(key.created_at),
        "revoked_at": to_text(key.revoked_at) if key.revoked_at else None,
    }


def _from_row(row: Row) -> ApiKey:
    return ApiKey(
        namespace=row["namespace"],
        key_id=row["sk"],
        secret_hash=row["secret_hash"],
        scopes=frozenset(map(Scope, row["scopes"])),
        name=row.get("name"),
        created_at=from_text(row["created_at"]),
        revoked_at=from_text(row["revoked_at"]) if "revoked_at" in row else None,
    )
