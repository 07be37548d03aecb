"""Secrets that Vigil makes for itself, one a namespace."""

from __future__ import annotations

from vigil_core.store import keys
from vigil_core.store.table import ABSENT, ConditionFailed, Put, Row, Table


class SigningKeyStore:
    """The keys that sign page tokens."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def find_or_add(self, namespace: str, new: bytes) -> bytes:
        """The namespace's secret; `new` becomes it when there is none."""
        key = keys.signing_key(namespace)
        row = self._table.get(key)
        if row is not None:
            return bytes(row["secret"])
        new_row: Row = {"pk": key.pk, "sk": key.sk, "entity": "secret", "schema_version": 1, "secret": new}
        try:
            self._table.put(Put(row=new_row, condition=ABSENT))
        except ConditionFailed as error:
            # Somebody else was first, and theirs is the one.
            return bytes((error.old or self._table.get(key) or new_row)["secret"])
        return new
