"""API keys and tickets from creation to expiry or revocation, on moto."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from typing import Any

import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber
from moto import mock_aws

from tests.support.table import TABLE_NAME, aws, create_table
from vigil_core.domain.access import Access, ApiKey, Scope, Token
from vigil_core.domain.errors import Forbidden, ValidationFailed
from vigil_core.services.auth.api_keys import create_key, list_keys, revoke_key
from vigil_core.services.auth.authenticate import authenticate_header, authenticate_ticket
from vigil_core.services.auth.context import AuthContext
from vigil_core.services.auth.tickets import issue_ticket
from vigil_core.store.auth.api_keys import ApiKeyStore
from vigil_core.store.auth.tickets import TicketStore
from vigil_core.store.namespaces import NamespaceStore
from vigil_core.store.table import DynamoTable, QueryPage, Table

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


class World:
    """The services on one table, with a clock that the test moves and consecutive ids."""

    def __init__(self, table: Table) -> None:
        self.now = NOON
        self.closed: list[tuple[str, str]] = []
        numbers = count(1)
        self.ctx = AuthContext(
            api_keys=ApiKeyStore(table),
            tickets=TicketStore(table),
            namespaces=NamespaceStore(table, now=lambda: self.now, concurrency=10),
            now=lambda: self.now,
            random_hex=lambda size: f"{next(numbers):0{2 * size}x}",
        )
        self.tickets = self.ctx.tickets
        self.issue = partial(issue_ticket, self.ctx)

    def _disconnect(self, namespace: str, key_id: str) -> int:
        # The key must be marked as revoked before its sockets are closed.
        assert next(key for key in list_keys(self.ctx, namespace) if key.key_id == key_id).revoked
        self.closed.append((namespace, key_id))
        return 2

    def revoke(self, namespace: object, key_id: object) -> tuple[ApiKey, int]:
        return revoke_key(self.ctx, namespace, key_id, disconnect=self._disconnect)

    def key(self, namespace: str = "demo", scopes: list[str] | None = None) -> tuple[ApiKey, Token]:
        return create_key(self.ctx, namespace, scopes or ["submit"], "build farm")

    def access(self, token: Token) -> Access | None:
        return authenticate_header(self.ctx, f"Bearer {token.to_text()}")


@pytest.fixture
def world() -> Iterator[World]:
    with mock_aws():
        yield World(create_table())


def raw_rows() -> list[dict[str, Any]]:
    return aws("dynamodb").scan(TableName=TABLE_NAME)["Items"]


def test_key_grants_access_to_its_namespace_with_its_scopes(world: World) -> None:
    key, token = world.key("demo", ["submit", "work"])
    assert world.access(token) == Access(
        namespace="demo", scopes=frozenset({Scope.SUBMIT, Scope.WORK}), key_id=key.key_id
    )


def test_secrets_of_keys_and_tickets_are_not_stored(world: World) -> None:
    _, token = world.key()
    ticket, _ = world.issue(Access(namespace="demo", scopes=frozenset({Scope.READ}), key_id=token.id))
    (key_row, ticket_row) = sorted(map(str, raw_rows()), key=len)
    for row in (key_row, ticket_row):
        assert token.secret not in row
        assert ticket.secret not in row


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
def test_bearer_scheme_is_case_insensitive(world: World, scheme: str) -> None:
    _, token = world.key()
    assert authenticate_header(world.ctx, scheme + token.to_text()) is not None


def test_altered_or_malformed_keys_are_refused(world: World) -> None:
    _, token = world.key("demo")
    world.key("other")
    text = token.to_text()
    wrong_secret = Token(kind=token.kind, namespace=token.namespace, id=token.id, secret="f" * 64)
    wrong_namespace = Token(kind=token.kind, namespace="other", id=token.id, secret=token.secret)
    unknown = Token(kind=token.kind, namespace="demo", id="f" * 16, secret=token.secret)
    for header in (
        None,
        7,
        b"Bearer " + text.encode(),
        "",
        text,
        f"Basic {text}",
        "Bearer",
        "Bearer ",
        f"Bearer {text}x",
        f"Bearer {text},Bearer {text}",
        f"Bearer {text.upper()}",
        f"Bearer {wrong_secret.to_text()}",
        f"Bearer {wrong_namespace.to_text()}",
        f"Bearer {unknown.to_text()}",
        "Bearer " + "x" * 1_000_000,
        "Bearer vgl_" + "a" * 1_000_000,
        "Bearer \ud800\x00\u202e",
    ):
        assert authenticate_header(world.ctx, header) is None, header


def test_revoked_key_is_refused_and_its_sockets_close(world: World) -> None:
    key, token = world.key()
    world.now += timedelta(hours=1)
    revoked, closed = world.revoke("demo", key.key_id)
    assert (revoked.revoked_at, closed, world.closed) == (world.now, 2, [("demo", key.key_id)])
    assert world.access(token) is None


def test_second_revocation_leaves_the_key_unchanged_and_closes_sockets_again(world: World) -> None:
    key, _ = world.key()
    first, _ = world.revoke("demo", key.key_id)
    world.now += timedelta(hours=1)
    second, _ = world.revoke("demo", key.key_id)
    assert second == first
    assert len(world.closed) == 2


@pytest.mark.parametrize("key_id", ["f" * 16, "", None, 7, ["x"]])
def test_revoking_an_unknown_key_names_the_field(world: World, key_id: object) -> None:
    world.key("demo")
    with pytest.raises(ValidationFailed) as refused:
        world.revoke("demo", key_id)
    assert [problem.pointer for problem in refused.value.problems] == ["/key_id"]
    assert len(raw_rows()) == 1


def test_key_of_another_namespace_cannot_be_revoked(world: World) -> None:
    key, token = world.key("demo")
    with pytest.raises(ValidationFailed):
        world.revoke("other", key.key_id)
    assert world.access(token) is not None


def test_keys_of_a_namespace_are_listed_oldest_first(world: World) -> None:
    created = []
    for _ in range(3):
        created.append(world.key("demo")[0])
        world.now += timedelta(seconds=1)
    world.key("demo-2")
    world.revoke("demo", created[0].key_id)
    listed = list_keys(world.ctx, "demo")
    assert [key.key_id for key in listed] == [key.key_id for key in created]
    assert [key.revoked for key in listed] == [True, False, False]
    assert list_keys(world.ctx, "absent") == []


def test_keys_over_several_pages_are_all_listed(world: World) -> None:
    for _ in range(30):
        create_key(world.ctx, "demo", ["read"], "n" * 128)
    paged = _SmallPages(aws("dynamodb"), TABLE_NAME)
    assert len(ApiKeyStore(paged).find_all("demo")) == 30


class _SmallPages(DynamoTable):
    def query_page(self, pk: str, **bounds: Any) -> QueryPage:
        return super().query_page(pk, **{**bounds, "limit": 7})


def test_ticket_grants_access_once_with_the_rights_of_its_key(world: World) -> None:
    _, token = world.key("demo", ["read"])
    access = world.access(token)
    assert access is not None
    ticket, expires_at = world.issue(access)
    assert expires_at == NOON + timedelta(seconds=60)
    assert ticket.to_text().startswith("vgt_demo_")
    assert authenticate_ticket(world.ctx, ticket.to_text()) == access
    assert authenticate_ticket(world.ctx, ticket.to_text()) is None
    assert len(raw_rows()) == 1


def test_ticket_used_twice_at_once_is_consumed_once(world: World) -> None:
    _, token = world.key()
    access = world.access(token)
    assert access is not None
    text, _ = world.issue(access)
    ticket = world.tickets.find("demo", text.id)
    assert ticket is not None
    assert [world.tickets.consume(ticket), world.tickets.consume(ticket)] == [True, False]


@pytest.mark.parametrize(("after_s", "opens"), [(59.9, True), (60, False), (3600, False)])
def test_ticket_expires_after_a_minute(world: World, after_s: float, opens: bool) -> None:
    _, token = world.key()
    access = world.access(token)
    assert access is not None
    ticket, _ = world.issue(access)
    world.now += timedelta(seconds=after_s)
    assert (authenticate_ticket(world.ctx, ticket.to_text()) is not None) is opens


def test_ticket_of_a_revoked_key_is_refused(world: World) -> None:
    key, token = world.key()
    access = world.access(token)
    assert access is not None
    ticket, _ = world.issue(access)
    world.revoke("demo", key.key_id)
    assert authenticate_ticket(world.ctx, ticket.to_text()) is None


def test_wrong_secret_does_not_consume_the_ticket(world: World) -> None:
    _, token = world.key()
    access = world.access(token)
    assert access is not None
    ticket, _ = world.issue(access)
    guess = Token(kind=ticket.kind, namespace=ticket.namespace, id=ticket.id, secret="f" * 64)
    assert authenticate_ticket(world.ctx, guess.to_text()) is None
    assert authenticate_ticket(world.ctx, ticket.to_text()) == access


def test_key_is_refused_as_ticket_and_ticket_as_key(world: World) -> None:
    _, token = world.key()
    access = world.access(token)
    assert access is not None
    ticket, _ = world.issue(access)
    assert authenticate_ticket(world.ctx, token.to_text()) is None
    assert world.access(ticket) is None


def test_ticket_without_read_scope_is_forbidden(world: World) -> None:
    with pytest.raises(Forbidden):
        world.issue(Access(namespace="demo", scopes=frozenset(), key_id="k"))
    assert raw_rows() == []


def test_table_outage_raises_instead_of_refusing_the_key() -> None:
    client = aws("dynamodb")
    table = DynamoTable(client, TABLE_NAME)
    ctx = AuthContext(
        api_keys=ApiKeyStore(table),
        tickets=TicketStore(table),
        namespaces=NamespaceStore(table, now=lambda: NOON, concurrency=10),
        now=lambda: NOON,
    )
    with Stubber(client) as stub:
        stub.add_client_error("get_item", "InternalServerError", http_status_code=500)
        with pytest.raises(ClientError):
            authenticate_header(ctx, f"Bearer vgl_demo_{'0' * 16}_{'0' * 64}")


def test_malformed_token_costs_no_table_read() -> None:
    """Check that a client without a well-formed token cannot cause paid reads."""
    client = aws("dynamodb")
    table = DynamoTable(client, TABLE_NAME)
    ctx = AuthContext(
        api_keys=ApiKeyStore(table),
        tickets=TicketStore(table),
        namespaces=NamespaceStore(table, now=lambda: NOON, concurrency=10),
        now=lambda: NOON,
    )
    with Stubber(client):
        assert authenticate_header(ctx, "Bearer nonsense") is None
        assert authenticate_ticket(ctx, "nonsense") is None
