"""Delayed messages that make a due time exact to the second. The due row is the truth; a message only hurries."""

from __future__ import annotations

import math

from vigil_core.domain.jsontext import dumps
from vigil_core.domain.waits import Wait
from vigil_core.services.context import Context

LONGEST_DELAY_S = 900
"""What SQS allows. Later times are left to the sweep, which is exact to the minute."""


def wake_for_expiry(ctx: Context, wait: Wait) -> None:
    """Have the clock end an open wait when its time is over, if that is soon."""
    left_s = (wait.expires_at - ctx.now()).total_seconds()
    if wait.ended or left_s > LONGEST_DELAY_S:
        return
    message = dumps({"kind": "wait_expiry", "namespace": wait.namespace, "id": wait.wait_id})
    # Clocks of two functions differ by milliseconds, and a message that came too early would be for nothing.
    ctx.queues.wake_up(message, min(LONGEST_DELAY_S, max(0, math.ceil(left_s + 0.01))))
