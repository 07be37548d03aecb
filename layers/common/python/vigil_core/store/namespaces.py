"""Namespaces: their states and overrides of limits, and all rows of one namespace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from vigil_core.domain.limits import LIMIT_NAMES, LimitName, NamespaceSettings, NamespaceState, default_limit
from vigil_core.domain.timestamps import from_text, to_text
from vigil_core.store import keys
from vigil_core.store.table import Delete, Row, Table, Update

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

SETTINGS_CACHE = timedelta(seconds=45)
"""The age at which a process reads the settings of a namespace again. A suspension takes effect within 60 s."""


class NamespaceStore:
    """The states and the overrides of namespaces. A process caches them for `SETTINGS_CACHE`."""

    def __init__(self, table: Table, *, now: Callable[[], datetime], concurrency: int) -> None:
        self._table = table
        self._now = now
        self._concurrency = concurrency
        self._cache: dict[str, tuple[datetime, NamespaceSettings]] = {}

    def settings(self, namespace: str) -> NamespaceSettings:
        """Return the settings of a namespace, at most `SETTINGS_CACHE` old."""
        cached = self._cache.get(namespace)
        if cached is None or not cached[0] <= self._now() < cached[0] + SETTINGS_CACHE:
            cached = self._now(), self.read(namespace)
            self._cache[namespace] = cached
        return cached[1]

    def limit(self, namespace: str, name: LimitName) -> int:
        """Return the value of a limit, at most `SETTINGS_CACHE` old."""
        return self.settings(namespace).limit(name, self._concurrency)

    def default(self, name: LimitName) -> int:
        """Return the default of a limit."""
        return default_limit(name, self._concurrency)

    def is_active(self, namespace: str) -> bool:
        """Return whether a namespace works, as of at most `SETTINGS_CACHE` ago."""
        return self.settings(namespace).active

    def read(self, namespace: str) -> NamespaceSettings:
        """Read the current settings of a namespace."""
        row = self._table.get(keys.namespace(namespace))
        return NamespaceSettings(namespace=namespace) if row is None else _settings(namespace, row)

    def set_limit(self, namespace: str, name: LimitName, value: int | None) -> NamespaceSettings:
        """Override a limit, or restore its default with None."""
        attribute = f"limit_{name}"
        change = "REMOVE #limit" if value is None else "SET #limit = :value"
        return self._update(namespace, change, {"#limit": attribute}, {} if value is None else {":value": value})

    def set_state(self, namespace: str, state: NamespaceState) -> NamespaceSettings:
        """Store the state of a namespace, with the time at which it begins."""
        change = "SET #state = :state, state_since = :now"
        values = {":state": str(state), ":now": to_text(self._now())}
        return self._update(namespace, change, {"#state": "state"}, values)

    def remove(self, namespace: str) -> None:
        """Remove the settings of a namespace: it is active, with the default limits."""
        self._table.delete(Delete(key=keys.namespace(namespace)))
        self._cache.pop(namespace, None)

    def _update(
        self, namespace: str, change: str, names: Mapping[str, str], values: Mapping[str, object]
    ) -> NamespaceSettings:
        head = "entity = :entity, schema_version = :one"
        verb, _, rest = change.partition(" ")
        expression = f"SET {head}, {rest}" if verb == "SET" else f"SET {head} {change}"
        row = self._table.update(
            Update(
                key=keys.namespace(namespace),
                expression=expression,
                names=names,
                values={":entity": "namespace", ":one": 1, **values},
            )
        )
        self._cache.pop(namespace, None)
        return _settings(namespace, row)


@dataclass(frozen=True, kw_only=True)
class NamespaceRows:
    """All rows of a namespace, whatever their keys. Only the deletion of a namespace scans the table."""

    client: DynamoDBClient
    table_name: str

    def page(self, namespace: str, cursor: Mapping[str, str] | None) -> tuple[list[keys.Key], dict[str, str] | None]:
        """Read a megabyte of the table, and return the keys of the namespace and the next cursor.

        The settings of the namespace are not among the keys.
        """
        request: dict[str, Any] = {
            "TableName": self.table_name,
            "ConsistentRead": True,
            "ProjectionExpression": "pk, sk",
            "FilterExpression": "begins_with(pk, :prefix) AND pk <> :settings",
            "ExpressionAttributeValues": {
                ":prefix": {"S": f"{namespace}#"},
                ":settings": {"S": keys.namespace(namespace).pk},
            },
        }
        if cursor is not None:
            request["ExclusiveStartKey"] = {name: {"S": value} for name, value in cursor.items()}
        response: Any = self.client.scan(**request)
        found = [keys.Key(item["pk"]["S"], item["sk"]["S"]) for item in response["Items"]]
        last = response.get("LastEvaluatedKey")
        return found, None if last is None else {name: value["S"] for name, value in last.items()}


def _settings(namespace: str, row: Row) -> NamespaceSettings:
    return NamespaceSettings(
        namespace=namespace,
        state=NamespaceState(row.get("state", NamespaceState.ACTIVE)),
        state_since=from_text(row["state_since"]) if "state_since" in row else None,
        overrides={name: row[f"limit_{name}"] for name in LIMIT_NAMES if f"limit_{name}" in row},
    )
