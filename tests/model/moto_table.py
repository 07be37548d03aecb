"""moto's DynamoDB without botocore and HTTP: the same engine, ten times faster.

The simulations need a write in a fraction of a millisecond. The requests of `DynamoTable` go directly to moto's
handler, in the form in which boto3 sends them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast
from unittest import mock

from botocore.exceptions import ClientError
from moto.core.exceptions import JsonRESTError
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.dynamodb.models import dynamodb_backends
from moto.dynamodb.models.utilities import dynamo_to_dict
from moto.dynamodb.responses import DynamoHandler

from tests.support.table import TABLE_NAME
from vigil_core import wiring
from vigil_core.store.table import DynamoTable

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient

REGION = "us-east-1"


class MotoClient:
    """The part of boto3's DynamoDB client that `DynamoTable` uses."""

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        return lambda **request: _answer(operation, request)


def empty_table() -> DynamoTable:
    """Empty the table that `create_table` made in this mock, and return it."""
    table = _table()
    table.items.clear()
    table.stream_shard = None  # The world records itself what the stream delivers.
    return DynamoTable(cast("DynamoDBClient", MotoClient()), TABLE_NAME)


@contextmanager
def direct_tables() -> Iterator[None]:
    """Give every object that is wired in the block a table without boto3."""
    with mock.patch.object(wiring, "dynamodb", MotoClient):
        yield


def all_rows() -> list[dict[str, Any]]:
    """Return every row, in DynamoDB's JSON."""
    return [dynamo_to_dict(item.to_json()["Attributes"]) for item in _table().all_items()]


def row_count() -> int:
    """Return the number of rows."""
    return sum(map(len, _table().items.values()))


def _answer(operation: str, request: dict[str, Any]) -> Any:
    handler = DynamoHandler()
    handler.current_account, handler.region, handler.body = DEFAULT_ACCOUNT_ID, REGION, request
    try:
        result: Any = getattr(handler, operation)().result
    except JsonRESTError as error:
        raise _client_error(operation, json.loads(str(error.description))) from error
    return result


def _client_error(operation: str, described: dict[str, Any]) -> ClientError:
    code = described.pop("__type").rsplit("#", 1)[-1]
    for told in (described, *described.get("CancellationReasons", ())):
        if "Item" in told:
            told["Item"] = _from_wire(told["Item"])
    response: Any = {"Error": {"Code": code, "Message": described.get("message", "")}, **described}
    return ClientError(response, operation)


def _table() -> Any:
    return dynamodb_backends[DEFAULT_ACCOUNT_ID][REGION].tables[TABLE_NAME]


def _from_wire(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: {"B": base64.b64decode(value["B"])} if "B" in value else value for name, value in attributes.items()}
