"""No command prints a character that a terminal executes, whatever the API returns."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text

import vigil
from tests.support.fake_vigil import FakeVigil
from tests.support.scalars import HOSTILE_TEXTS
from tests.unit.client.conftest import Run
from vigil.cli.terminal import Console, LogFormatter, escape, escape_json
from vigil.client import Vigil
from vigil_core.domain.text_rule import printable

HOSTILE = "".join(HOSTILE_TEXTS).replace("\ud800", "").replace("\udfff", "").replace("x" * 5_000, "")
KEPT = ("status", "name_of_status", "method")
DEFINITION = {"name": "odd", "jobs": [{"name": "a"}, {"name": "b", "depends_on": ["a"]}]}


def poisoned(value: Any, text: str = HOSTILE) -> Any:
    """Append a hostile text to every text of a document, except to ids, times and statuses."""
    if isinstance(value, dict):
        kept = {name: name in KEPT or name.endswith(("_id", "_at")) or name == "at" for name in value}
        return {name: item if kept[name] else poisoned(item, text) for name, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item, text) for item in value]
    return f"{value}{text}" if isinstance(value, str) else value


def assert_harmless(output: str) -> None:
    for line in output.splitlines():
        assert printable(line, keep="\t") == line, ascii(line)


@pytest.fixture
def job_id(fake: FakeVigil, client: Vigil) -> str:
    job_id = client.submit("test", {"a": HOSTILE}, name="n", fields={"f": "v"}, tags=["t"]).job_id
    shown = fake.jobs[job_id].shown
    error = {"code": "C", "message": "m", "traceback": "File"}
    shown |= poisoned({**shown, "message": "m", "job_stage": "boot", "error": error, "verdict": {"reason": "r"}})
    return job_id


@pytest.fixture
def workflow_id(fake: FakeVigil, client: Vigil) -> str:
    run = client.create_workflow(DEFINITION)
    shown = fake.runs[run["workflow_id"]]
    shown["jobs"][0] |= {"status": "failed", "error": {"code": "BROKEN", "message": "it broke"}}
    shown["jobs"][1] |= {"status": "running", "verdict": {"reason": "because"}}
    shown |= poisoned({**shown, "error": {"code": "X", "message": "m"}, "undecided": ["a"]})
    return str(run["workflow_id"])


@pytest.mark.parametrize("command", ["job show", "job show --json", "job list", "job list --json", "job status"])
def test_commands_for_jobs_print_only_printable_characters(run: Run, job_id: str, command: str) -> None:
    output = run(*command.split(), *([] if "list" in command else [job_id])).output
    assert_harmless(output)
    if "--json" in command:
        shown = json.loads(output)
        assert (shown[0] if isinstance(shown, list) else shown)["name"] == f"n{HOSTILE}"


@pytest.mark.parametrize("command", ["show", "show --json", "status", "status --json", "graph", "graph --format json"])
def test_commands_for_runs_print_only_printable_characters(run: Run, workflow_id: str, command: str) -> None:
    assert_harmless(run("workflow", *command.split(), workflow_id).output)


def test_error_of_the_api_is_printed_without_escape_sequences(run: Run, fake: FakeVigil) -> None:
    body = json.dumps({"error": "X", "message": f"no {HOSTILE}", "status": 422})
    fake.refuse("GET", "/v1/jobs/x", 422)
    fake.faults[-1].body = body
    assert_harmless(run("job", "show", "x", code=1).output)


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=lambda text: ascii(text)[:12])
@pytest.mark.parametrize("colors", [True, False])
def test_console_prints_only_its_own_styles(text: str, colors: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=colors, width=60)
    table = Table("[red]x[/]", escape(text))
    table.add_row(text.replace("[", "\\["), Text(text), style="green")
    console.print(table, Text(text), escape(text), repr(text))
    console.print(text, markup=False, soft_wrap=True)
    console.print(text, markup=False)
    output = file.getvalue()
    if colors:
        output = re.sub("\x1b\\[[0-9;]*m", "", output)
    assert_harmless(output)


def test_log_lines_and_tracebacks_are_printable() -> None:
    def fail() -> None:
        raise ValueError(HOSTILE)

    with pytest.raises(ValueError, match=HOSTILE[:3]) as caught:
        fail()
    error = caught.value
    record = logging.LogRecord(
        "x", logging.INFO, "f", 1, "job %s", (HOSTILE,), (type(error), error, error.__traceback__)
    )
    assert_harmless(LogFormatter("%(message)s").format(record))


@pytest.mark.parametrize("text", HOSTILE_TEXTS, ids=lambda text: ascii(text)[:12])
def test_json_keeps_every_character_as_an_escape(text: str) -> None:
    written = escape_json(json.dumps([text], ensure_ascii=False))
    assert json.loads(written) == [text]
    assert_harmless(written)


def test_only_one_module_writes_to_the_terminal() -> None:
    package = Path(vigil.__file__).parent
    for path in package.rglob("*.py"):
        if path == package / "cli" / "terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(package)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom) and node.module in ("rich.console", "rich.markup", "rich"):
                assert not {"Console", "escape", "print"} & {alias.name for alias in node.names}, where
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "typer":
                assert node.attr not in ("echo", "secho", "style"), where
