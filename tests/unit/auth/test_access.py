from __future__ import annotations

import string
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_core.domain.access import (
    Access,
    ApiKey,
    Scope,
    Token,
    TokenKind,
    in_order,
    parse_grant,
    parse_token,
)
from vigil_core.domain.errors import Forbidden, ValidationFailed

HEX = "0123456789abcdef"
namespaces = st.from_regex(r"[a-z][a-z0-9-]{0,62}", fullmatch=True)
tokens = st.builds(
    Token,
    kind=st.sampled_from(TokenKind),
    namespace=namespaces,
    id=st.text(HEX, min_size=16, max_size=16),
    secret=st.text(HEX, min_size=64, max_size=64),
)


@given(tokens)
def test_a_token_is_read_as_it_was_written(token: Token) -> None:
    assert parse_token(token.text(), token.kind) == token


@given(tokens)
def test_a_token_of_one_kind_is_none_of_the_other(token: Token) -> None:
    (other,) = set(TokenKind) - {token.kind}
    assert parse_token(token.text(), other) is None


@given(tokens, st.text(string.printable + "é\u0660\n\x00", min_size=1, max_size=3), st.data())
def test_a_token_with_anything_added_is_no_token(token: Token, extra: str, data: st.DataObject) -> None:
    text = token.text()
    at = data.draw(st.integers(0, len(text)))
    parsed = parse_token(text[:at] + extra + text[at:], token.kind)
    # Only the namespace has room for more.
    assert parsed is None or (parsed.id, parsed.secret) == (token.id, token.secret)


@given(st.none() | st.integers() | st.binary() | st.lists(st.text()) | st.text())
def test_anything_else_is_no_token(value: object) -> None:
    assert parse_token(value, TokenKind.API_KEY) is None


@pytest.mark.parametrize("namespace", ["", "A", "1a", "a_b", "a#b", "a" * 64, "é", "a\n", " a", "demo-", "-a"])
def test_a_namespace_cannot_break_out_of_its_key(namespace: str) -> None:
    token = Token(kind=TokenKind.API_KEY, namespace=namespace, id="0" * 16, secret="0" * 64)
    allowed = namespace == "demo-"
    assert (parse_token(token.text(), TokenKind.API_KEY) is not None) is allowed


def test_the_secret_shows_in_no_repr() -> None:
    token = Token(kind=TokenKind.API_KEY, namespace="demo", id="0" * 16, secret="5ec2e7" * 10 + "0000")
    assert "5ec2e7" not in repr(token)


def test_only_the_right_secret_proves() -> None:
    token = Token(kind=TokenKind.API_KEY, namespace="demo", id="0" * 16, secret="ab" * 32)
    other = Token(kind=TokenKind.API_KEY, namespace="demo", id="0" * 16, secret="ab" * 31 + "ac")
    assert token.proves(token.secret_hash())
    assert not other.proves(token.secret_hash())
    assert token.secret not in token.secret_hash()


@pytest.mark.parametrize(
    ("held", "allowed"),
    [
        ({Scope.READ}, {Scope.READ}),
        ({Scope.SUBMIT}, {Scope.READ, Scope.SUBMIT}),
        ({Scope.WORK}, {Scope.READ, Scope.WORK}),
        ({Scope.SUBMIT, Scope.WORK}, {Scope.READ, Scope.SUBMIT, Scope.WORK}),
        ({Scope.ADMIN}, set(Scope)),
    ],
)
def test_what_a_scope_contains(held: set[Scope], allowed: set[Scope]) -> None:
    access = Access(namespace="demo", scopes=frozenset(held), key_id="k")
    assert {scope for scope in Scope if access.allows(scope)} == allowed
    for scope in Scope:
        if scope in allowed:
            access.require(scope)
        else:
            with pytest.raises(Forbidden, match=scope):
                access.require(scope)


@given(namespaces, st.frozensets(st.sampled_from(Scope), min_size=1), st.text(HEX, min_size=16, max_size=16))
def test_access_survives_its_way_through_api_gateway(namespace: str, scopes: frozenset[Scope], key_id: str) -> None:
    access = Access(namespace=namespace, scopes=scopes, key_id=key_id)
    context = access.context()
    assert all(isinstance(value, str) for value in context.values())
    assert Access.of_context(context) == access


def test_scopes_are_shown_least_first() -> None:
    assert in_order({Scope.ADMIN, Scope.WORK, Scope.READ}) == ["read", "work", "admin"]


def test_a_revoked_key_says_so() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    fresh = ApiKey(namespace="n", key_id="k", secret_hash="h", scopes=frozenset(), name=None, created_at=at)
    gone = ApiKey(
        namespace="n", key_id="k", secret_hash="h", scopes=frozenset(), name=None, created_at=at, revoked_at=at
    )
    assert (fresh.revoked, gone.revoked) == (False, True)


@pytest.mark.parametrize(
    ("namespace", "scopes", "name", "pointers"),
    [
        (None, ["read"], None, ["/namespace"]),
        ("Demo", ["read"], None, ["/namespace"]),
        (7, ["read"], None, ["/namespace"]),
        ("demo", None, None, ["/scopes"]),
        ("demo", [], None, ["/scopes"]),
        ("demo", "read", None, ["/scopes"]),
        ("demo", ["read", "write", 5, {}], None, ["/scopes/1", "/scopes/2", "/scopes/3"]),
        ("demo", ["read"], "", ["/name"]),
        ("demo", ["read"], "a\x00b", ["/name"]),
        ("demo", ["read"], "n" * 129, ["/name"]),
        ("demo", ["read"], 5, ["/name"]),
        (None, None, 5, ["/namespace", "/scopes", "/name"]),
    ],
)
def test_a_grant_says_everything_that_is_wrong_with_it(
    namespace: object, scopes: object, name: object, pointers: list[str]
) -> None:
    with pytest.raises(ValidationFailed) as refused:
        parse_grant(namespace, scopes, name)
    assert [problem.pointer for problem in refused.value.problems] == pointers


def test_a_good_grant() -> None:
    assert parse_grant("demo-1", ["work", "read", "read"], "build farm") == (
        "demo-1",
        frozenset({Scope.READ, Scope.WORK}),
        "build farm",
    )
