"""What a namespace uses of its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, get_args

from vigil_core.domain.limits import LIMIT_NAMES, LimitName
from vigil_core.services.context import UsesClock, UsesConnections, UsesLimits, UsesWorkSlots
from vigil_core.store.counters import Configuration


class UsageContext(UsesLimits, UsesConnections, UsesWorkSlots, UsesClock, Protocol):
    """The limits, their counters, the connections, the slots of calls and the time."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """A limit of a namespace and what is used of it; None if nothing is counted."""

    name: LimitName
    limit: int
    used: int | None
    overridden: bool


def usage_of(ctx: UsageContext, namespace: str, key_id: str) -> list[Usage]:
    """Return every limit of a namespace with its usage. Limits of one key show the usage of the given key."""
    now, counters = ctx.now(), ctx.limits.counters
    counts = counters.read(namespace)
    open_by_key = ctx.connections.open_by_key(namespace, now)
    kinds: tuple[Configuration, ...] = get_args(Configuration)
    used: Mapping[LimitName, int] = {
        "open_jobs": max(0, counts.jobs),
        "open_waits": max(0, counts.waits),
        "open_waits_per_read_key": max(0, counts.waits_by_key.get(key_id, 0)),
        "websocket_connections": open_by_key.total(),
        "websocket_connections_per_key": open_by_key[key_id],
        "long_polls": ctx.limits.long_polls.used(namespace, now),
        "executor_calls": ctx.work_slots.calls_in_flight(namespace, now),
        "upload_bytes_per_day": counters.uploaded(namespace, now.date()),
        **{kind: counters.count_configuration(namespace, kind) for kind in kinds},
    }
    settings = ctx.limits.namespaces.settings(namespace)
    return [
        Usage(
            name=name,
            limit=ctx.limits.namespaces.limit(namespace, name),
            used=used.get(name),
            overridden=name in settings.overrides,
        )
        for name in LIMIT_NAMES
    ]
