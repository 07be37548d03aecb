"""One page of a list, newest first, filtered: what index `listing` shows is read until the page is full."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from vigil_core.store.listing import ListingEntry

MAX_ROWS_READ = 1_000
"""What one page may read."""
MAX_DAYS_READ = 50
"""Days that one page may look through: each takes a query for each of its shards, even where all has expired."""
MAX_PAGE_BYTES = 1_500_000
"""Bytes of the variable parts that one page may show: Lambda's answer takes 6 MB, in which JSON is escaped again."""

T = TypeVar("T")


def fill_page(
    index_rows: Iterator[ListingEntry],
    load: Callable[[Sequence[str]], Mapping[str, T]],
    matches: Callable[[T], bool],
    *,
    before_cursor: str | None,
    page_size: int,
    batch_size: int,
    size_of: Callable[[T], int] = lambda _: 0,
) -> tuple[list[T], str | None]:
    """What passes of what is listed, and the place to go on before, None at the end. `before_place` is where the list
    begins, `size_of` how many bytes one takes.

    A page ends when it is full or has used its budget of reads or bytes; it may be short while there is more.
    """
    page: list[T] = []
    rows_read = page_bytes = days_read = 0
    cursor = before_cursor
    while rows_read < MAX_ROWS_READ and days_read < MAX_DAYS_READ:
        batch = list(islice(index_rows, batch_size))
        if not batch:
            return page, None
        ids = [line.entity_id for line in batch if line.entity_id is not None]
        rows_read += len(ids)
        days_read += len(batch) - len(ids)
        entities_by_id = load(ids)
        for line in batch:
            entity = entities_by_id.get(line.entity_id or "")
            if entity is not None and matches(entity):
                page_bytes += size_of(entity)
                if len(page) == page_size or (page and page_bytes > MAX_PAGE_BYTES):
                    return page, cursor
                page.append(entity)
            cursor = line.cursor
    return page, cursor
