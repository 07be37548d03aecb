"""Hold an answer: look again and again, less and less often, until there is something to say or time is over."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

from vigil_core.services.context import Context

T = TypeVar("T")

FIRST_LOOK_S = 0.05
LONGEST_LOOK_S = 0.5


def hold(
    ctx: Context,
    look: Callable[[], T],
    *,
    enough: Callable[[T], bool],
    until: datetime,
    seen: T,
    longest_pause_s: float = LONGEST_LOOK_S,
) -> T:
    """What was seen last: the first that is enough, or whatever it is when time is over. `seen` is the first look."""
    pause_s = FIRST_LOOK_S
    while not enough(seen) and (left_s := (until - ctx.now()).total_seconds()) > 0:
        ctx.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, longest_pause_s)
        seen = look()
    return seen
