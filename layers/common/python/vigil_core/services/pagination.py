"""One page of a list, newest first, filtered: what index `listing` shows is read until the page is full."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from vigil_core.store.listing import Listed

READ_BUDGET = 1_000
"""What one page may read."""
DAY_BUDGET = 50
"""Days that one page may look through: each takes a query for each of its shards, even where all has expired."""
BYTE_BUDGET = 1_500_000
"""Bytes of the variable parts that one page may show: Lambda's answer takes 6 MB, in which JSON is escaped again."""

T = TypeVar("T")


def page_of(
    listed: Iterator[Listed],
    find: Callable[[Sequence[str]], Mapping[str, T]],
    takes: Callable[[T], bool],
    *,
    before_place: str | None,
    page_size: int,
    batch_size: int,
    size_of: Callable[[T], int] = lambda _: 0,
) -> tuple[list[T], str | None]:
    """What passes of what is listed, and the place to go on before, None at the end. `before_place` is where the list
    begins, `size_of` how many bytes one takes.

    A page ends when it is full or has used its budget of reads or bytes; it may be short while there is more.
    """
    found: list[T] = []
    read = size = days = 0
    place = before_place
    while read < READ_BUDGET and days < DAY_BUDGET:
        batch = list(islice(listed, batch_size))
        if not batch:
            return found, None
        ids = [line.entity_id for line in batch if line.entity_id is not None]
        read += len(ids)
        days += len(batch) - len(ids)
        there = find(ids)
        for line in batch:
            each = there.get(line.entity_id or "")
            if each is not None and takes(each):
                size += size_of(each)
                if len(found) == page_size or (found and size > BYTE_BUDGET):
                    return found, place
                found.append(each)
            place = line.place
    return found, place
