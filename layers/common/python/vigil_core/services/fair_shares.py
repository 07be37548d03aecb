"""Fair shares: one namespace uses at most half of the concurrency of each kind of work.

- The bulk work of `fan_out` has lanes. The messages of a namespace have few message groups, and SQS delivers one
  message of a group at a time, so a namespace occupies at most its lanes, without a read or a write.
- A webhook delivery to a slow receiver needs a slot with an owner and an expiry: see `webhooks/slow_receivers.py`.

The template sets the concurrency of each function. `tests/contract/test_template.py` compares it with these numbers.
"""

from __future__ import annotations

from zlib import crc32

FAN_OUT_CONCURRENCY = 10
FAN_OUT_LANES = FAN_OUT_CONCURRENCY // 2
"""The number of message groups of a namespace, and so of its messages that `fan_out` processes at once."""
WEBHOOK_INVOCATIONS = 5
WEBHOOK_INVOCATIONS_PER_NAMESPACE = WEBHOOK_INVOCATIONS // 2
"""The number of invocations of `webhooks` that wait for slow receivers of one namespace."""


def fan_out_group(namespace: str, entity_id: str, number: int = 0) -> str:
    """Return the message group of work on an entity. The messages of one group are processed in order.

    Args:
        namespace: The namespace of the entity.
        entity_id: The id of the entity. Its messages without a number share a group.
        number: The number of a part that may be processed in parallel with the others, for example a page.
    """
    return f"{namespace}#{(crc32(entity_id.encode()) + number) % FAN_OUT_LANES}"
