"""DynamoDB's sizes and units, by its published rules."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.units import index_write_units, item_bytes, read_units, write_units


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ({"S": "Grüße"}, 7),
        ({"S": ""}, 0),
        ({"N": "0"}, 2),
        ({"N": "27"}, 2),
        ({"N": "-27"}, 3),
        ({"N": "1700000000000"}, 2),
        ({"N": "0.0012345"}, 4),
        ({"B": b"12345"}, 5),
        ({"B": "MTIzNDU="}, 5),
        ({"BOOL": True}, 1),
        ({"NULL": True}, 1),
        ({"SS": ["ab", "cde"]}, 5),
        ({"NS": ["1", "22", "333"]}, 7),
        ({"L": []}, 3),
        ({"L": [{"S": "ab"}, {"BOOL": True}]}, 3 + 3 + 2),
        ({"M": {}}, 3),
        ({"M": {"key": {"S": "ab"}}}, 3 + 1 + 3 + 2),
    ],
)
def test_size_of_an_attribute_is_its_name_and_value(value: dict[str, Any], size: int) -> None:
    assert item_bytes({"name": value}) == len("name") + size


@pytest.mark.parametrize(
    ("size", "consistent", "units"),
    [(0, True, 1), (0, False, 0.5), (4096, True, 1), (4097, True, 2), (8193, False, 1.5)],
)
def test_read_units_count_four_kilobytes(size: int, consistent: bool, units: float) -> None:
    assert read_units(size, consistent=consistent) == units


def test_write_units_follow_the_larger_of_both_images() -> None:
    small, large = _sized(1024), _sized(1025)
    assert item_bytes(small) == 1024
    assert write_units(None, None) == 1
    assert write_units(None, small) == 1
    assert write_units(large, small) == 2
    assert write_units(small, large) == 2
    assert write_units(large, None) == 2


def test_index_write_units_count_changed_entries() -> None:
    row = {"pk": {"S": "a"}, "sk": {"S": "b"}, "status": {"S": "waiting"}}
    due = {**row, "g1pk": {"S": "due#0"}, "g1sk": {"S": "09:00"}}
    later = {**due, "g1sk": {"S": "10:00"}}

    def units(before: dict[str, Any] | None, after: dict[str, Any] | None) -> int:
        return index_write_units(["g1pk", "g1sk"], ["pk", "sk"], before, after)

    assert units(None, row) == 0
    assert units(None, due) == 1
    assert units(due, {**due, "status": {"S": "met"}}) == 0
    assert units(due, later) == 2
    assert units(due, row) == 1
    assert units(due, None) == 1


def _sized(size: int) -> dict[str, Any]:
    return {"text": {"S": "x" * (size - len("text"))}}
