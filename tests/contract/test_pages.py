"""The pages match the code where a machine can check it, and their links work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from tests.support.pages import matches_shown, python_session, session
from tests.support.template import template
from vigil_core.api.problems import HTTP_STATUS
from vigil_core.api.routes import OPERATIONS
from vigil_core.domain.jobs.job import BUILT_IN_NAMES
from vigil_core.domain.jobs.stages import DEFAULT_STAGES
from vigil_core.domain.jobs.status import STATUSES
from vigil_core.domain.jobs.trigger_rules import TriggerRule
from vigil_core.domain.schedules import FireOutcome
from vigil_core.domain.waits.request import MAX_EXPIRES_S
from vigil_core.domain.waits.wait import UnmetReason, WaitStatus
from vigil_core.domain.workflows.run_state import FailurePolicy
from vigil_core.domain.workflows.validation import MAX_CONDITION_CHARS, MAX_EDGES, MAX_JOBS
from vigil_core.schemas.workflows import WorkflowBody, WorkflowJob

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def page(name: str) -> str:
    """Return a page of docs/."""
    return (ROOT / "docs" / name).read_text()


def rows(text: str, header: str) -> list[list[str]]:
    """Return the rows of the table with this header, cell by cell, without the backticks of code."""
    _, _, below = text.partition(f"\n| {header} |")
    lines = below.splitlines()[2:]
    table = lines[: next((n for n, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def names(text: str, header: str) -> list[str]:
    """Return every code in the first column of that table."""
    return [name for row in rows(text, header) for name in re.findall("`([^`]+)`", row[0])]


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_anchors_of_a_page_resolve(path: Path) -> None:
    for link in LINK.findall(path.read_text()):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        there = (path.parent / target).resolve() if target else path
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link


def test_docs_index_links_every_page() -> None:
    listed = {(ROOT / "docs" / link.partition("#")[0]).resolve() for link in LINK.findall(page("README.md"))}
    assert {path for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"} <= listed


def test_errors_page_lists_every_error_with_its_status() -> None:
    told = {row[0].strip("`"): int(row[1]) for row in rows(page("errors.md"), "code")}
    assert told == {error.code: status for error, status in HTTP_STATUS.items()}


def test_waits_page_lists_every_status_reason_and_built_in() -> None:
    text = page("waits.md")
    assert names(text, "status") == list(get_args(WaitStatus))
    assert sorted(names(text, "reason")) == sorted(get_args(UnmetReason))
    built_ins = text.partition("Built-ins are ")[2].partition(".")[0]
    assert set(re.findall("`([^`]+)`", built_ins)) == BUILT_IN_NAMES
    assert f"{MAX_EXPIRES_S:,}" in text


def test_workflows_page_lists_every_field_and_route() -> None:
    text = page("workflows.md")
    assert sorted(names(text, "part of a workflow")) == sorted(WorkflowBody.model_fields)
    assert sorted(names(text, "part of a job")) == sorted(WorkflowJob.model_fields)
    assert names(text, "rule") == list(get_args(TriggerRule))
    assert names(text, "policy") == list(get_args(FailurePolicy))
    limits = {row[0]: row[1] for row in rows(text, "of a run")}
    assert limits["jobs"] == f"{MAX_JOBS:,}"
    assert limits["dependencies, all together"] == f"{MAX_EDGES:,}"
    assert limits["conditions, all different ones together"].startswith(f"{MAX_CONDITION_CHARS:,} ")
    asked = {(operation.method, operation.path) for operation in OPERATIONS if "/workflows" in operation.path}
    told = set(re.findall(r"`?(GET|POST) (/v1/workflows[^`?\s]*)", text.replace("{id}", "{workflow_id}")))
    assert told == asked


def test_schedules_page_lists_every_fire_outcome() -> None:
    assert names(page("schedules.md"), "outcome") == list(get_args(FireOutcome))


def test_jobs_page_lists_every_status_and_stage() -> None:
    text = page("jobs.md")
    for status in STATUSES:
        assert re.search(rf"^(\*\*{status}\*\*: |.*\*{status}\*)", text, re.MULTILINE), status
    order = text.partition("A stage is a position in an order: ")[2].partition(".")[0]
    assert re.findall("`([^`]+)`", order) == list(DEFAULT_STAGES)


def test_deploy_page_lists_every_template_parameter_with_its_default() -> None:
    defaults = {name: parameter["Default"] for name, parameter in template()["Parameters"].items()}
    text = page("deploy.md")
    assert sorted(names(text, "parameter")) == sorted(defaults)
    for row in rows(text, "parameter"):
        for name, default in zip(re.findall("`([^`]+)`", row[0]), row[1].split(", "), strict=True):
            assert default.strip("`") == str(defaults[name] or ("empty" if defaults[name] == "" else 0)), name


def test_adr_index_lists_every_decision_record() -> None:
    listed = {row[1].partition("](")[2].rstrip(")") for row in rows(page("adr/README.md"), "no.")}
    assert listed == {path.name for path in (ROOT / "docs/adr").glob("0*.md")}


def test_ellipsis_in_a_documented_response_matches_any_value() -> None:
    """Return the validator for the examples on the pages."""
    assert matches_shown({"a": 1, "b": [{"c": "x"}]}, {"a": 1, "b": [{"c": "…"}]})
    assert matches_shown({"a": 1, "b": 2}, {"a": 1, "…": "…"})
    assert not matches_shown({"a": 1, "b": 2}, {"a": 1})
    assert not matches_shown({"a": 1}, {"a": 1, "b": "…"})
    assert not matches_shown({"a": [1, 2]}, {"a": [1]})
    assert not matches_shown({"a": 1}, {"a": 2, "…": "…"})


def test_code_blocks_of_a_page_are_parsed_into_commands_and_outputs() -> None:
    text = "```sh\nA=1\n```\ntext\n```sh\necho 1\n```\n\n```json\n1\n```\n\n```console\n$ no\n```\n"
    assert [(block.commands, block.answer) for block in session(text)] == [("A=1\n", None), ("echo 1\n", "1\n")]
    text = "```python\nx = 1\n```\n```python\nprint(x)\n```\n\n```text\n1\n```\n```sh\nno\n```\n"
    assert [(run.commands, run.answer) for run in python_session(text)] == [("x = 1\n", None), ("print(x)\n", "1\n")]
