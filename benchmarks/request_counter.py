"""Count the costs of AWS requests through botocore's events, without changes to the measured code.

DynamoDB's units are computed from the items: before a write, an uncounted client reads the item. The counter compares
the computed units with those that DynamoDB reports.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.cost_model import INDEX_WRITE, READ, REQUESTS, WRITE, Bill
from benchmarks.units import Item, index_write_units, item_bytes, read_units, write_units

if TYPE_CHECKING:
    import boto3
    from mypy_boto3_dynamodb.client import DynamoDBClient

OTHER_SERVICES = ("sns", "sqs", "apigatewaymanagementapi")


@dataclass
class _Write:
    """One item of a write request. `after` is None if the item is removed, or unknown until it is read again."""

    key: Item
    before: Item | None
    after: Item | None = None
    read_again: bool = False


@dataclass
class Agreement:
    """The number of requests whose computed units equal the reported ones, by operation, and each difference."""

    same: Counter[str] = field(default_factory=Counter)
    different: list[str] = field(default_factory=list)


class RequestCounter:
    """Counts every request of every client that `session` creates from now on.

    `uncounted_client` belongs to another session.
    """

    def __init__(self, session: boto3.Session, uncounted_client: DynamoDBClient) -> None:
        self._uncounted_client = uncounted_client
        self._counts: Counter[str] = Counter()
        self._half_units: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._schemas: dict[str, tuple[list[str], list[tuple[list[str], list[str]]]]] = {}
        self.largest: dict[str, int] = {}
        """The size of the largest item written of each entity, in bytes."""
        self.agreement = Agreement()
        session.events.register("provide-client-params.dynamodb", self._before)  # type: ignore[arg-type] # the stubs forget answers
        session.events.register("after-call.dynamodb", self._after)
        for service in OTHER_SERVICES:
            session.events.register(f"after-call.{service}", self._after_other)

    @property
    def bill(self) -> Bill:
        """The costs so far. The difference of two bills is the cost in between."""
        with self._lock:
            return Bill({**self._counts, **{name: amount / 2 for name, amount in self._half_units.items()}})

    def add(self, name: str, count: int = 1) -> None:
        """Count something that is no request of a client, such as an invocation."""
        with self._lock:
            self._counts[name] += count

    # ---------------------------------------------------------------- Event handlers

    def _before(self, params: dict[str, Any], model: Any, context: dict[str, Any], **_: Any) -> dict[str, Any]:
        context["vigil_writes"] = self._writes(model.name, params)
        context["vigil_params"] = params
        return {**params, "ReturnConsumedCapacity": "INDEXES"}

    def _after(self, parsed: dict[str, Any], model: Any, context: dict[str, Any], **_: Any) -> None:
        params, writes = context["vigil_params"], context["vigil_writes"]
        succeeded = "Error" not in parsed
        factor = 2 if model.name == "TransactWriteItems" else 1
        read = self._read_units(model.name, params, parsed)
        table_write = index_write = 0
        for write in writes:
            after = self._read_item(params, write.key) if write.read_again else write.after
            table_write += factor * write_units(write.before, after if succeeded else None)
            if succeeded:
                index_write += factor * self._index_units(self._table_of(params), write.before, after)
                self._record_size(after)
        with self._lock:
            self._counts[REQUESTS] += 1 + parsed.get("ResponseMetadata", {}).get("RetryAttempts", 0)
            self._counts[WRITE] += table_write
            self._counts[INDEX_WRITE] += index_write
            self._half_units[READ] += round(2 * read)
            if succeeded:
                self._compare(model.name, read + table_write + index_write, parsed.get("ConsumedCapacity"))

    def _after_other(self, model: Any, **_: Any) -> None:
        with self._lock:
            self._counts[f"{model.service_model.service_name}.requests"] += 1

    # ---------------------------------------------------------------- Reads

    def _read_units(self, operation: str, params: dict[str, Any], parsed: dict[str, Any]) -> float:
        consistent = bool(params.get("ConsistentRead"))
        match operation:
            case "GetItem":
                return read_units(item_bytes(parsed.get("Item", {})), consistent=consistent)
            case "Query":
                # A filter or a projection would read more than it returns.
                assert not {"FilterExpression", "ProjectionExpression"} & set(params), params
                if params.get("Select") == "COUNT":
                    # The answer has no items to measure. Configuration is counted so, when one of its kind is defined.
                    return 0
                return read_units(sum(map(item_bytes, parsed.get("Items", []))), consistent=consistent)
            case "BatchGetItem":
                ((table, request),) = params["RequestItems"].items()
                items = parsed.get("Responses", {}).get(table, [])
                missing: list[Item] = [{}] * (len(request["Keys"]) - len(items))
                consistent = bool(request.get("ConsistentRead"))
                return sum(read_units(item_bytes(item), consistent=consistent) for item in [*items, *missing])
            case _:
                return 0

    # ---------------------------------------------------------------- Writes

    def _writes(self, operation: str, params: dict[str, Any]) -> list[_Write]:
        match operation:
            case "PutItem":
                return [self._put(params, params["Item"])]
            case "UpdateItem":
                return [self._change(params, params["Key"], read_again=True)]
            case "DeleteItem":
                return [self._change(params, params["Key"])]
            case "BatchWriteItem":
                (requests,) = params["RequestItems"].values()
                return [
                    self._put(params, request["PutRequest"]["Item"])
                    if "PutRequest" in request
                    else self._change(params, request["DeleteRequest"]["Key"])
                    for request in requests
                ]
            case "TransactWriteItems":
                return [self._transacted(params, *next(iter(action.items()))) for action in params["TransactItems"]]
            case "GetItem" | "Query" | "BatchGetItem":
                return []
            case _:
                raise NotImplementedError(f"The counter does not know the cost of {operation}")

    def _transacted(self, params: dict[str, Any], kind: str, action: dict[str, Any]) -> _Write:
        if kind == "Put":
            return self._put(params, action["Item"])
        # A condition check costs as much as a write without a change.
        return self._change(params, action["Key"], read_again=kind in ("Update", "ConditionCheck"))

    def _put(self, params: dict[str, Any], item: Item) -> _Write:
        key = {name: item[name] for name in self._schema(self._table_of(params))[0]}
        return _Write(key=key, before=self._read_item(params, key), after=item)

    def _change(self, params: dict[str, Any], key: Item, *, read_again: bool = False) -> _Write:
        return _Write(key=key, before=self._read_item(params, key), read_again=read_again)

    def _read_item(self, params: dict[str, Any], key: Item) -> Item | None:
        response = self._uncounted_client.get_item(TableName=self._table_of(params), Key=dict(key), ConsistentRead=True)
        return response.get("Item")

    def _index_units(self, table: str, before: Item | None, after: Item | None) -> int:
        table_key, indexes = self._schema(table)
        return sum(index_write_units(key, table_key, before, after, included) for key, included in indexes)

    def _record_size(self, item: Item | None) -> None:
        if item and "entity" in item:
            entity = item["entity"]["S"]
            self.largest[entity] = max(self.largest.get(entity, 0), item_bytes(item))

    def _schema(self, table: str) -> tuple[list[str], list[tuple[list[str], list[str]]]]:
        """Return the attribute names of the table's key, and of each index's key and further attributes."""
        if table not in self._schemas:
            described = self._uncounted_client.describe_table(TableName=table)["Table"]
            indexes = described.get("GlobalSecondaryIndexes", [])
            assert all(index["Projection"]["ProjectionType"] != "ALL" for index in indexes), indexes
            self._schemas[table] = (
                [key["AttributeName"] for key in described["KeySchema"]],
                [
                    (
                        [key["AttributeName"] for key in index["KeySchema"]],
                        list(index["Projection"].get("NonKeyAttributes", ())),
                    )
                    for index in indexes
                ],
            )
        return self._schemas[table]

    @staticmethod
    def _table_of(params: dict[str, Any]) -> str:
        if "TransactItems" in params:
            return str(next(iter(params["TransactItems"][0].values()))["TableName"])
        return str(params.get("TableName") or next(iter(params["RequestItems"])))

    # ---------------------------------------------------------------- Comparison with DynamoDB

    def _compare(self, operation: str, computed: float, reported: Any) -> None:
        capacities = reported if isinstance(reported, list) else [reported] if reported else []
        if not capacities:
            return
        units = sum(capacity["CapacityUnits"] for capacity in capacities)
        if units == computed:
            self.agreement.same[operation] += 1
        else:
            self.agreement.different.append(f"{operation}: computed {computed:g}, reported {units:g}")
