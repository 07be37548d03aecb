"""The local stack, tested from outside with a miniature template that has one resource of each supported type."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError
from typer.testing import CliRunner

from vigil.cli.main import app
from vigil.local import LocalError, Stack, cloud, running_stack
from vigil.local.health import health
from vigil.local.stack import client_config, session
from vigil.local.state_dir import StateDir, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("local-stack"), pytest.mark.timeout(300)]

MINIATURE = Path(__file__).parent / "miniature"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@cache
def client_of(service: str, endpoint_url: str) -> Any:
    connect: Any = session().client
    return connect(service, endpoint_url=endpoint_url, config=client_config())


@dataclass
class Miniature:
    """The running stack of the miniature template, with helpers for tests."""

    home: StateDir
    port: int
    stack: Stack

    def client(self, service: str) -> Any:
        return client_of(service, self.stack.endpoint_url)

    def get(self, path: str, key: str | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.get(f"{self.stack.api_url}{path}", headers=headers, timeout=30)

    def put(self, *names: str, entity: str = "job", **more: str) -> None:
        for name in names:
            attributes = {"pk": name, "sk": "A", "entity": entity, **more}
            item = {attribute: {"S": value} for attribute, value in attributes.items()}
            self.client("dynamodb").put_item(TableName=self.stack.table_name, Item=item)

    def times(self, name: str) -> int:
        """Return the number of times that the recorder received the item's record."""
        outputs = self.client("cloudformation").describe_stacks(StackName=self.stack.stack_name)["Stacks"][0]["Outputs"]
        table = next(output["OutputValue"] for output in outputs if output["OutputKey"] == "SeenTableName")
        item = self.client("dynamodb").get_item(TableName=table, Key={"pk": {"S": name}, "sk": {"S": "A"}})
        return int(item["Item"]["times"]["N"]) if "Item" in item else 0

    def delivered(self, *names: str) -> bool:
        return wait_until(lambda: all(self.times(name) for name in names), 30)

    def up(self) -> None:
        self.stack = cloud.up(self.home, port=self.port)

    def pid(self, of: str) -> int:
        return int(getattr(self.home, of).holder()["pid"])

    def dead_letters(self) -> list[dict[str, Any]]:
        buckets = self.client("s3")
        objects = buckets.list_objects_v2(Bucket=self.stack.dead_letter_bucket).get("Contents", [])
        bodies = [buckets.get_object(Bucket=self.stack.dead_letter_bucket, Key=entry["Key"]) for entry in objects]
        return [json.loads(body["Body"].read()) for body in bodies]


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Miniature]:
    root = tmp_path_factory.mktemp("miniature") / "checkout"
    shutil.copytree(MINIATURE, root)
    port = free_port()
    with running_stack(root, port, home=root / ".local") as stack:
        yield Miniature(StateDir.of(root), port, stack)


class TestHttpApi:
    def test_authorized_request_reaches_its_route(self, miniature: Miniature) -> None:
        answer = miniature.get("/v1/jobs/7", miniature.stack.api_key)
        assert answer.status_code == 200
        assert answer.json() == {
            "route": "GET /v1/jobs/{job_id}",
            "path": "/v1/jobs/7",
            "caller": {"namespace": "default", "scopes": "admin"},
            "version": 1,
        }

    def test_missing_or_wrong_key_is_refused(self, miniature: Miniature) -> None:
        assert miniature.get("/v1/jobs").status_code == 401
        assert miniature.get("/v1/jobs", "wrong").status_code == 403

    def test_open_route_is_served_without_key(self, miniature: Miniature) -> None:
        assert miniature.get("/openapi.json").json()["caller"] is None

    def test_unknown_path_reaches_the_default_route(self, miniature: Miniature) -> None:
        answer = miniature.get("/nothing/here")
        assert (answer.status_code, answer.json()["route"]) == (404, "$default")

    def test_cors_preflight_is_allowed(self, miniature: Miniature) -> None:
        headers = {"Origin": "https://example.com", "Access-Control-Request-Method": "GET"}
        answer = httpx.options(f"{miniature.stack.api_url}/v1/jobs", headers=headers)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["access-control-allow-headers"] == "authorization"


class TestStreams:
    def test_only_matching_records_reach_the_function(self, miniature: Miniature) -> None:
        miniature.put("unwanted", entity="wait")
        miniature.put("wanted-1", "wanted-2")
        assert miniature.delivered("wanted-1", "wanted-2")
        assert miniature.times("unwanted") == 0

    def test_record_that_fails_once_is_retried(self, miniature: Miniature) -> None:
        miniature.put("fragile", fragile="yes")
        assert wait_until(lambda: miniature.times("fragile") == 2, 30)

    def test_record_that_always_fails_goes_to_the_bucket_and_others_are_delivered(self, miniature: Miniature) -> None:
        miniature.put("poison", poison="yes")
        names = [f"after-poison-{index}" for index in range(20)]
        miniature.put(*names)
        assert wait_until(lambda: len(miniature.dead_letters()) == 1, 60)
        assert miniature.delivered(*names)
        (dead_letter,) = miniature.dead_letters()
        assert dead_letter["requestContext"]["condition"] == "RetryAttemptsExhausted"
        (record,) = json.loads(dead_letter["payload"])["Records"]
        assert record["dynamodb"]["NewImage"]["pk"] == {"S": "poison"}
        assert record["dynamodb"]["SequenceNumber"] == dead_letter["DDBStreamBatchInfo"]["startSequenceNumber"]
        condition = health(miniature.home)
        assert condition.is_healthy
        assert condition.dead_letters == 1

    def test_disabled_mapping_delivers_its_records_after_it_is_enabled(self, miniature: Miniature) -> None:
        with disabled_mapping(miniature):
            miniature.put("while-off")
            assert miniature.times("while-off") == 0
        assert miniature.delivered("while-off")


class disabled_mapping:
    """Disable the mapping inside the block, and wait until the stream poller has noticed it."""

    def __init__(self, miniature: Miniature) -> None:
        self._miniature = miniature
        (mapping,) = miniature.client("lambda").list_event_source_mappings()["EventSourceMappings"]
        self._uuid = mapping["UUID"]

    def __enter__(self) -> None:
        self._set(False)
        assert wait_until(lambda: not health(self._miniature.home).readers, 30)

    def __exit__(self, *_: object) -> None:
        self._set(True)

    def _set(self, enabled: bool) -> None:
        self._miniature.client("lambda").update_event_source_mapping(UUID=self._uuid, Enabled=enabled)


class TestSecondUp:
    def test_second_up_changes_nothing(self, miniature: Miniature) -> None:
        before, built = miniature.stack, (miniature.home.directory / "build.log").stat().st_size
        miniature.up()
        assert miniature.stack == before
        assert (miniature.home.directory / "build.log").stat().st_size == built

    def test_up_after_a_change_deploys_without_restarting_the_emulator(self, miniature: Miniature) -> None:
        before, emulator = miniature.stack, miniature.pid("emulator")
        handler = miniature.home.root / "functions/api/handler.py"
        handler.write_text(handler.read_text().replace("VERSION = 1", "VERSION = 2"))
        miniature.up()
        assert miniature.get("/v1/jobs", miniature.stack.api_key).json()["version"] == 2
        assert miniature.stack == before
        assert miniature.pid("emulator") == emulator

    def test_up_with_another_port_is_refused_while_running(self, miniature: Miniature) -> None:
        with pytest.raises(LocalError, match=str(miniature.port)):
            cloud.up(miniature.home, port=free_port())


class TestRestart:
    def test_restart_preserves_data_and_delivers_unconsumed_records(self, miniature: Miniature) -> None:
        miniature.put("before")
        assert miniature.delivered("before")
        off = disabled_mapping(miniature)
        with off:
            miniature.put("waiting-1", "waiting-2")
            key, seen = miniature.stack.api_key, miniature.times("before")
            assert cloud.down(miniature.home)
            assert not cloud.down(miniature.home)
            miniature.up()
        assert miniature.delivered("waiting-1", "waiting-2")
        assert miniature.stack.api_key == key
        assert miniature.get("/v1/jobs", key).status_code == 200
        # Records that were processed before the stop are not processed again.
        assert miniature.times("before") == seen

    def test_killed_supervisor_loses_no_records(self, miniature: Miniature) -> None:
        os.kill(miniature.pid("supervisor"), signal.SIGKILL)
        assert wait_until(lambda: not miniature.home.supervisor.alive, 10)
        assert not health(miniature.home).running
        miniature.put("orphaned-1", "orphaned-2")
        assert miniature.times("orphaned-1") == 0
        miniature.up()
        assert miniature.delivered("orphaned-1", "orphaned-2")

    def test_killed_emulator_ends_the_supervisor_and_loses_no_record(self, miniature: Miniature) -> None:
        with disabled_mapping(miniature):
            miniature.put("kept-1", "kept-2")
            os.kill(miniature.pid("emulator"), signal.SIGKILL)
            steps: list[str] = []
            # The supervisor ends by itself, and `up` waits for that.
            miniature.stack = cloud.up(miniature.home, port=miniature.port, say=steps.append)
        assert any("ended without a stop" in step for step in steps), steps
        assert miniature.delivered("kept-1", "kept-2")
        assert miniature.get("/v1/jobs", miniature.stack.api_key).status_code == 200

    def test_full_disk_refuses_writes_and_fails_status_and_down(
        self, miniature: Miniature, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(miniature.home.root)
        # The limit of the size of a file stops the journal, as a full disk does.
        limit = (0, resource.RLIM_INFINITY)
        resource.prlimit(miniature.pid("emulator"), resource.RLIMIT_FSIZE, limit)
        with pytest.raises(ClientError, match="cannot be saved"):
            miniature.put("refused")
        refused = httpx.post(f"{miniature.stack.api_url}/v1/jobs", timeout=30)
        assert refused.status_code == 503
        status = CliRunner().invoke(app, ["local", "status"])
        assert status.exit_code == 1
        assert "cannot be saved" in status.output
        down = CliRunner().invoke(app, ["local", "down"])
        assert down.exit_code == 1
        assert "could not be saved" in down.output
        miniature.up()
        assert miniature.delivered("kept-1")
        miniature.put("accepted")
        assert miniature.delivered("accepted")

    def test_damaged_state_is_refused_and_kept(self, miniature: Miniature) -> None:
        assert cloud.down(miniature.home)
        (path,) = miniature.home.state.glob("generation-*/dynamodb.json")
        content = path.read_bytes()
        for damaged, damage in [(path, content[:-10]), (miniature.home.streams_file, b'{"readers": [')]:
            before = damaged.read_bytes()
            damaged.write_bytes(damage)
            with pytest.raises(LocalError, match="vigil local up --fresh") as refused:
                miniature.up()
            assert damaged.name in str(refused.value)
            assert damaged.read_bytes() == damage
            damaged.write_bytes(before)
        miniature.up()
        assert miniature.get("/v1/jobs", miniature.stack.api_key).status_code == 200

    def test_stack_continues_on_another_port(self, miniature: Miniature) -> None:
        assert cloud.down(miniature.home)
        miniature.port = free_port()
        key = miniature.stack.api_key
        miniature.up()
        assert miniature.stack.api_key == key
        miniature.put("moved")
        assert miniature.delivered("moved")
        assert health(miniature.home).is_healthy


class TestCommands:
    @pytest.fixture(autouse=True)
    def _place(self, miniature: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(miniature.home.root)

    def test_status_command_shows_urls_key_and_health(self, miniature: Miniature) -> None:
        result = CliRunner().invoke(app, ["local", "status"])
        assert result.exit_code == 0
        for expected in (miniature.stack.api_url, miniature.stack.api_key, "RecorderFunction", "Dead letters: 1"):
            assert expected in result.output

    def test_logs_command_filters_by_function_and_refuses_unknown_ones(self, miniature: Miniature) -> None:
        miniature.get("/openapi.json")
        result = CliRunner().invoke(app, ["local", "logs"])
        assert result.exit_code == 0
        assert "asked for /openapi.json" in result.output
        assert "START RequestId" not in result.output
        one = CliRunner().invoke(app, ["local", "logs", miniature.stack.admin_function])
        assert "made a key" in one.output
        assert "asked for" not in one.output
        unknown = CliRunner().invoke(app, ["local", "logs", "absent"])
        assert unknown.exit_code == 1

    def test_logs_follow_new_lines(self, miniature: Miniature) -> None:
        from vigil.local import logs

        started_ms = int(time.time() * 1000)
        lines = logs.lines(miniature.stack, None, since_ms=started_ms, is_following=lambda: True)
        miniature.get("/openapi.json?first")
        assert "asked for" in next(lines).text
        miniature.get("/openapi.json?second")
        assert next(lines).at >= started_ms


def test_taken_port_is_reported(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(LocalError, match="taken by another program"):
            cloud.up(StateDir.of(MINIATURE, tmp_path), port=other.getsockname()[1])


def test_fresh_start_needs_no_saved_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise LocalError("The state could not be saved.")

    (tmp_path / "state").mkdir()
    monkeypatch.setattr(cloud, "down", refuse)
    monkeypatch.setattr(cloud, "up", refuse)
    CliRunner().invoke(app, ["local", "up", "--fresh", "--home", str(tmp_path), "--root", str(MINIATURE)])
    assert not (tmp_path / "state").exists()


def test_commands_without_a_running_stack_report_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status = CliRunner().invoke(app, ["local", "status"])
    assert (status.exit_code, "vigil local up" in status.output) == (3, True)
    down = CliRunner().invoke(app, ["local", "down"])
    assert (down.exit_code, "not running" in down.output) == (0, True)
    logs = CliRunner().invoke(app, ["local", "logs"])
    assert logs.exit_code == 1
