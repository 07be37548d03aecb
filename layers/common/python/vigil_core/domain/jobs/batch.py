"""One named job of many: how its items are numbered, named and paged. Pure."""

from __future__ import annotations

from typing import Literal, TypeAlias

from vigil_core.domain.ids import derive_id

OnItemFailure: TypeAlias = Literal["continue", "fail_fast", "collect"]

MAX_ITEMS = 1_000
ITEMS_FAILED = "ITEMS_FAILED"
PAGE_SIZE = 100
"""How many items are created or cancelled in one go, and share one row that says which of them have ended."""


def item_id(batch_id: str, attempt: int, index: int) -> str:
    """The id of the item at this place, in the batch's nth attempt: always the same, so that no repeat makes two."""
    return derive_id(batch_id, f"item/{attempt}/{index}")


def page_of(index: int) -> int:
    """The page on which an item is."""
    return index // PAGE_SIZE


def page_numbers(size: int) -> range:
    """The pages of a batch of so many items."""
    return range(page_of(size - 1) + 1)


def items_on_page(page: int, size: int) -> range:
    """The places of the items on a page."""
    return range(page * PAGE_SIZE, min((page + 1) * PAGE_SIZE, size))
