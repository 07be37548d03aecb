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
    parse_key_request,
    parse_token,
    sort_scopes,
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
def test_token_text_parses_to_the_same_token(token: Token) -> None:
    assert parse_token(token.to_text(), token.kind) == token


@given(tokens)
def test_token_of_one_kind_does_not_parse_as_another(token: Token) -> None:
    (other,) = set(TokenKind) - {token.kind}
    assert parse_token(token.to_text(), other) is None


@given(tokens, st.text(string.printable + "é\u0660\n\x00", min_size=1, max_size=3), st.data())
def test_token_with_added_text_does_not_parse(token: Token, extra: str, data: st.DataObject) -> None:
    text = token.to_text()
    at = data.draw(st.integers(0, len(text)))
    parsed = parse_token(text[:at] + extra + text[at:], token.kind)
    # Only the namespace may be longer.
    assert parsed is None or (parsed.id, parsed.secret) == (token.id, token.secret)


@given(st.none() | st.integers() | st.binary() | st.lists(st.text()) | st.text())
def test_arbitrary_text_does_not_parse_as_token(value: object) -> None:
    assert parse_token(value, TokenKind.API_KEY) is None


@pytest.mark.parametrize("namespace", ["", "A", "1a", "a_b", "a#b", "a" * 64, "é", "a\n", " a", "demo-", "-a"])
def test_token_with_an_invalid_namespace_does_not_parse(namespace: str) -> None:
    token = Token(kind=TokenKind.API_KEY, namespace=namespace, id="0" * 16, secret="0" * 64)
    allowed = namespace == "demo-"
    assert (parse_token(token.to_text(), TokenKind.API_KEY) is not None) is allowed


def test_repr_hides_the_secret() -> None:
    token = Token(kind=TokenKind.API_KEY, namespace="demo", id="0" * 16, secret="5ec2e7" * 10 + "0000")
    assert "5ec2e7" not in repr(token)


def test_only_the_right_secret_matches_its_hash() -> None:
    token = Token(kind=TokenKind.API_KEY, namespace="demo", id="0" * 16, secret="ab" * 32)
    other = Token(kind=TokenKind.API_KEY, namespace="demo", id="0" * 16, secret="ab" * 31 + "ac")
    assert token.matches_hash(token.secret_hash())
    assert not other.matches_hash(token.secret_hash())
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
def test_scope_allows_the_scopes_it_contains(held: set[Scope], allowed: set[Scope]) -> None:
    access = Access(namespace="demo", scopes=frozenset(held), key_id="k")
    assert {scope for scope in Scope if access.allows(scope)} == allowed
    for scope in Scope:
        if scope in allowed:
            access.require(scope)
        else:
            with pytest.raises(Forbidden, match=scope):
                access.require(scope)


@given(namespaces, st.frozensets(st.sampled_from(Scope), min_size=1), st.text(HEX, min_size=16, max_size=16))
def test_access_round_trips_through_the_authorizer_context(
    namespace: str, scopes: frozenset[Scope], key_id: str
) -> None:
    access = Access(namespace=namespace, scopes=scopes, key_id=key_id)
    context = access.to_authorizer_context()
    assert all(isinstance(value, str) for value in context.values())
    assert Access.from_authorizer_context(context) == access


def test_scopes_are_ordered_from_least_to_most() -> None:
    assert sort_scopes({Scope.ADMIN, Scope.WORK, Scope.READ}) == ["read", "work", "admin"]


def test_key_with_revocation_time_is_revoked() -> None:
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
def test_invalid_grant_names_every_problem(
    namespace: object, scopes: object, name: object, pointers: list[str]
) -> None:
    with pytest.raises(ValidationFailed) as refused:
        parse_key_request(namespace, scopes, name)
    assert [problem.pointer for problem in refused.value.problems] == pointers


def test_valid_grant_is_parsed() -> None:
    assert parse_key_request("demo-1", ["work", "read", "read"], "build farm") == (
        "demo-1",
        frozenset({Scope.READ, Scope.WORK}),
        "build farm",
    )
