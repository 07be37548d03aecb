"""Fast paths for moto's DynamoDB: each request sees only the rows that it concerns, and requests run one at a time.

The original moto sorts the whole table for each query, copies the table and its stream for each transaction, and never
frees an object. The duration of a test would grow with the square of the stored rows. Two concurrent requests may both
find a condition met. Two stream records may get the same number, and then a reader of the stream never reaches its end.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

from moto.core.common_models import BaseModel
from moto.dynamodb.models import DynamoDBBackend
from moto.dynamodb.models.dynamo_type import DynamoType, Item
from moto.dynamodb.models.table import StreamShard, Table
from moto.dynamodb.parsing.expressions import UpdateExpressionParser  # type: ignore[attr-defined]
from moto.dynamodb.responses import DynamoHandler

_query = Table.query
_transact = DynamoDBBackend.transact_write_items
_answer = DynamoHandler.call_action
_lock = Lock()


class TableView(Table):
    """A view of some rows of a table. Everything else is the table's own."""

    def __init__(self, whole: Table, rows: Any) -> None:
        self.__dict__.update(whole.__dict__)
        self.items = rows

    def __deepcopy__(self, memo: object) -> TableView:
        """Return the view itself: a failed transaction has nothing to restore, because the table is unchanged."""
        return self


def _query_of_rows(
    table: Table, hash_key: DynamoType, comparison: Any, values: Any, limit: Any, start: Any, forward: Any,
    projection: Any, index: str | None, *rest: Any, **named: Any,
) -> Any:  # fmt: skip
    if index is None:
        rows = {hash_key: table.items[hash_key]} if hash_key in table.items else {}
    else:
        rows = _of_index(table, index, hash_key)
    part = TableView(table, rows)  # type: ignore[abstract]
    return _query(part, hash_key, comparison, values, limit, start, forward, projection, index, *rest, **named)


def _of_index(table: Table, name: str, hash_key: DynamoType) -> Any:
    """Return the rows of one partition of an index, with only the attributes that the index projects."""
    index = table.get_index(name, error_if_not=True)
    projected = {*index.table_key_attrs, *index.schema_key_attrs, *index.projection.get("NonKeyAttributes", ())}
    pk = index.schema_key_attrs[0]
    items: Any = defaultdict(dict)
    for partition, rows in list(table.items.items()):
        for sort_key, row in list(rows.items()):
            if pk in row.attrs and row.attrs[pk].value == hash_key.value:
                items[partition][sort_key] = Item(row.hash_key, row.range_key, {})
                items[partition][sort_key].attrs.update({key: row.attrs[key] for key in projected if key in row.attrs})
    return items


def _transact_on_rows(backend: DynamoDBBackend, transact_items: list[dict[str, Any]]) -> None:
    """Change copies of the rows, and replace the rows by the copies if the transaction succeeds."""
    (name,) = {action["TableName"] for item in transact_items for action in item.values()}
    table = backend.get_table(name)
    written = [action.get("Key") or action["Item"] for item in transact_items for action in item.values()]
    keys = [(DynamoType(row[table.hash_key_attr]), DynamoType(row[table.range_key_attr])) for row in written]
    rows: Any = defaultdict(dict)
    for partition, sort_key in keys:
        if row := table.items[partition].get(sort_key):
            rows[partition][sort_key] = copy.deepcopy(row)
    part, backend = TableView(table, rows), copy.copy(backend)  # type: ignore[abstract]
    backend.tables = {name: part}
    records, shard = [], table.stream_shard
    if shard is not None:
        part.stream_shard = StreamShard(shard.account_id, part)
        part.stream_shard.starting_sequence_number = shard.starting_sequence_number + len(shard.items)
        records = part.stream_shard.items
    _transact(backend, transact_items)
    for partition, sort_key in keys:
        if row := rows[partition].get(sort_key):
            table.items[partition][sort_key] = row
        else:
            table.items[partition].pop(sort_key, None)
    if shard is not None:
        shard.items += records


def _answer_with_lock(handler: DynamoHandler) -> Any:
    with _lock:
        return _answer(handler)


CHANGES: list[tuple[Any, str, Any]] = [
    (BaseModel, "__new__", lambda cls, *_, **__: object.__new__(cls)),
    (UpdateExpressionParser, "make", cache(UpdateExpressionParser.make)),
    (Table, "query", _query_of_rows),
    (DynamoDBBackend, "transact_write_items", _transact_on_rows),
    (DynamoHandler, "call_action", _answer_with_lock),
]
SLOW = [(owner, name, getattr(owner, name)) for owner, name, _ in CHANGES]


def install_fast_paths() -> None:
    """Install the fast paths in the whole process."""
    for change in CHANGES:
        setattr(*change)


@contextmanager
def original_moto() -> Iterator[None]:
    """Use the original moto inside the block."""
    for change in SLOW:
        setattr(*change)
    try:
        yield
    finally:
        install_fast_paths()
