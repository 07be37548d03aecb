"""moto without HTTP returns what boto3 returns, and so does the quick moto."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from moto import mock_aws

from tests.model.moto_table import all_rows, empty_table
from tests.support.quick_moto import original_moto
from tests.support.table import create_table
from vigil_core.store.keys import Key
from vigil_core.store.table import (
    ABSENT,
    Check,
    ConditionFailed,
    Delete,
    DynamoTable,
    Put,
    Table,
    Update,
    WriteCondition,
    row_from_image,
    version_is,
)

ROW = {
    "pk": "p", "sk": "A", "entity": "x", "schema_version": 1, "version": 1, "status": "waiting", "packed": b"\x00\xff",
    "members": {1, 2}, "counts": {}, "g1pk": "due#0", "g1sk": "2026",
}  # fmt: skip
OPEN = WriteCondition(expression="#status = :open", names={"#status": "status"}, values={":open": "waiting"})

STEPS: dict[str, Callable[[Table], Any]] = {
    "get": lambda table: table.get(Key("p", "A")),
    "get nothing": lambda table: table.get(Key("p", "Z")),
    "batch get": lambda table: table.batch_get([Key("p", "A"), Key("p", "B"), Key("p", "Z")]),
    "put over a row": lambda table: table.put(Put(row=ROW, condition=ABSENT)),
    "put another version": lambda table: table.put(Put(row={**ROW, "version": 2}, condition=version_is(1))),
    "put a stale version": lambda table: table.put(Put(row={**ROW, "version": 2}, condition=version_is(7))),
    "query": lambda table: table.query_page("p", begins="A"),
    "query a page": lambda table: table.query_page("p", limit=1),
    "query the next page": lambda table: table.query_page("p", limit=1, cursor={"pk": "p", "sk": "A"}),
    "query backwards": lambda table: table.query_page("p", between=("A", "B"), newest_first=True),
    "query an index": lambda table: table.query_page("due#0", index="due", between=("0", "2027")),
    "query nothing": lambda table: table.query_page("z"),
    "update": lambda table: table.update(
        Update(
            key=Key("p", "A"), expression="ADD members :more SET counts.#n = :n REMOVE g1pk, g1sk", names={"#n": "0"},
            values={":more": {5}, ":n": 3}, condition=OPEN,
        )
    ),
    "update an ended row": lambda table: table.update(
        Update(key=Key("p", "B"), expression="SET a = :a", values={":a": 1}, condition=OPEN)
    ),
    "delete": lambda table: table.delete(Delete(key=Key("p", "A"), condition=OPEN)),
    "delete an ended row": lambda table: table.delete(Delete(key=Key("p", "B"), condition=OPEN)),
    "batch write": lambda table: table.batch_write(puts=[{**ROW, "sk": "C"}], deletes=[Key("p", "B")]),
    "transact": lambda table: table.transact(
        [Put(row={**ROW, "sk": "C"}, condition=ABSENT), Delete(key=Key("p", "A"))]
    ),
    "transact on new rows": lambda table: table.transact(
        [Put(row={**ROW, "pk": "q"}), Update(key=Key("q", "B"), expression="SET a = :a", values={":a": 1})]
    ),
    "transact a failing put": lambda table: table.transact(
        [Delete(key=Key("p", "A")), Put(row={**ROW, "sk": "B"}, condition=ABSENT)]
    ),
    "transact a failing check": lambda table: table.transact(
        [
            Update(key=Key("p", "A"), expression="SET counts.#n = :n", names={"#n": "0"}, values={":n": 3}),
            Check(key=Key("p", "B"), condition=ABSENT),
        ]
    ),
}  # fmt: skip


@pytest.fixture
def boto3_table() -> Iterator[DynamoTable]:
    with mock_aws():
        yield create_table()


@pytest.mark.parametrize("step", STEPS)
def test_direct_moto_table_behaves_like_boto3(boto3_table: DynamoTable, step: str) -> None:
    with original_moto():
        told = _outcome(boto3_table, STEPS[step])
    assert told == _outcome(boto3_table, STEPS[step]) == _outcome(empty_table(), STEPS[step])


def _outcome(table: DynamoTable, step: Callable[[Table], Any]) -> Any:
    empty_table()
    table.put(Put(row=ROW))
    table.put(Put(row={**ROW, "sk": "B", "status": "met"}))
    try:
        answer = step(table)
    except ConditionFailed as error:
        answer = ("refused", error.old, error.index)
    return answer, sorted(map(row_from_image, all_rows()), key=lambda row: str(row["sk"]))
