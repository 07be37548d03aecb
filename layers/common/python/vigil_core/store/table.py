"""A thin, typed layer over the DynamoDB client: Python values in and out, complete pages, one error per conflict.

All access to the table uses these few calls, so tests can inject a fault between any two of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from boto3.dynamodb.types import Binary, TypeDeserializer, TypeSerializer
from botocore.exceptions import ClientError

from vigil_core.domain.errors import StoreConflict
from vigil_core.store.keys import Key

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

Row: TypeAlias = dict[str, Any]

BATCH_GET_LIMIT = 100
BATCH_WRITE_LIMIT = 25
_MAX_RETRIES = 6

INDEX_KEYS: Mapping[str | None, tuple[str, str]] = {
    None: ("pk", "sk"),
    "due": ("g1pk", "g1sk"),
    "listing": ("g2pk", "g2sk"),
    "correlation": ("g3pk", "g2sk"),
}
"""The key attributes of the table and of its indexes."""

_to_dynamo = TypeSerializer()
_from_dynamo = TypeDeserializer()


class ConditionFailed(StoreConflict):
    """A write was refused because its condition is false.

    Attributes:
        old: The row that made the condition false, where DynamoDB returns it; None if there is no such row.
        index: The number of the failed action in its transaction.
    """

    def __init__(self, old: Row | None, index: int = 0) -> None:
        super().__init__("Another writer changed the row first")
        self.old = old
        self.index = index


@dataclass(frozen=True, kw_only=True)
class WriteCondition:
    """A condition expression of DynamoDB with its names and values."""

    expression: str
    names: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


ABSENT = WriteCondition(expression="attribute_not_exists(pk)")
PRESENT = WriteCondition(expression="attribute_exists(pk)")


def version_is(version: int) -> WriteCondition:
    """Build the condition that the row still has the version that was read."""
    return WriteCondition(expression="version = :seen_version", values={":seen_version": version})


@dataclass(frozen=True, kw_only=True)
class Put:
    """A write of a whole row."""

    row: Row
    condition: WriteCondition | None = None


@dataclass(frozen=True, kw_only=True)
class Update:
    """A change of attributes of a row by an update expression."""

    key: Key
    expression: str
    names: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    condition: WriteCondition | None = None


@dataclass(frozen=True, kw_only=True)
class Delete:
    """The removal of a row."""

    key: Key
    condition: WriteCondition | None = None


@dataclass(frozen=True, kw_only=True)
class Check:
    """A condition on a row that a transaction checks and does not write."""

    key: Key
    condition: WriteCondition


Action: TypeAlias = Put | Update | Delete | Check


@dataclass(frozen=True, kw_only=True)
class QueryPage:
    """One page of a query; `cursor` is None on the last page."""

    rows: list[Row]
    cursor: Row | None


class Table(Protocol):
    """The operations of DynamoDB that Vigil uses. Each call is one request, unless stated otherwise."""

    def get(self, key: Key) -> Row | None:
        """Read one row with a strongly consistent read."""

    def batch_get(self, keys: Sequence[Key], *, consistent: bool = True) -> dict[Key, Row]:
        """Read any number of rows, with one request per hundred; the result omits absent rows."""

    def query_page(
        self,
        pk: str,
        *,
        begins: str | None = None,
        between: tuple[str, str] | None = None,
        index: str | None = None,
        newest_first: bool = False,
        limit: int | None = None,
        cursor: Row | None = None,
        where: WriteCondition | None = None,
    ) -> QueryPage:
        """Read one page of a partition in the order of its sort key.

        A read of the table is strongly consistent, a read of an index is eventually consistent.

        Args:
            pk: The partition key, of the table or of the index.
            begins: The prefix of the sort keys.
            between: The lowest and the highest sort key, both inclusive.
            index: `due`, `listing` or `correlation`; None for the table.
            newest_first: Read in descending order.
            limit: The highest number of rows that are read for the page.
            cursor: The cursor of the page before.
            where: A filter. The page omits the rows for which it is false, and reading them costs the same.
        """

    def count(self, pk: str, *, begins: str | None = None, index: str | None = None) -> int:
        """Count the rows of a partition, with one request per megabyte."""

    def put(self, put: Put) -> None:
        """Write one row, or raise ConditionFailed."""

    def update(self, update: Update) -> Row:
        """Change one row and return the new row, or raise ConditionFailed."""

    def delete(self, delete: Delete) -> None:
        """Remove one row, or raise ConditionFailed."""

    def batch_write(self, puts: Sequence[Row] = (), deletes: Sequence[Key] = ()) -> None:
        """Write and remove any number of rows without conditions, with one request per twenty-five."""

    def transact(self, actions: Sequence[Action]) -> None:
        """Apply up to a hundred actions as one transaction.

        Raises:
            ConditionFailed: A condition is false; it names the first failed action. Nothing was written.
        """


def query_all(table: Table, pk: str, **bounds: Any) -> Iterator[Row]:
    """Yield every row of a query, page by page."""
    cursor: Row | None = None
    while True:
        page = table.query_page(pk, cursor=cursor, **bounds)
        yield from page.rows
        if page.cursor is None:
            return
        cursor = page.cursor


class DynamoTable:
    """The table at the endpoint of the client: AWS or an emulator."""

    def __init__(self, client: DynamoDBClient, name: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self._client = client
        self._name = name
        self._sleep = sleep

    def get(self, key: Key) -> Row | None:
        """Call GetItem."""
        response = self._client.get_item(TableName=self._name, Key=_key(key), ConsistentRead=True)
        return _row(response["Item"]) if "Item" in response else None

    def batch_get(self, keys: Sequence[Key], *, consistent: bool = True) -> dict[Key, Row]:
        """Call BatchGetItem until no key is left unprocessed."""
        rows: dict[Key, Row] = {}
        unique_keys = list(dict.fromkeys(keys))
        for start in range(0, len(unique_keys), BATCH_GET_LIMIT):
            request: Any = {
                self._name: {
                    "Keys": [_key(key) for key in unique_keys[start : start + BATCH_GET_LIMIT]],
                    "ConsistentRead": consistent,
                }
            }
            for attempt in range(_MAX_RETRIES + 1):
                response = self._client.batch_get_item(RequestItems=request)
                for item in response["Responses"].get(self._name, []):
                    row = _row(item)
                    rows[Key(row["pk"], row["sk"])] = row
                request = response.get("UnprocessedKeys")
                if not request:
                    break
                self._back_off(attempt, "BatchGetItem left keys unprocessed")
        return rows

    def query_page(
        self,
        pk: str,
        *,
        begins: str | None = None,
        between: tuple[str, str] | None = None,
        index: str | None = None,
        newest_first: bool = False,
        limit: int | None = None,
        cursor: Row | None = None,
        where: WriteCondition | None = None,
    ) -> QueryPage:
        """Call Query once."""
        request = self._query(pk, begins, between, index)
        request["ScanIndexForward"] = not newest_first
        if limit is not None:
            request["Limit"] = limit
        if where is not None:
            request["FilterExpression"] = where.expression
            request["ExpressionAttributeNames"] = dict(where.names)
            if where.values:
                request["ExpressionAttributeValues"] |= _values(where.values)
        if cursor is not None:
            request["ExclusiveStartKey"] = {name: _to_dynamo.serialize(value) for name, value in cursor.items()}
        response = self._client.query(**request)
        last_key = response.get("LastEvaluatedKey")
        return QueryPage(rows=[_row(item) for item in response["Items"]], cursor=_row(last_key) if last_key else None)

    def count(self, pk: str, *, begins: str | None = None, index: str | None = None) -> int:
        """Call Query for a count, until the last page."""
        request = {**self._query(pk, begins, None, index), "Select": "COUNT"}
        total = 0
        while True:
            response = self._client.query(**request)
            total += response["Count"]
            if "LastEvaluatedKey" not in response:
                return total
            request["ExclusiveStartKey"] = response["LastEvaluatedKey"]

    def put(self, put: Put) -> None:
        """Call PutItem."""
        request = {"TableName": self._name, "Item": _item(put.row), **_condition(put.condition)}
        self._write(lambda: self._client.put_item(**request))

    def update(self, update: Update) -> Row:
        """Call UpdateItem."""
        request = {"TableName": self._name, "ReturnValues": "ALL_NEW", **_update(update)}
        response = self._write(lambda: self._client.update_item(**request))
        return _row(response["Attributes"])

    def delete(self, delete: Delete) -> None:
        """Call DeleteItem."""
        request = {"TableName": self._name, "Key": _key(delete.key), **_condition(delete.condition)}
        self._write(lambda: self._client.delete_item(**request))

    def batch_write(self, puts: Sequence[Row] = (), deletes: Sequence[Key] = ()) -> None:
        """Call BatchWriteItem until no item is left unprocessed."""
        requests: list[Any] = [{"PutRequest": {"Item": _item(row)}} for row in puts]
        requests += [{"DeleteRequest": {"Key": _key(key)}} for key in deletes]
        for start in range(0, len(requests), BATCH_WRITE_LIMIT):
            request: Any = {self._name: requests[start : start + BATCH_WRITE_LIMIT]}
            for attempt in range(_MAX_RETRIES + 1):
                request = self._client.batch_write_item(RequestItems=request).get("UnprocessedItems")
                if not request:
                    break
                self._back_off(attempt, "BatchWriteItem left items unprocessed")

    def transact(self, actions: Sequence[Action]) -> None:
        """Call TransactWriteItems."""
        items: list[Any] = [self._transact_item(action) for action in actions]
        self._write(lambda: self._client.transact_write_items(TransactItems=items))

    def _query(self, pk: str, begins: str | None, between: tuple[str, str] | None, index: str | None) -> dict[str, Any]:
        pk_name, sk_name = INDEX_KEYS[index]
        condition, values = f"{pk_name} = :pk", {":pk": pk}
        if begins is not None:
            condition, values = f"{condition} AND begins_with({sk_name}, :begins)", {**values, ":begins": begins}
        if between is not None:
            condition = f"{condition} AND {sk_name} BETWEEN :low AND :high"
            values = {**values, ":low": between[0], ":high": between[1]}
        return {
            "TableName": self._name,
            "KeyConditionExpression": condition,
            "ExpressionAttributeValues": _values(values),
            **({"ConsistentRead": True} if index is None else {"IndexName": index}),
        }

    def _transact_item(self, action: Action) -> dict[str, Any]:
        common = {"TableName": self._name, "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
        match action:
            case Put():
                return {"Put": {**common, "Item": _item(action.row), **_condition(action.condition)}}
            case Update():
                return {"Update": {**common, **_update(action)}}
            case Delete():
                return {"Delete": {**common, "Key": _key(action.key), **_condition(action.condition)}}
            case Check():
                return {"ConditionCheck": {**common, "Key": _key(action.key), **_condition(action.condition)}}

    def _write(self, call: Callable[[], Any]) -> Any:
        """Run a write and retry it after a transaction conflict, which the SDK does not retry on plain writes."""
        for attempt in range(_MAX_RETRIES + 1):
            try:
                return call()
            except ClientError as error:
                if not _is_conflict(error):
                    _raise_typed(error)
                self._back_off(attempt, str(error))
        raise AssertionError("_back_off raises at the last attempt")

    def _back_off(self, attempt: int, reason: str) -> None:
        if attempt == _MAX_RETRIES:
            raise StoreConflict(reason)
        self._sleep(0.02 * 2**attempt)


def row_from_image(image: Mapping[str, Any]) -> Row:
    """Convert an image of a stream record, in DynamoDB's JSON, to a row."""
    return _row(image)


def _is_conflict(error: ClientError) -> bool:
    code = error.response["Error"]["Code"]
    if code == "TransactionConflictException":
        return True
    if code != "TransactionCanceledException":
        return False
    reasons = {reason.get("Code") for reason in _reasons(error)}
    return "TransactionConflict" in reasons and "ConditionalCheckFailed" not in reasons


def _raise_typed(error: ClientError) -> None:
    code = error.response["Error"]["Code"]
    if code == "ConditionalCheckFailedException":
        response: Any = error.response
        old = response.get("Item")
        raise ConditionFailed(_row(old) if old else None) from error
    if code == "TransactionCanceledException":
        for index, reason in enumerate(_reasons(error)):
            if reason.get("Code") == "ConditionalCheckFailed":
                old = reason.get("Item")
                raise ConditionFailed(_row(old) if old else None, index) from error
    raise error


def _reasons(error: ClientError) -> list[dict[str, Any]]:
    response: Any = error.response
    return list(response.get("CancellationReasons", []))


def _condition(condition: WriteCondition | None) -> dict[str, Any]:
    if condition is None:
        return {}
    request: dict[str, Any] = {
        "ConditionExpression": condition.expression,
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }
    if condition.names:
        request["ExpressionAttributeNames"] = dict(condition.names)
    if condition.values:
        request["ExpressionAttributeValues"] = _values(condition.values)
    return request


def _update(update: Update) -> dict[str, Any]:
    request = {"Key": _key(update.key), "UpdateExpression": update.expression, **_condition(update.condition)}
    names = {**(update.condition.names if update.condition else {}), **update.names}
    values = {**(update.condition.values if update.condition else {}), **update.values}
    if names:
        request["ExpressionAttributeNames"] = names
    if values:
        request["ExpressionAttributeValues"] = _values(values)
    return request


def _key(key: Key) -> dict[str, Any]:
    return {"pk": {"S": key.pk}, "sk": {"S": key.sk}}


def _values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _to_dynamo.serialize(value) for name, value in values.items()}


def _item(row: Row) -> dict[str, Any]:
    """Serialise a row without its None attributes: an absent value is not stored as null."""
    return {name: _to_dynamo.serialize(value) for name, value in row.items() if value is not None}


def _row(item: Mapping[str, Any]) -> Row:
    return {name: _plain_value(_from_dynamo.deserialize(value)) for name, value in item.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Decimal) and value == value.to_integral_value():
        return int(value)
    if isinstance(value, Binary):
        return bytes(value.value)  # type: ignore[attr-defined] # the stubs know only its base class
    if isinstance(value, dict):
        return {name: _plain_value(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain_value(item) for item in value]
    if isinstance(value, set):
        return {_plain_value(item) for item in value}
    return value
