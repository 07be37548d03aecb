"""Optimistic concurrency: read, decide, write on condition that nothing changed, and retry after a conflict."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vigil_core.domain.errors import StoreConflict

MAX_ATTEMPTS = 12
BACKOFF_S = 0.01
"""The delay before the second retry. Each further delay is longer by this; the first retry follows at once."""

S = TypeVar("S")
D = TypeVar("D")
R = TypeVar("R")


def update_with_retry(
    read: Callable[[], S],
    decide: Callable[[S], D],
    write: Callable[[S, D], R],
    *,
    sleep: Callable[[float], None],
    subject: str,
    cached: S | None = None,
    retry_on: type[StoreConflict] = StoreConflict,
) -> R:
    """Read a state, decide on a change and write it. After a conflict, start again with a new read.

    Args:
        read: Reads the current state, consistently.
        decide: Decides on the change. Errors that it raises end the update.
        write: Writes the change on condition that the state is the one read. It may find that nothing must be written.
        sleep: Waits for a number of seconds.
        subject: The name of the state, for the error message.
        cached: The state, if the process has just read it. It replaces the first read.
        retry_on: The conflict that is retried. With `ConditionFailed`, a conflict that the store has retried itself in
            vain ends the update at once.

    Returns:
        The value that `write` returns.

    Raises:
        StoreConflict: Other writers were first in each attempt, or the conflict is not retried.
    """
    for attempt in range(MAX_ATTEMPTS):
        before = cached if cached is not None and attempt == 0 else read()
        after = decide(before)
        try:
            return write(before, after)
        except retry_on:
            sleep(BACKOFF_S * attempt)
    raise StoreConflict(f"Too many concurrent changes of {subject}: try again")


def retry_on_conflict(
    step: Callable[[], R],
    *,
    sleep: Callable[[float], None],
    subject: str,
    retry_on: type[StoreConflict] = StoreConflict,
) -> R:
    """Run a step that reads, decides and writes. After a conflict, run it again.

    Raises:
        StoreConflict: Other writers were first in each attempt.
    """
    return update_with_retry(
        lambda: None, lambda _: None, lambda *_: step(), sleep=sleep, subject=subject, retry_on=retry_on
    )
