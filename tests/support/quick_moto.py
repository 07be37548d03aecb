"""moto's DynamoDB, which is shown no more of a table than a request is about, and no request before the last is done.

By itself it sorts the whole table for each query, copies it and its stream for each transaction, and lets go of nothing
that it ever made: what a test takes would grow with the square of what it stores. Of two threads' requests at once both
may find a condition met, and two records of the stream get one number: whoever reads it then never comes to its end.
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


class Part(Table):
    """Some rows of a table, which for all else is the table itself."""

    def __init__(self, whole: Table, rows: Any) -> None:
        self.__dict__.update(whole.__dict__)
        self.items = rows

    def __deepcopy__(self, memo: object) -> Part:
        """What moto would put back when a transaction fails: the whole was not touched."""
        return self


def _query_of_rows(
    table: Table, hash_key: DynamoType, comparison: Any, values: Any, limit: Any, start: Any, forward: Any,
    projection: Any, index: str | None, *rest: Any, **named: Any,
) -> Any:  # fmt: skip
    if index is None:
        rows = {hash_key: table.items[hash_key]} if hash_key in table.items else {}
    else:
        rows = _of_index(table, index, hash_key)
    part = Part(table, rows)  # type: ignore[abstract]
    return _query(part, hash_key, comparison, values, limit, start, forward, projection, index, *rest, **named)


def _of_index(table: Table, name: str, hash_key: DynamoType) -> Any:
    """The rows of a partition of an index, with no more of them than the index has."""
    index = table.get_index(name, error_if_not=True)
    assert index.projection == {"ProjectionType": "KEYS_ONLY"}
    kept = {*index.table_key_attrs, *index.schema_key_attrs}
    pk = index.schema_key_attrs[0]
    found: Any = defaultdict(dict)
    for partition, rows in list(table.items.items()):
        for place, row in list(rows.items()):
            if pk in row.attrs and row.attrs[pk].value == hash_key.value:
                found[partition][place] = Item(row.hash_key, row.range_key, {})
                found[partition][place].attrs.update({key: row.attrs[key] for key in kept if key in row.attrs})
    return found


def _transact_on_rows(backend: DynamoDBBackend, transact_items: list[dict[str, Any]]) -> None:
    """Copies of the rows are changed, and take the rows' place when all is well."""
    (name,) = {action["TableName"] for item in transact_items for action in item.values()}
    table = backend.get_table(name)
    written = [action.get("Key") or action["Item"] for item in transact_items for action in item.values()]
    keys = [(DynamoType(row[table.hash_key_attr]), DynamoType(row[table.range_key_attr])) for row in written]
    rows: Any = defaultdict(dict)
    for partition, place in keys:
        if row := table.items[partition].get(place):
            rows[partition][place] = copy.deepcopy(row)
    part, backend = Part(table, rows), copy.copy(backend)  # type: ignore[abstract]
    backend.tables = {name: part}
    told, shard = [], table.stream_shard
    if shard is not None:
        part.stream_shard = StreamShard(shard.account_id, part)
        part.stream_shard.starting_sequence_number = shard.starting_sequence_number + len(shard.items)
        told = part.stream_shard.items
    _transact(backend, transact_items)
    for partition, place in keys:
        if row := rows[partition].get(place):
            table.items[partition][place] = row
        else:
            table.items[partition].pop(place, None)
    if shard is not None:
        shard.items += told


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
    """From now on, in all of this process."""
    for change in CHANGES:
        setattr(*change)


@contextmanager
def original_moto() -> Iterator[None]:
    """moto while the block runs."""
    for change in SLOW:
        setattr(*change)
    try:
        yield
    finally:
        install_fast_paths()
