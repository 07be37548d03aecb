"""Slots for deliveries to slow receivers: one namespace occupies at most half of the invocations of `webhooks`.

A delivery is slow once its receiver has not answered for `SLOW_AFTER_S`. A fast delivery costs nothing. For a slow one,
the invocation acquires a slot of the namespace, which its other slow deliveries of that namespace share. Without a
slot, the request is interrupted, and the delivery is enqueued again with a delay. From then on it acquires a slot
before it sends its request, so each of its attempts is interrupted at most once.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from vigil_core.services.context import UsesClock, UsesIds, UsesWorkSlots
from vigil_core.services.fair_shares import WEBHOOK_INVOCATIONS_PER_NAMESPACE
from vigil_core.store.slot_rows import Slot

SLOW_AFTER_S = 0.25
MAX_KNOWN_RECEIVERS = 1_000
_INVOCATION_TIMEOUT = timedelta(seconds=60)
"""The timeout of the function: a slot of a crashed invocation becomes free after this time."""
_MEMORY = timedelta(seconds=60)
"""The time for which a process remembers that a receiver was slow."""


class SlowReceiversContext(UsesWorkSlots, UsesClock, UsesIds, Protocol):
    """The slots, the time, and ids of invocations."""


@dataclass(frozen=True, kw_only=True)
class Receiver:
    """The URL to which a namespace sends its events."""

    namespace: str
    url: str


class KnownReceivers:
    """The receivers that were slow for this process. Their deliveries acquire a slot before they send a request."""

    def __init__(self) -> None:
        self._slow_until: dict[Receiver, float] = {}

    def is_slow(self, receiver: Receiver, now_s: float) -> bool:
        """Return whether the receiver was slow a short time ago."""
        return self._slow_until.get(receiver, 0.0) > now_s

    def remember(self, receiver: Receiver, now_s: float) -> None:
        """Record that the receiver is slow."""
        if len(self._slow_until) >= MAX_KNOWN_RECEIVERS:
            self._slow_until.clear()
        self._slow_until[receiver] = now_s + _MEMORY.total_seconds()


class InvocationSlots:
    """The slots of one invocation, at most one for each namespace. Several threads may ask at the same time."""

    def __init__(self, ctx: SlowReceiversContext, known: KnownReceivers | None = None) -> None:
        self._ctx = ctx
        self._known = known or KnownReceivers()
        self._owner = ctx.new_id()
        self._lock = threading.Lock()
        self._slots: dict[str, Slot | None] = {}

    def is_known_as_slow(self, receiver: Receiver) -> bool:
        """Return whether the receiver was slow for this process a short time ago."""
        return self._known.is_slow(receiver, self._ctx.now().timestamp())

    def may_continue(self, receiver: Receiver) -> bool:
        """Record that a receiver is slow, and return whether its request may continue."""
        self._known.remember(receiver, self._ctx.now().timestamp())
        return self.acquire(receiver.namespace)

    def acquire(self, namespace: str) -> bool:
        """Acquire the slot of a namespace, once per invocation, and return whether there is one."""
        with self._lock:
            if namespace not in self._slots:
                now = self._ctx.now()
                self._slots[namespace] = self._ctx.work_slots.acquire(
                    namespace,
                    "webhooks",
                    limit=WEBHOOK_INVOCATIONS_PER_NAMESPACE,
                    owner=self._owner,
                    until=now + _INVOCATION_TIMEOUT,
                    now=now,
                )
            return self._slots[namespace] is not None

    def release(self) -> None:
        """Free all slots at the end of the invocation."""
        for slot in self._slots.values():
            if slot is not None:
                self._ctx.work_slots.release(slot)
