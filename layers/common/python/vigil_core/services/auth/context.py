"""The collaborators of the auth services, and narrow views of them.

They are separate from `services.context`: the authorizer answers every request, and a small set of imports keeps its
cold start short.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from vigil_core.store.auth.api_keys import ApiKeyStore
from vigil_core.store.auth.tickets import TicketStore
from vigil_core.store.namespaces import NamespaceStore


class UsesApiKeys(Protocol):
    """Access to the API keys."""

    @property
    def api_keys(self) -> ApiKeyStore: ...


class UsesTickets(Protocol):
    """Access to the WebSocket tickets."""

    @property
    def tickets(self) -> TicketStore: ...


class UsesNamespaces(Protocol):
    """Access to the states of namespaces."""

    @property
    def namespaces(self) -> NamespaceStore: ...


class UsesTime(Protocol):
    """Access to the current time."""

    @property
    def now(self) -> Callable[[], datetime]: ...


class UsesRandomHex(Protocol):
    """Access to randomness: `random_hex(n)` returns n random bytes as 2n hexadecimal digits."""

    @property
    def random_hex(self) -> Callable[[int], str]: ...


@dataclass(frozen=True, kw_only=True)
class AuthContext:
    """Everything that the auth services share. It satisfies each of their views."""

    api_keys: ApiKeyStore
    tickets: TicketStore
    namespaces: NamespaceStore
    now: Callable[[], datetime]
    random_hex: Callable[[int], str] = secrets.token_hex
