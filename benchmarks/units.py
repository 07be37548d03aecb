"""DynamoDB's item sizes and request units by its published rules. Items are in DynamoDB's JSON.

Sizes: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
Units: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/read-write-operations.html
Indexes: https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/GSI.html
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, TypeAlias

Item: TypeAlias = Mapping[str, Any]

READ_BYTES = 4 * 1024
WRITE_BYTES = 1024


def item_bytes(item: Item) -> int:
    """Return the size of an item: the names and values of its attributes."""
    return sum(len(name.encode()) + _value_bytes(value) for name, value in item.items())


def read_units(size: int, *, consistent: bool) -> float:
    """Return the read units for a number of bytes. Reading a missing item takes the minimum."""
    return max(1, math.ceil(size / READ_BYTES)) * (1 if consistent else 0.5)


def write_units(before: Item | None, after: Item | None) -> int:
    """Return the write units of the table, by the larger of the item before and after the write."""
    size = max(item_bytes(item) if item else 0 for item in (before, after))
    return max(1, math.ceil(size / WRITE_BYTES))


def index_write_units(
    index_key: Iterable[str],
    table_key: Iterable[str],
    before: Item | None,
    after: Item | None,
    included: Iterable[str] = (),
) -> int:
    """Return the write units of the same write in an index that contains keys and the `included` attributes.

    A new or removed entry takes one write, a moved entry two, a changed entry one, and an unchanged entry none.
    """
    index_names = list(index_key)
    key_names = [*index_names, *table_key]
    names = [*key_names, *included]

    def entry(item: Item | None) -> dict[str, Any] | None:
        if not item or not all(name in item for name in index_names):
            return None
        return {name: item[name] for name in names if name in item}

    old, new = entry(before), entry(after)
    if old == new:
        return 0
    if old and new and all(old[name] == new[name] for name in key_names):
        return math.ceil(max(item_bytes(old), item_bytes(new)) / WRITE_BYTES)
    return sum(math.ceil(item_bytes(item) / WRITE_BYTES) for item in (old, new) if item is not None)


def _value_bytes(value: Mapping[str, Any]) -> int:
    ((kind, content),) = value.items()
    match kind:
        case "S":
            return len(content.encode())
        case "N":
            return _number_bytes(content)
        case "B":
            return _binary_bytes(content)
        case "BOOL" | "NULL":
            return 1
        case "SS":
            return sum(len(text.encode()) for text in content)
        case "NS":
            return sum(map(_number_bytes, content))
        case "BS":
            return sum(map(_binary_bytes, content))
        case "L":
            return 3 + sum(1 + _value_bytes(element) for element in content)
        case "M":
            return 3 + sum(1 + len(name.encode()) + _value_bytes(member) for name, member in content.items())
        case _:
            raise ValueError(f"DynamoDB has no values of type {kind}")


def _number_bytes(text: str) -> int:
    """Return an upper bound: a byte for two significant digits, one more, and one for a sign.

    DynamoDB documents the size only approximately.
    """
    sign, digits, _ = Decimal(text).normalize().as_tuple()
    return math.ceil(len(digits) / 2) + 1 + sign


def _binary_bytes(content: bytes | str) -> int:
    """Return the size of bytes (boto3) or of base64 text (a stream record in a Lambda event)."""
    return len(base64.b64decode(content) if isinstance(content, str) else content)
