"""Suspend, resume and delete namespaces. An operator does this with AWS credentials.

A suspended namespace stops within 60 seconds:

1. The authorizer reads the state with each key. API Gateway remembers its answer for 60 s.
2. Every other process reads the state again after 45 s. It then fires no schedule, dispatches no job and delivers
   nothing.

The deletion removes what a namespace has. Functions that run at its beginning may still write, so a pass over the table
is the last one only if it began after they have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from vigil_core.domain.errors import InvalidTransition, ValidationFailed
from vigil_core.domain.limits import NamespaceSettings, NamespaceState
from vigil_core.domain.timestamps import from_text, to_text
from vigil_core.services.auth.context import UsesApiKeys
from vigil_core.services.context import UsesClock, UsesLimits
from vigil_core.store.keys import Key
from vigil_core.store.table import Table

SETTLING_TIME = timedelta(minutes=6)
"""The longest time for which a function may write after the state has changed: its timeout, and the cached state."""


class NamespacesContext(UsesLimits, UsesClock, Protocol):
    """The states of namespaces, and the time."""


class NamespaceRowsReader(Protocol):
    """The rows of the table."""

    def page(self, namespace: str, cursor: Mapping[str, str] | None) -> tuple[list[Key], dict[str, str] | None]:
        """Return the keys of a namespace in a part of the table, and the cursor of the next part."""


class NamespaceObjects(Protocol):
    """The payload bucket."""

    def names(self, prefix: str) -> list[str]:
        """Return the names of the first objects with a prefix, up to 1,000."""

    def remove(self, keys: Sequence[str]) -> None:
        """Remove objects."""


@dataclass(frozen=True, kw_only=True)
class NamespaceContents:
    """What the deletion of a namespace removes."""

    table: Table
    rows: NamespaceRowsReader
    objects: NamespaceObjects


@dataclass(frozen=True, kw_only=True)
class Deletion:
    """The progress of a deletion.

    Attributes:
        rows: The rows that this call has removed.
        objects: The objects that this call has removed.
        cursor: Continues the deletion; None if it is complete.
        wait_s: The seconds after which the last pass can begin.
    """

    rows: int
    objects: int
    cursor: dict[str, Any] | None
    wait_s: int = 0


@dataclass(frozen=True, kw_only=True)
class Suspension:
    """A suspended namespace, with the number of its API keys and of the WebSockets that were closed."""

    settings: NamespaceSettings
    keys: int
    disconnected: int


def suspend(
    ctx: NamespacesContext, keys: UsesApiKeys, namespace: str, disconnect: Callable[[str, str], int]
) -> Suspension:
    """Suspend a namespace and close its WebSockets. A namespace without keys may be a mistyped one.

    Raises:
        InvalidTransition: The namespace is being deleted.
    """
    settings = ctx.limits.namespaces.read(namespace)
    _refuse_deleting(settings)
    if settings.active:
        settings = ctx.limits.namespaces.set_state(namespace, NamespaceState.SUSPENDED)
    closed = _disconnect_all(keys, namespace, disconnect)
    return Suspension(settings=settings, keys=len(closed), disconnected=sum(closed))


def resume(ctx: NamespacesContext, namespace: str) -> NamespaceSettings:
    """Resume a suspended namespace. The sweeper finds what is due within a minute.

    Raises:
        InvalidTransition: The namespace is being deleted.
    """
    settings = ctx.limits.namespaces.read(namespace)
    _refuse_deleting(settings)
    return settings if settings.active else ctx.limits.namespaces.set_state(namespace, NamespaceState.ACTIVE)


def delete(
    ctx: NamespacesContext,
    contents: NamespaceContents,
    keys: UsesApiKeys,
    namespace: str,
    disconnect: Callable[[str, str], int],
    *,
    cursor: object,
    until: datetime,
) -> Deletion:
    """Remove a part of the rows and objects of a namespace. Repeat the call with the cursor of its result.

    The state of the namespace is removed last, so a deletion that was interrupted can begin again.

    Raises:
        ValidationFailed: The cursor is not from an earlier call.
    """
    started_at, position = _parse_cursor(cursor, ctx.now())
    settings = ctx.limits.namespaces.read(namespace)
    if settings.state is not NamespaceState.DELETING:
        _disconnect_all(keys, namespace, disconnect)
        settings = ctx.limits.namespaces.set_state(namespace, NamespaceState.DELETING)
    rows = objects = 0
    while True:
        found, position = contents.rows.page(namespace, position)
        contents.table.batch_write(deletes=found)
        rows += len(found)
        if position is None:
            break
        if ctx.now() >= until:
            return Deletion(rows=rows, objects=0, cursor={"started_at": to_text(started_at), "position": position})
    for prefix in (f"payloads/{namespace}/", f"uploads/{namespace}/"):
        while names := contents.objects.names(prefix):
            contents.objects.remove(names)
            objects += len(names)
    settled_at = (settings.state_since or started_at) + SETTLING_TIME
    if started_at < settled_at:
        wait_s = max(1, int((settled_at - ctx.now()).total_seconds()) + 1)
        return Deletion(rows=rows, objects=objects, cursor={}, wait_s=wait_s)
    ctx.limits.namespaces.remove(namespace)
    return Deletion(rows=rows, objects=objects, cursor=None)


def _refuse_deleting(settings: NamespaceSettings) -> None:
    if settings.state is NamespaceState.DELETING:
        raise InvalidTransition(
            f"The namespace {settings.namespace} is being deleted. Complete it with `vigil namespace delete`"
        )


def _disconnect_all(keys: UsesApiKeys, namespace: str, disconnect: Callable[[str, str], int]) -> list[int]:
    """Close the WebSockets of a namespace, and return their number for each of its keys."""
    return [disconnect(namespace, key.key_id) for key in keys.api_keys.find_all(namespace)]


def _parse_cursor(cursor: object, now: datetime) -> tuple[datetime, dict[str, str] | None]:
    """Return the time at which the pass began, and its position in the table."""
    if not cursor:
        return now, None
    try:
        assert isinstance(cursor, Mapping)
        position = cursor["position"]
        return from_text(cursor["started_at"]), {"pk": str(position["pk"]), "sk": str(position["sk"])}
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ValidationFailed.at("/cursor", "must be the cursor of an earlier answer") from error
