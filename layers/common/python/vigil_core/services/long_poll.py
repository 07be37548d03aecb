"""Hold an answer: look again and again, less and less often, until there is something to say or time is over."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Protocol, TypeVar

from vigil_core.services.context import UsesClock


class LongPollContext(UsesClock, Protocol):
    """What this module uses of the outside world."""


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
    """What was seen last: the first that is enough, or whatever it is when time is over. `seen` is the first look."""
    pause_s = FIRST_PAUSE_S
    while not is_done(latest) and (remaining_s := (until - ctx.now()).total_seconds()) > 0:
        ctx.sleep(min(pause_s, remaining_s))
        pause_s = min(pause_s * 1.5, max_pause_s)
        latest = poll()
    return latest
