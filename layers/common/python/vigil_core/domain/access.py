"""Access control: namespaces, scopes, and the two kinds of token that prove them, API keys and WebSocket tickets."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from vigil_core.domain.errors import FieldProblem, Forbidden, ValidationFailed

TICKET_TTL = timedelta(seconds=60)
ID_BYTES = 8
SECRET_BYTES = 32
"""256 random bits cannot be guessed, so one round of SHA-256 is enough for the stored hash."""

_NAMESPACE = re.compile(r"[a-z][a-z0-9-]{0,62}")
_TOKEN = re.compile(
    rf"(?P<kind>vgl|vgt)_(?P<namespace>{_NAMESPACE.pattern})"
    rf"_(?P<id>[0-9a-f]{{{2 * ID_BYTES}}})_(?P<secret>[0-9a-f]{{{2 * SECRET_BYTES}}})"
)
MAX_NAME_CHARS = 128


class Scope(StrEnum):
    """The permissions of a key. `ADMIN` includes all others; `SUBMIT` and `WORK` include `READ`."""

    READ = "read"
    SUBMIT = "submit"
    WORK = "work"
    ADMIN = "admin"


_INCLUDED_SCOPES = {
    Scope.READ: frozenset({Scope.READ}),
    Scope.SUBMIT: frozenset({Scope.SUBMIT, Scope.READ}),
    Scope.WORK: frozenset({Scope.WORK, Scope.READ}),
    Scope.ADMIN: frozenset(Scope),
}


class TokenKind(StrEnum):
    """The prefix that identifies a kind of token, also in logs and for secret scanners."""

    API_KEY = "vgl"
    TICKET = "vgt"


@dataclass(frozen=True, kw_only=True)
class Token:
    """A credential of a client: the key of its row, and the secret that proves the right to use it."""

    kind: TokenKind
    namespace: str
    id: str
    secret: str = field(repr=False)

    def to_text(self) -> str:
        """Return `vgl_<namespace>_<id>_<secret>`, the only form that contains the secret. A client sees it once."""
        return f"{self.kind}_{self.namespace}_{self.id}_{self.secret}"

    def secret_hash(self) -> str:
        """Return the hash of the secret, which is all that Vigil stores of it."""
        return hashlib.sha256(self.secret.encode()).hexdigest()

    def matches_hash(self, secret_hash: str) -> bool:
        """Compare the secret with a stored hash, in constant time."""
        return hmac.compare_digest(self.secret_hash(), secret_hash)


def parse_token(text: object, kind: TokenKind) -> Token | None:
    """Parse the result of `Token.to_text`. Any other value returns None."""
    match = _TOKEN.fullmatch(text) if isinstance(text, str) else None
    if match is None or match["kind"] != kind:
        return None
    return Token(kind=kind, namespace=match["namespace"], id=match["id"], secret=match["secret"])


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A stored API key, without its secret. `name` is the label that the operator chose."""

    namespace: str
    key_id: str
    secret_hash: str = field(repr=False)
    scopes: frozenset[Scope]
    name: str | None
    created_at: datetime
    revoked_at: datetime | None = None

    @property
    def revoked(self) -> bool:
        """True after the key was revoked. A revoked key remains in the list and never works again."""
        return self.revoked_at is not None


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """A stored ticket. It opens one WebSocket before `expires_at`, with the rights of the key that requested it."""

    namespace: str
    ticket_id: str
    key_id: str
    secret_hash: str = field(repr=False)
    scopes: frozenset[Scope]
    expires_at: datetime


@dataclass(frozen=True, kw_only=True)
class Access:
    """The authenticated namespace, scopes and key of a request."""

    namespace: str
    scopes: frozenset[Scope]
    key_id: str

    def allows(self, scope: Scope) -> bool:
        """Return True if one of the scopes equals or includes this one."""
        return any(scope in _INCLUDED_SCOPES[granted] for granted in self.scopes)

    @property
    def read_only(self) -> bool:
        """Whether the key allows nothing but `read`."""
        return not self.allows(Scope.SUBMIT) and not self.allows(Scope.WORK)

    def require(self, scope: Scope) -> None:
        """Check that a scope is allowed.

        Raises:
            Forbidden: The scope is missing. The error names it.
        """
        if not self.allows(scope):
            raise Forbidden(f"This needs a key with the scope {scope}", scope=str(scope))

    def to_authorizer_context(self) -> dict[str, str]:
        """Return the context of the authorizer's response. API Gateway transports flat text only."""
        return {"namespace": self.namespace, "scopes": ",".join(sort_scopes(self.scopes)), "key_id": self.key_id}

    @classmethod
    def from_authorizer_context(cls, context: Mapping[str, str]) -> Access:
        """Parse the result of `to_authorizer_context`."""
        scopes = frozenset(Scope(name) for name in context["scopes"].split(","))
        return cls(namespace=context["namespace"], scopes=scopes, key_id=context["key_id"])


def sort_scopes(scopes: Iterable[Scope]) -> list[Scope]:
    """Return the scopes in order, from `read` to `admin`."""
    return sorted(scopes, key=list(Scope).index)


def namespace_problems(namespace: object) -> list[FieldProblem]:
    """Return the problems of a namespace in a request for a key."""
    if isinstance(namespace, str) and _NAMESPACE.fullmatch(namespace):
        return []
    detail = "must be 1 to 63 of a–z, 0–9 and -, and begin with a letter"
    return [FieldProblem(pointer="/namespace", detail=detail)]


def require_namespace(namespace: object) -> str:
    """Return the namespace of a request.

    Raises:
        ValidationFailed: The namespace is invalid.
    """
    if problems := namespace_problems(namespace):
        raise ValidationFailed(problems)
    return str(namespace)


def parse_key_request(namespace: object, scopes: object, name: object) -> tuple[str, frozenset[Scope], str | None]:
    """Validate the request for a new key, and return its namespace, scopes and name.

    Raises:
        ValidationFailed: The request is invalid. The error lists every problem.
    """
    problems = namespace_problems(namespace)
    known = ", ".join(Scope)
    if not isinstance(scopes, list) or not scopes:
        problems.append(FieldProblem(pointer="/scopes", detail=f"must list at least one of {known}"))
        scopes = []
    for index, scope in enumerate(scopes):
        if scope not in list(Scope):
            problems.append(FieldProblem(pointer=f"/scopes/{index}", detail=f"must be one of {known}"))
    if name is not None and not (isinstance(name, str) and 1 <= len(name) <= MAX_NAME_CHARS and name.isprintable()):
        problems.append(FieldProblem(pointer="/name", detail=f"must be 1 to {MAX_NAME_CHARS} printable characters"))
    if problems:
        raise ValidationFailed(problems)
    return str(namespace), frozenset(Scope(scope) for scope in scopes), name if isinstance(name, str) else None
