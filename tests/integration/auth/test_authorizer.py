"""The authorizer, invoked like API Gateway does with the sample payloads, on moto."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto import mock_aws

from functions.authorizer import handler as authorizer
from tests.support.events import sample
from tests.support.table import TABLE_NAME, aws, create_table
from vigil_core.domain.access import ApiKey, Scope, Ticket, Token, TokenKind, parse_token
from vigil_core.runtime.settings import MissingSetting
from vigil_core.store.auth.api_keys import ApiKeyStore
from vigil_core.store.auth.tickets import TicketStore

CONTEXT = {"namespace": "demo", "scopes": "read,submit", "key_id": "00000000000000a1"}
CASES = ["authorizer_http", "authorizer_websocket_key", "authorizer_websocket_ticket"]


def sample_token(kind: TokenKind) -> Token:
    """Return the token of the sample payloads."""
    header = sample("authorizer_http")["headers"]["authorization"].removeprefix("Bearer ")
    text = (
        header
        if kind is TokenKind.API_KEY
        else sample("authorizer_websocket_ticket")["queryStringParameters"]["ticket"]
    )
    token = parse_token(text, kind)
    assert token is not None
    return token


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Store the key and the ticket of the samples in the table."""
    monkeypatch.setenv("TABLE_NAME", TABLE_NAME)
    key, ticket = sample_token(TokenKind.API_KEY), sample_token(TokenKind.TICKET)
    scopes = frozenset({Scope.READ, Scope.SUBMIT})
    now = datetime.now(UTC)
    with mock_aws():
        table = create_table()
        ApiKeyStore(table).add(
            ApiKey(
                namespace="demo",
                key_id=key.id,
                secret_hash=key.secret_hash(),
                scopes=scopes,
                name=None,
                created_at=now,
            )
        )
        TicketStore(table).add(
            Ticket(
                namespace="demo",
                ticket_id=ticket.id,
                key_id=key.id,
                secret_hash=ticket.secret_hash(),
                scopes=scopes,
                expires_at=now + timedelta(minutes=1),
            )
        )
        authorizer.auth_context.cache_clear()
        yield
    authorizer.auth_context.cache_clear()


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Capture the function's log. Its logger retains the output stream of the import time."""
    handler = authorizer.logger.registered_handler
    assert isinstance(handler, logging.StreamHandler)
    written = io.StringIO()
    before = handler.setStream(written)
    yield written
    handler.setStream(before)


def allowed(answer: dict[str, Any]) -> bool:
    """Return whether API Gateway would allow the request after this response."""
    if "isAuthorized" in answer:
        return answer["isAuthorized"] is True
    (statement,) = answer["policyDocument"]["Statement"]
    return bool(statement["Effect"] == "Allow")


def refused(event: dict[str, Any]) -> bool:
    answer = authorizer.handler(event, None)
    return not allowed(answer) and answer["context"] == {}


def test_http_request_gets_a_simple_response(stored: None) -> None:
    assert authorizer.handler(sample("authorizer_http"), None) == {"isAuthorized": True, "context": CONTEXT}


@pytest.mark.parametrize("case", ["authorizer_websocket_key", "authorizer_websocket_ticket"])
def test_websocket_request_gets_a_policy_for_its_method_only(stored: None, case: str) -> None:
    event = sample(case)
    assert authorizer.handler(event, None) == {
        "principalId": CONTEXT["key_id"],
        "policyDocument": {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": "execute-api:Invoke", "Resource": event["methodArn"]}],
        },
        "context": CONTEXT,
    }


def test_ticket_opens_one_websocket_only(stored: None) -> None:
    event = sample("authorizer_websocket_ticket")
    assert [allowed(authorizer.handler(event, None)) for _ in range(2)] == [True, False]


def test_ticket_is_refused_for_http_and_stays_unused(stored: None) -> None:
    ticket = sample_token(TokenKind.TICKET).to_text()
    event = {**sample("authorizer_http"), "headers": {}, "queryStringParameters": {"ticket": ticket}}
    assert refused(event)
    assert refused({**event, "headers": {"authorization": f"Bearer {ticket}"}})
    assert allowed(authorizer.handler(sample("authorizer_websocket_ticket"), None))


def test_invalid_ticket_is_refused_despite_a_valid_key(stored: None) -> None:
    assert refused({**sample("authorizer_websocket_key"), "queryStringParameters": {"ticket": "vgt_x"}})


@pytest.mark.parametrize("name", ["authorization", "Authorization", "AUTHORIZATION"])
@pytest.mark.parametrize("case", ["authorizer_http", "authorizer_websocket_key"])
def test_authorization_header_name_is_case_insensitive(stored: None, case: str, name: str) -> None:
    bearer = f"Bearer {sample_token(TokenKind.API_KEY).to_text()}"
    assert allowed(authorizer.handler({**sample(case), "headers": {"host": "x", name: bearer}}, None))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("where", ["headers", "queryStringParameters"])
@pytest.mark.parametrize("value", [None, [], "x", 5, {}, {"authorization": None, "ticket": None}], ids=repr)
def test_event_without_a_token_is_refused(stored: None, case: str, where: str, value: object) -> None:
    other = {"headers": "queryStringParameters", "queryStringParameters": "headers"}[where]
    assert refused({**sample(case), where: value, other: None})


hostile = (
    st.none()
    | st.integers()
    | st.binary()
    | st.text(max_size=200)
    | st.lists(st.text(max_size=5), max_size=3)
    | st.builds(lambda text: f"Bearer {text}", st.text(max_size=200))
    | st.from_regex(r"(Bearer )?vg[lt]_[a-z#/_-]{0,80}_[0-9a-f]{0,20}_[0-9a-f]{0,70}", fullmatch=True)
)


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=hostile)
def test_arbitrary_token_text_is_refused_without_error(stored: None, case: str, value: object) -> None:
    event = {**sample(case), "headers": {"authorization": value}, "queryStringParameters": {"ticket": value}}
    assert refused(event)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("text", ["x" * 1_000_000, "Bearer " + "vgl_" * 250_000, "Bearer \ud83d\x00\u202e\ud800"])
def test_huge_token_is_refused_without_error(stored: None, case: str, text: str) -> None:
    assert refused({**sample(case), "headers": {"authorization": text}, "queryStringParameters": {"ticket": text}})


@pytest.mark.parametrize("case", CASES)
def test_allowed_request_logs_one_line_without_secrets(stored: None, case: str, log: io.StringIO) -> None:
    authorizer.handler(sample(case), None)
    (line,) = log.getvalue().splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["message"], entry["action"]) == ("INFO", "allowed", "authorize")
    assert (entry["namespace"], entry["key_id"]) == ("demo", CONTEXT["key_id"])
    assert sample_token(TokenKind.API_KEY).secret not in line
    assert sample_token(TokenKind.TICKET).secret not in line


def test_refusal_is_logged_without_the_received_token(stored: None, log: io.StringIO) -> None:
    authorizer.handler({**sample("authorizer_http"), "headers": {"authorization": "Bearer vgl_private"}}, None)
    (line,) = log.getvalue().splitlines()
    assert json.loads(line)["message"] == "refused"
    assert "private" not in line


def test_table_outage_raises_instead_of_refusing(stored: None) -> None:
    aws("dynamodb").delete_table(TableName=TABLE_NAME)
    with pytest.raises(ClientError):
        authorizer.handler(sample("authorizer_http"), None)


def test_missing_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TABLE_NAME", raising=False)
    authorizer.auth_context.cache_clear()
    with pytest.raises(MissingSetting, match="TABLE_NAME"):
        authorizer.handler(sample("authorizer_http"), None)
