"""Long poll: read a state repeatedly, with growing pauses, until it is done or the time is over."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Protocol, TypeVar

from vigil_core.services.context import UsesClock


class LongPollContext(UsesClock, Protocol):
    """The clock and the pauses of a long poll."""


T = TypeVar("T")

FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 0.5


def long_poll(
    ctx: LongPollContext,
    poll: Callable[[], T],
    *,
    is_done: Callable[[T], bool],
    until: datetime,
    latest: T,
    max_pause_s: float = MAX_PAUSE_S,
) -> T:
    """Poll until a state is done or the time is over, and return the last state.

    Args:
        ctx: The clock.
        poll: Reads the current state.
        is_done: Decides whether a state ends the long poll.
        until: The end of the long poll.
        latest: The state that the caller has already read.
        max_pause_s: The longest pause between two reads.
    """
    pause_s = FIRST_PAUSE_S
    while not is_done(latest) and (remaining_s := (until - ctx.now()).total_seconds()) > 0:
        ctx.sleep(min(pause_s, remaining_s))
        pause_s = min(pause_s * 1.5, max_pause_s)
        latest = poll()
    return latest
