"""`vigil job` on a fake Vigil server."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_vigil import FakeVigil
from tests.unit.client.conftest import Run
from vigil.client import Vigil


def test_create_command_sends_every_option(run: Run, fake: FakeVigil) -> None:
    made = run(
        "job", "create", "boot_test", "--payload", '{"kernel": "6.12"}', "--name", "aspen", "--queue", "boxes",
        "--priority", "high", "--at", "2030-01-31T09:30:00Z", "--attempts", "3", "--timeout", "60", "--unique-key", "u",
        "--mutex", "m", "--tag", "a", "--tag", "b", "--field", "box=aspen", "--field", "cpus=4",
    )  # fmt: skip
    (job_id,) = fake.jobs
    assert made.stdout == f"{job_id}\n"
    assert fake.requests_to("POST", "/v1/jobs")[0].body == {
        "job_type": "boot_test", "payload": {"kernel": "6.12"}, "name": "aspen", "queue": "boxes", "priority": "high",
        "scheduled_at": "2030-01-31T09:30:00.000Z", "retry": {"max_attempts": 3}, "timeout": 60, "unique_key": "u",
        "mutex": {"key": "m"}, "tags": ["a", "b"], "fields": {"box": "aspen", "cpus": 4},
    }  # fmt: skip


def test_create_command_sends_dependencies_and_queued_mutex(run: Run, fake: FakeVigil) -> None:
    run(
        "job", "create", "report", "--after", "a", "--after", "b", "--rule", "all_done", "--if", "rows > `0`",
        "--mutex", "m", "--in-line",
    )  # fmt: skip
    assert fake.requests_to("POST", "/v1/jobs")[0].body == {
        "job_type": "report", "depends_on": ["a", "b"], "trigger_rule": "all_done", "condition": "rows > `0`",
        "mutex": {"key": "m", "on_conflict": "queue"},
    }  # fmt: skip


@pytest.mark.parametrize("how", ["@file", "-"])
def test_create_command_reads_the_payload_from_file_or_stdin(
    run: Run, fake: FakeVigil, tmp_path: Path, how: str
) -> None:
    (tmp_path / "file").write_text("[1, 2]")
    shown = json.loads(run("job", "create", "test", "--payload", how, "--json", stdin="[1, 2]").stdout)
    assert shown["payload"] == [1, 2]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--payload", "{"], "--payload is not JSON"),
        (["--payload", '{"a": NaN}'], "--payload is not JSON: NaN"),
        (["--payload", "@nothing"], "No such file"),
        (["--field", "box"], "NAME=VALUE"),
        (["--at", "tomorrow"], "--at takes a time"),
    ],
)
def test_invalid_option_prints_one_error_line(run: Run, fake: FakeVigil, options: list[str], says: str) -> None:
    said = run("job", "create", "test", *options, code=2)
    assert says in said.stderr
    assert len(said.stderr.splitlines()) == 1
    assert fake.jobs == {}


def test_show_and_list_commands_print_jobs(run: Run, client: Vigil) -> None:
    first = client.submit("test", {"n": 1}, name="[bold]", fields={"box": "aspen"}).job_id
    second = client.submit("test").job_id
    client.start(second)
    assert run("job", "status", first).stdout == "pending\n"
    assert json.loads(run("job", "status", second, "--json").stdout) == {"job_id": second, "status": "running"}
    assert run("job", "status", "nobody", code=1).stdout == "not_found\n"
    shown = run("job", "show", first).stdout
    assert all(text in shown for text in (first, "[bold]", '{"box": "aspen"}', '{"n": 1}'))
    assert json.loads(run("job", "show", first, "--json").stdout)["fields"] == {"box": "aspen"}
    listed = run("job", "list", "--status", "pending").stdout
    assert "[bold]" in listed
    assert "running" not in listed
    both = json.loads(run("job", "list", "--limit", "10", "--json").stdout)
    assert [job["job_id"] for job in both] == [second, first]
    assert run("job", "list", "--queue", "empty").stdout == "No jobs.\n"


def test_cancel_retry_and_result_commands_print_the_outcome(run: Run, client: Vigil) -> None:
    job_id = client.submit("test").job_id
    assert run("job", "result", job_id, code=1).stderr.startswith("JOB_NOT_COMPLETED")
    assert run("job", "cancel", job_id).stdout == f"{job_id} is cancelled.\n"
    assert run("job", "result", job_id, code=3).stderr.startswith("CANCELLED")
    assert run("job", "retry", job_id).stdout == f"{job_id} is pending.\n"
    client.start(job_id)
    assert "asked to cancel" in run("job", "cancel", job_id).stdout
    client.complete(job_id, {"passed": 3})
    assert json.loads(run("job", "result", job_id).stdout) == {"passed": 3}
    assert run("job", "retry", job_id, code=1).stderr == "INVALID_TRANSITION: the job is completed\n"


def test_wait_command_exits_by_the_outcome_of_the_jobs(run: Run, client: Vigil) -> None:
    good, bad, late = (client.submit("test").job_id for _ in range(3))
    for job_id in (good, bad, late):
        client.start(job_id)
    client.complete(good)
    client.fail(bad, "BROKEN", "it broke")
    assert run("job", "wait", good).stdout == f"{good} completed\n"
    assert run("job", "wait", good, bad, code=3).stdout == f"{good} completed\n{bad} failed\n"
    assert run("job", "wait", good, late, "--timeout", "0", code=4).stdout.endswith(f"{late} has not ended\n")
    end = threading.Timer(0.2, client.complete, [late])
    end.start()
    answer: Any = json.loads(run("job", "wait", late, "--timeout", "10", "--json").stdout)
    end.join()
    assert answer["status"] == "met"


def test_api_error_prints_one_readable_line(run: Run, fake: FakeVigil) -> None:
    assert run("job", "show", "nobody", code=1).stderr == "JOB_NOT_FOUND: Job with ID nobody not found\n"
    fake.refuse("POST", "/v1/jobs", 422)
    fake.faults[0].body = json.dumps(
        {"error": "VALIDATION_FAILED", "message": "x", "errors": [{"pointer": "/queue", "detail": "is too long"}]}
    )
    assert run("job", "create", "test", code=1).stderr == "VALIDATION_FAILED: /queue: is too long\n"


def test_command_without_configuration_names_the_missing_variable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIGIL_API_URL")
    assert "VIGIL_API_URL" in run("job", "list", code=1).stderr
