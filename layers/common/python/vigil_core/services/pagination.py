"""One filtered page of a list, newest first, from the rows of the listing index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from vigil_core.store.listing import ListingEntry

MAX_ROWS_READ = 1_000
"""The number of rows that one page may read."""
MAX_DAYS_READ = 50
"""The number of days that one page may read. Each day needs one query per partition, even if all rows have expired."""
MAX_PAGE_BYTES = 1_500_000
"""The size of the variable parts of one page. A Lambda response has at most 6 MB, and its JSON is escaped again."""

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
    """Fill a page with the listed entities that match.

    A page ends when it is full or has used its budget of reads or bytes. It may be short although there is more.

    Args:
        index_rows: The rows of the listing index, newest first.
        load: Returns entities by id.
        matches: Decides whether an entity passes the filters.
        before_cursor: The cursor at which the page starts.
        page_size: The maximum number of entities.
        batch_size: The number of entities to load at once.
        size_of: Returns the variable size of an entity in bytes.

    Returns:
        The page, and the cursor for the next page, or None at the end.
    """
    page: list[T] = []
    rows_read = page_bytes = days_read = 0
    cursor = before_cursor
    while rows_read < MAX_ROWS_READ and days_read < MAX_DAYS_READ:
        batch = list(islice(index_rows, batch_size))
        if not batch:
            return page, None
        ids = [row.entity_id for row in batch if row.entity_id is not None]
        rows_read += len(ids)
        days_read += len(batch) - len(ids)
        entities_by_id = load(ids)
        for row in batch:
            entity = entities_by_id.get(row.entity_id or "")
            if entity is not None and matches(entity):
                page_bytes += size_of(entity)
                if len(page) == page_size or (page and page_bytes > MAX_PAGE_BYTES):
                    return page, cursor
                page.append(entity)
            cursor = row.cursor
    return page, cursor
