"""The commands of operators and clients about limits, against the real admin function."""

from __future__ import annotations

import io
import json
from datetime import timedelta
from typing import Any

import boto3
import pytest
from typer.testing import CliRunner, Result

from tests.support.world import NAMESPACE, World
from vigil.cli import limits
from vigil.cli.admin import ADMIN_FUNCTION
from vigil.cli.main import app
from vigil_core.api.admin import Admin
from vigil_core.domain.limits import LIMIT_NAMES


class FakeLambda:
    """Lambda with the real admin function."""

    def __init__(self, admin: Admin, world: World) -> None:
        self.admin, self.world = admin, world

    def invoke(self, *, FunctionName: str, Payload: bytes) -> dict[str, Any]:
        assert FunctionName == "vigil-admin"
        answer = self.admin.handle(json.loads(Payload), self.world.time + timedelta(minutes=5))
        return {"Payload": io.BytesIO(json.dumps(answer).encode())}


@pytest.fixture
def operator(world: World, monkeypatch: pytest.MonkeyPatch) -> FakeLambda:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv(ADMIN_FUNCTION, "vigil-admin")
    unused: Any = None
    fake = FakeLambda(
        Admin(world.ctx, keys=unused, disconnect=lambda *_: 0, dead_letters=unused, contents=unused), world
    )
    monkeypatch.setattr(boto3, "client", lambda *_, **__: fake)
    return fake


def run(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def test_operator_lists_and_overrides_a_limit(operator: FakeLambda) -> None:
    listed = run("limit", "list", NAMESPACE)
    assert listed.exit_code == 0, listed.output
    assert all(name in listed.stdout for name in LIMIT_NAMES)
    assert "100,000" in listed.stdout
    changed = run("limit", "set", NAMESPACE, "open_jobs", "5")
    assert changed.exit_code == 0, changed.output
    assert "5 *" in changed.stdout
    assert "queues" not in changed.stdout.split("counts")[1]
    limits_of = operator.world.ctx.limits.namespaces
    assert (limits_of.limit(NAMESPACE, "open_jobs"), limits_of.limit("other", "open_jobs")) == (5, 100_000)
    assert run("limit", "set", NAMESPACE, "open_jobs", "default").exit_code == 0
    assert limits_of.limit(NAMESPACE, "open_jobs") == 100_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["set", NAMESPACE, "open_job", "5"], "limit: must be one of"),
        (["set", NAMESPACE, "open_jobs", "-5"], "-5"),
        (["set", NAMESPACE, "open_jobs", "many"], "whole number"),
        (["set", NAMESPACE, "open_jobs", "9" * 20], "value: must be"),
        (["set", "Team", "open_jobs", "5"], "namespace: must be"),
        (["list", "Team"], "namespace: must be"),
    ],
)
def test_wrong_command_is_refused_with_its_reason(operator: FakeLambda, words: list[str], message: str) -> None:
    result = run("limit", *words)
    assert result.exit_code != 0
    assert message in result.output


def test_override_reaches_another_process_within_a_minute(world: World, operator: FakeLambda) -> None:
    limits_of = world.ctx.limits.namespaces
    assert limits_of.limit(NAMESPACE, "queues") == 1_000
    other_process = World(limits_of._table)
    other_process.time = world.time
    other_process.ctx.limits.namespaces.set_limit(NAMESPACE, "queues", 2)
    assert limits_of.limit(NAMESPACE, "queues") == 1_000
    world.pass_time(60)
    assert limits_of.limit(NAMESPACE, "queues") == 2


def test_usage_is_printed_as_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeClient:
        def __enter__(self) -> FakeClient:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def usage(self) -> dict[str, Any]:
            shown = {"name": "open_jobs", "limit": 100_000, "used": 1_204, "unit": "jobs", "counts": "open jobs"}
            return {"limits": [shown, {**shown, "name": "jobs_per_request", "used": None}]}

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(limits, "api_client", FakeClient)
    output = run("usage").stdout
    assert "1,204" in output
    assert "100,000" in output
