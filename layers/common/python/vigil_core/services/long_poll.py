"""Long poll: read a state repeatedly, with growing pauses, until it is done or the time is over.

A waiting request occupies an execution of the API. It therefore needs a slot: all namespaces together have slots for
half of the concurrency, and one namespace for a quarter. A request without a slot returns the current state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

from vigil_core.runtime.logging import logger
from vigil_core.services.context import UsesClock, UsesLimits


class LongPollContext(UsesClock, UsesLimits, Protocol):
    """The clock, the pauses and the slots of a long poll."""


T = TypeVar("T")

FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 0.5
SLOT_MARGIN = timedelta(seconds=5)
"""The time after the end of a long poll at which the slot of a crashed process becomes free."""


@dataclass(kw_only=True)
class SlotRequest:
    """The request for a slot of one long poll. A long poll that need not wait acquires none.

    Attributes:
        namespace: The namespace of the client.
        wait_without: The time to wait if there is no free slot.
        refused: Whether there was no free slot.
    """

    namespace: str
    wait_without: timedelta = timedelta(0)
    refused: bool = False


def long_poll(
    ctx: LongPollContext,
    poll: Callable[[], T],
    *,
    is_done: Callable[[T], bool],
    until: datetime,
    latest: T,
    slot: SlotRequest | None = None,
    max_pause_s: float = MAX_PAUSE_S,
) -> T:
    """Poll until a state is done or the time is over, and return the last state.

    Args:
        ctx: The clock and the slots.
        poll: Reads the current state.
        is_done: Decides whether a state ends the long poll.
        until: The end of the long poll.
        latest: The state that the caller has already read.
        slot: The request for the slot that the long poll needs; None for a long poll without one.
        max_pause_s: The longest pause between two reads.
    """
    if is_done(latest) or ctx.now() >= until:
        return latest
    with _slot_until(ctx, slot, until) as last_moment:
        pause_s = FIRST_PAUSE_S
        while not is_done(latest) and (remaining_s := (last_moment - ctx.now()).total_seconds()) > 0:
            ctx.sleep(min(pause_s, remaining_s))
            pause_s = min(pause_s * 1.5, max_pause_s)
            latest = poll()
    return latest


@contextmanager
def _slot_until(ctx: LongPollContext, request: SlotRequest | None, until: datetime) -> Iterator[datetime]:
    """Acquire a slot, yield the end of the long poll, and release the slot.

    If the process crashes before the release, the slot becomes free by itself.
    """
    if request is None:
        yield until
        return
    limit, now = ctx.limits.namespaces.limit(request.namespace, "long_polls"), ctx.now()
    slot = ctx.limits.long_polls.acquire(request.namespace, limit, until=until + SLOT_MARGIN, now=now)
    if slot is None:
        request.refused = True
        yield min(until, now + request.wait_without)
        return
    try:
        yield until
    finally:
        try:
            ctx.limits.long_polls.release(slot)
        except Exception:
            # The answer of the request is worth more than the slot, which becomes free by itself.
            logger.exception("slot is not freed", extra={"action": "release_long_poll", "namespace": request.namespace})
