"""Run the commands of the README, the pages and the examples as a reader pastes them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import simplejson

from tests.e2e.conftest import ROOT
from tests.e2e.harness import Client, Key
from tests.support import pages
from vigil.local import Stack

loads = partial(simplejson.loads, use_decimal=True)

CURLS = [*filter(None, [shutil.which("curl")]), None]
"""The machine's own curl, or None: then a substitute runs, because `make test` must not need more than make."""


@pytest.fixture(params=CURLS, ids=lambda curl: "curl" if curl else "stand-in")
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Return the environment of a shell with this curl."""
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "curl"
    if request.param:
        program.symlink_to(request.param)
    else:
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/support/curl.py "$@"\n')
        program.chmod(0o755)
    return {"PATH": f"{programs}:{os.defpath}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "no_proxy": "*"}


@pytest.fixture
def here(tmp_path: Path, stack: Stack, key: Key) -> Path:
    """Return a directory with a running stack, like the reader's, in a namespace of the test's own."""
    replace(stack, api_key=key.token, key_id=key.key_id).write(tmp_path / ".local/stack.json")
    return tmp_path


def section(page: str, heading: str) -> str:
    """Return the text below a heading."""
    return page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_ten_line_readme_example_runs_as_pasted(here: Path, environment: dict[str, str]) -> None:
    blocks = pages.session(section((ROOT / "README.md").read_text(), "The API in ten lines"))
    lines = "".join(block.commands for block in blocks).splitlines()
    assert sum("curl " in line for line in lines) == 10
    printed = pages.paste(blocks, here, environment)[-1].splitlines()
    started, booted, waited, status, completed, result, events, listed = map(loads, printed)
    assert [told["status"] for told in (started, booted, status, completed)] == 3 * ["running"] + ["completed"]
    assert waited["status"] == "met"
    assert list(waited["waited_jobs"].values()) == [{"job_stage": "boot", "kernel": "6.12"}]
    assert result["result"] == {"passed": 3, "failed": 0}
    assert [line["event"] for line in events["events"]] == ["created", "started", "updated", "completed"]
    assert [job["job_id"] for job in listed["jobs"]] == [started["job_id"]]


def test_readme_workflow_example_runs_as_pasted(here: Path, client: Client) -> None:
    blocks = pages.session(section((ROOT / "README.md").read_text(), "A workflow in one file"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    (printed,) = pages.paste(blocks, here, {"PATH": path, "no_proxy": "*", "COLUMNS": "200"})
    assert "pipeline is completed" in printed
    assert "transform" in (here / "pipeline.svg").read_text()
    (run,) = client.get("/v1/workflows")["workflows"]
    assert client.get(f"/v1/workflows/{run['workflow_id']}")["result"] == {"ran": "load", "rows": 3}


@pytest.mark.parametrize(
    "name",
    ["docs/waits.md", "docs/jobs.md", "docs/locks.md", "docs/queues.md", "docs/schedules.md", "docs/workflows.md"],
)
def test_shell_examples_of_a_page_print_the_shown_output(name: str, here: Path, environment: dict[str, str]) -> None:
    blocks = pages.session((ROOT / name).read_text())
    assert any(block.answer for block in blocks)
    printed = pages.paste(blocks, here, environment)
    _are_as_shown(blocks, printed, here)


@pytest.mark.parametrize("name", ["docs/client.md", "docs/workers.md"])
def test_python_examples_of_a_page_print_the_shown_output(name: str, here: Path) -> None:
    blocks = pages.python_session((ROOT / name).read_text())
    assert any(block.answer for block in blocks)
    printed = pages.run_python(blocks, here, {"no_proxy": "*"})
    for block, text in zip(blocks, printed, strict=True):
        assert text == (block.answer or ""), block.commands


@pytest.mark.parametrize("name", ["docs/client.md", "docs/workers.md"])
def test_cli_examples_of_a_page_print_the_shown_output(name: str, here: Path) -> None:
    blocks = pages.session((ROOT / name).read_text())
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    printed = pages.paste(blocks, here, {"PATH": path, "no_proxy": "*"})
    _are_as_shown(blocks, printed, here)


@pytest.mark.parametrize(("command", "code"), [("true", 0), ("exit 3", 3)])
def test_command_run_as_job_reports_its_exit_code(
    command: str, code: int, here: Path, environment: dict[str, str], client: Client
) -> None:
    ran = _example("run_as_job.sh", ["nightly", "sh", "-c", command], here, environment)
    assert ran.returncode == code
    job = client.get(f"/v1/jobs/{ran.stderr.strip()}")
    waited = _example("wait_for.sh", [job["job_id"]], here, environment)
    if code == 0:
        assert (job["status"], job["result"]) == ("completed", {"exit_code": 0})
        expected = {"job_stage": "complete", "job_health": "success"}
    else:
        assert (job["status"], job["error"]["code"], job["error"]["message"]) == ("failed", "EXIT_3", "exit code 3")
        expected = {"job_stage": "incomplete", "job_health": "failed"}
    assert waited.returncode == (1 if code else 0)
    assert loads(waited.stdout)["waited_jobs"] == {job["job_id"]: expected}


def test_sigterm_ends_a_command_that_runs_as_a_job(here: Path, environment: dict[str, str], client: Client) -> None:
    script = [str(ROOT / "examples" / "run_as_job.sh"), "nightly", "sh", "-c", "echo started; exec sleep 100"]
    with subprocess.Popen(
        script, cwd=here, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as ran:
        assert ran.stdout
        assert ran.stderr
        job_id = ran.stderr.readline().strip()
        assert ran.stdout.readline() == "started\n"
        ran.terminate()
        assert ran.wait(30) == 143
    job = client.get(f"/v1/jobs/{job_id}")
    assert (job["status"], job["error"]["code"]) == ("failed", "EXIT_143")


def test_waiting_for_an_unknown_job_exits_with_code_2(here: Path, environment: dict[str, str]) -> None:
    waited = _example("wait_for.sh", ["nobody"], here, environment)
    assert waited.returncode == 2
    assert "JOB_NOT_FOUND" in waited.stderr


def _are_as_shown(blocks: list[pages.CommandBlock], printed: list[str], here: Path) -> None:
    for number, block in enumerate(blocks):
        if block.answer is not None:
            shown = pages.shown_answer(block, number, here)
            assert pages.matches_shown(loads(printed[number]), shown), f"{block.commands}\nprints\n{printed[number]}"


def _example(
    name: str, arguments: list[str], here: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "examples" / name), *arguments],
        check=False, cwd=here, env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
