"""The operator commands of the CLI, against the real admin function."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from typer import Typer
from typer.testing import CliRunner, Result

from tests.support.table import create_table
from vigil.cli import dead_letters, keys, main
from vigil.cli.admin import ADMIN_FUNCTION
from vigil.local import stack as local_stack
from vigil_core.api.admin import Admin
from vigil_core.domain.access import Scope, TokenKind, parse_token
from vigil_core.services.auth.context import AuthContext
from vigil_core.store.auth.api_keys import ApiKeyStore
from vigil_core.store.auth.tickets import TicketStore
from vigil_core.store.namespaces import NamespaceStore

NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


class FakeAws:
    """Lambda with the real admin function, and CloudFormation with one stack of Vigil and one foreign stack."""

    def __init__(self, admin: Admin) -> None:
        self.admin = admin
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.scripted: list[Any] = []
        self.failing = False

    def client(self, service: str, **config: Any) -> Any:
        assert service in ("lambda", "cloudformation")
        return self

    def invoke(self, *, FunctionName: str, Payload: bytes) -> dict[str, Any]:
        if FunctionName == "gone":
            raise ClientError(
                {"Error": {"Code": "ResourceNotFoundException", "Message": "Function not found"}}, "Invoke"
            )
        request = json.loads(Payload)
        self.asked.append((FunctionName, request))
        if self.failing:
            body = {"errorType": "ClientError", "errorMessage": "throttled"}
            return {"FunctionError": "Unhandled", "Payload": io.BytesIO(json.dumps(body).encode())}
        answer = self.scripted.pop(0) if self.scripted else self.admin.handle(request, NOON + timedelta(minutes=5))
        return {"Payload": io.BytesIO(json.dumps(answer).encode())}

    def describe_stacks(self, *, StackName: str) -> dict[str, Any]:
        if StackName == "nothing":
            raise ClientError({"Error": {"Code": "ValidationError", "Message": "does not exist"}}, "DescribeStacks")
        name = "AdminFunctionName" if StackName == "prod" else "Website"
        return {"Stacks": [{"Outputs": [{"OutputKey": name, "OutputValue": f"{StackName}-admin"}]}]}


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeAws]:
    """Run the test in an empty directory with a fake AWS."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv(ADMIN_FUNCTION, "vigil-admin")
    numbers = count(1)
    with mock_aws():
        table = create_table()
        auth = AuthContext(
            api_keys=ApiKeyStore(table),
            tickets=TicketStore(table),
            namespaces=NamespaceStore(table, now=lambda: NOON, concurrency=10),
            now=lambda: NOON,
            random_hex=lambda size: f"{next(numbers):0{2 * size}x}",
        )
        unused: Any = None
        fake = FakeAws(
            Admin(unused, keys=auth, disconnect=lambda _namespace, _key_id: 2, dead_letters=unused, contents=unused)
        )
        monkeypatch.setattr(boto3, "client", fake.client)
        monkeypatch.setattr(local_stack, "session", lambda: fake)
        yield fake


def run(app: Typer, *words: str) -> Result:
    return CliRunner().invoke(app, words)


def test_create_prints_only_the_key_on_stdout(aws: FakeAws) -> None:
    result = run(keys.app, "create", "--namespace", "demo", "--scopes", "submit, work", "--name", "build farm")
    assert result.exit_code == 0, result.output
    token = parse_token(result.stdout.strip(), TokenKind.API_KEY)
    assert token is not None
    assert (token.namespace, token.id in result.stderr, token.secret in result.stderr) == ("demo", True, False)
    request = {"action": "create_key", "namespace": "demo", "scopes": ["submit", "work"], "name": "build farm"}
    assert aws.asked == [("vigil-admin", request)]


def test_list_shows_every_key_without_secrets(aws: FakeAws) -> None:
    token = run(keys.app, "create", "--namespace", "demo", "--scopes", "admin", "--name", "mine").stdout.strip()
    parsed = parse_token(token, TokenKind.API_KEY)
    assert parsed is not None
    run(keys.app, "revoke", parsed.id, "--namespace", "demo")
    output = run(keys.app, "list", "--namespace", "demo").stdout
    for expected in (parsed.id, "mine", Scope.ADMIN, "2026-11-21T12:00:00.000Z"):
        assert expected in output
    assert parsed.secret not in output
    assert "empty has no keys" in run(keys.app, "list", "--namespace", "empty").stdout


def test_revoke_reports_the_closed_websockets(aws: FakeAws) -> None:
    token = parse_token(
        run(keys.app, "create", "--namespace", "demo", "--scopes", "read").stdout.strip(), TokenKind.API_KEY
    )
    assert token is not None
    result = run(keys.app, "revoke", token.id, "--namespace", "demo")
    assert (result.exit_code, "closed 2 WebSockets" in result.stdout) == (0, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["create", "--namespace", "Demo", "--scopes", "read"], "namespace: must be"),
        (["create", "--namespace", "demo", "--scopes", "root"], "scopes/0: must be one of read, submit, work, admin"),
        (["create", "--namespace", "demo", "--scopes", ","], "scopes: must list at least one"),
        (["revoke", "feed", "--namespace", "demo"], "key_id: the namespace demo has no such key"),
        (["create", "--namespace", "demo"], "--scopes"),
        (["list"], "--namespace"),
    ],
)
def test_invalid_argument_is_reported_with_a_failing_exit_code(aws: FakeAws, words: list[str], message: str) -> None:
    result = run(keys.app, *words)
    assert result.exit_code != 0
    assert message in result.stderr
    assert result.stdout == ""


def test_named_stack_resolves_its_admin_function(aws: FakeAws) -> None:
    assert run(keys.app, "list", "--namespace", "demo", "--stack", "prod").exit_code == 0
    assert [function for function, _ in aws.asked] == ["prod-admin"]


@pytest.mark.parametrize(
    ("stack", "message"), [("nothing", "does not exist"), ("website", "no output AdminFunctionName")]
)
def test_stack_without_admin_function_is_refused(aws: FakeAws, stack: str, message: str) -> None:
    result = run(keys.app, "list", "--namespace", "demo", "--stack", stack)
    assert (result.exit_code, message in result.stderr) == (1, True)


def test_local_stack_of_the_directory_is_the_default(
    aws: FakeAws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(ADMIN_FUNCTION)
    text = dict.fromkeys(
        (field for field in local_stack.Stack.__dataclass_fields__ if field not in ("pid", "admin_function")), "x"
    )
    file = tmp_path / ".local" / "stack.json"
    file.parent.mkdir()
    file.write_text(json.dumps({**text, "pid": 1, "admin_function": "local-admin"}))
    assert run(keys.app, "list", "--namespace", "demo").exit_code == 0
    assert [function for function, _ in aws.asked] == ["local-admin"]


def test_command_without_any_stack_reports_the_option(aws: FakeAws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADMIN_FUNCTION)
    result = run(keys.app, "list", "--namespace", "demo")
    assert (result.exit_code, "--stack NAME" in result.stderr) == (1, True)


def test_missing_or_failing_admin_function_is_reported(aws: FakeAws, monkeypatch: pytest.MonkeyPatch) -> None:
    aws.failing = True
    result = run(keys.app, "list", "--namespace", "demo")
    assert (result.exit_code, "throttled" in result.stderr) == (1, True)
    monkeypatch.setenv(ADMIN_FUNCTION, "gone")
    result = run(keys.app, "list", "--namespace", "demo")
    assert (result.exit_code, "Cannot invoke gone" in result.stderr) == (1, True)


BATCH = {
    "key": "aws/lambda/1",
    "stored_at": "2026-11-21T12:00:00.000Z",
    "function": "arn:aws:lambda:us-east-1:123456789012:function:vigil-matcher",
    "condition": "RetryAttemptsExhausted",
    "records": 4,
    "problem": None,
}


def test_dead_letters_list_shows_batches_and_messages(aws: FakeAws) -> None:
    aws.scripted = [{"batches": [BATCH], "total": 1, "messages": {"fan_out": 2, "sweeper": 0}}]
    output = run(dead_letters.app, "list").stdout
    for expected in ("vigil-matcher", "RetryAttemptsExhausted", "1 batches", "fan_out 2, sweeper 0"):
        assert expected in output


def test_redrive_repeats_until_nothing_is_left(aws: FakeAws) -> None:
    aws.scripted = [
        {"batches": 4, "failed": [], "not_tried": 3, "messages": {"fan_out": 1, "sweeper": 0}},
        {"batches": 3, "failed": [], "not_tried": 0, "messages": {"fan_out": 0, "sweeper": 2}},
    ]
    result = run(dead_letters.app, "redrive")
    assert (result.exit_code, "7 batches processed" in result.stdout) == (0, True)
    assert "fan_out 1, sweeper 2" in result.stdout
    assert len(aws.asked) == 2


def test_redrive_stops_when_no_batch_succeeds(aws: FakeAws) -> None:
    failed = {**BATCH, "problem": "the function failed: KeyError: 'pk'"}
    aws.scripted = [{"batches": 0, "failed": [failed], "not_tried": 3, "messages": {"fan_out": 0, "sweeper": 0}}]
    result = run(dead_letters.app, "redrive")
    assert result.exit_code == 1
    for expected in ("KeyError", "1 batches failed again, 3 were not tried"):
        assert expected in result.stdout
    assert len(aws.asked) == 1


def finding(number: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "kind": "job_overdue",
        "namespace": "demo",
        "id": f"job-{number}",
        "problem": "its timer is [long] overdue",
        "since": "2026-11-21T12:00:00.000Z",
        "repair_hint": "apply its timers",
        "repaired": False,
        "outcome": None,
        **more,
    }


def checkup(*findings: dict[str, Any], more: bool = False) -> dict[str, Any]:
    return {"findings": list(findings), "more": more, "examined": {"due": 7, "queues": 2, "jobs": 40}}


def test_doctor_exits_with_0_for_a_healthy_stack(aws: FakeAws) -> None:
    aws.scripted = [checkup()]
    result = run(main.app, "doctor")
    assert (result.exit_code, "Nothing is stuck in 2 queues, 40 jobs and 7 due rows" in result.stdout) == (0, True)
    assert aws.asked == [("vigil-admin", {"action": "doctor"})]


def test_doctor_shows_findings_with_their_repair_hint(aws: FakeAws) -> None:
    dead = finding(kind="dead_letters", namespace=None, id="dead-letters", since=None)
    aws.scripted = [checkup(finding(), dead, more=True)]
    result = run(main.app, "doctor")
    assert result.exit_code == 1
    cells = ["job_overdue", "demo", "job-1", "its timer is [long] overdue", "2026-11-21T12:00:00.000Z", "dead_letters"]
    for expected in (*cells, "apply its timers", "2 findings", "`vigil doctor --fix`", "run the command again"):
        assert expected in result.stdout


def test_doctor_fix_shows_the_outcome_of_each_repair(aws: FakeAws) -> None:
    aws.scripted = [checkup(finding(1, repaired=True, outcome="done"), finding(2, repaired=True, outcome="asked"))]
    result = run(main.app, "doctor", "--fix")
    assert (result.exit_code, "2 findings" in result.stdout, "2 of them repaired" in result.stdout) == (0, True, True)
    assert aws.asked == [("vigil-admin", {"action": "doctor", "fix": True})]

    aws.scripted = [checkup(finding(1, repaired=True, outcome="done"), finding(2, outcome="failed: it broke"))]
    result = run(main.app, "doctor", "--fix")
    assert (result.exit_code, "failed: it broke" in result.stdout) == (1, True)

    aws.scripted = [checkup(finding(1))]
    result = run(main.app, "doctor", "--fix")
    assert (result.exit_code, "no time was left" in result.stdout) == (1, True)


def test_doctor_fix_repeats_while_new_findings_appear(aws: FakeAws) -> None:
    first = checkup(finding(1), more=True)
    second = checkup(finding(1, repaired=True, outcome="done"), finding(2, repaired=True, outcome="done"), more=True)
    aws.scripted = [first, second, second]
    result = run(main.app, "doctor", "--fix", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == second
    assert len(aws.asked) == 3


def test_doctor_json_prints_the_findings(aws: FakeAws) -> None:
    aws.scripted = [checkup(finding())]
    result = run(main.app, "doctor", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, checkup(finding()))
