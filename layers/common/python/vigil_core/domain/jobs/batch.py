"""Batches: ids and pages of items. Pure."""

from __future__ import annotations

from typing import Literal, TypeAlias

from vigil_core.domain.ids import derive_id

OnItemFailure: TypeAlias = Literal["continue", "fail_fast", "collect"]

MAX_ITEMS = 1_000
ITEMS_FAILED = "ITEMS_FAILED"
PAGE_SIZE = 100
"""The number of items that one message creates or cancels, and whose end states share one row."""


def item_id(batch_id: str, attempt: int, index: int) -> str:
    """Derive the id of an item from batch, attempt and index, so that a repeated creation makes no second item."""
    return derive_id(batch_id, f"item/{attempt}/{index}")


def page_of(index: int) -> int:
    """Return the page number of an item."""
    return index // PAGE_SIZE


def page_numbers(size: int) -> range:
    """Return the page numbers of a batch with `size` items."""
    return range(page_of(size - 1) + 1)


def items_on_page(page: int, size: int) -> range:
    """Return the indexes of the items on a page."""
    return range(page * PAGE_SIZE, min((page + 1) * PAGE_SIZE, size))
