"""The JSON Schema of workflow definitions is committed, and accepts the same shapes as the API."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from vigil.workflow import Workflow
from vigil_core.api.workflows.json_schema import workflow_schema
from vigil_core.api.workflows.models import parse_workflow
from vigil_core.domain.errors import ValidationFailed
from vigil_core.domain.exact_json import loads

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "docs/workflow.schema.json"
EXAMPLES = ROOT / "examples/workflows"
ID = "019bf000-0000-7000-8000-000000000001"
VALIDATOR = Draft202012Validator(workflow_schema())


def examples() -> dict[str, Any]:
    """Return the definitions of the examples by file, including the schedule's."""
    found = {}
    for path in sorted([*EXAMPLES.glob("*.yaml"), *EXAMPLES.glob("*.json")]):
        said = Workflow.from_file(path).to_dict()
        found[path.name] = said.get("workflow", said)
    return found


def test_committed_workflow_schema_matches_the_code() -> None:
    Draft202012Validator.check_schema(workflow_schema())
    assert COMMITTED.read_text() == json.dumps(workflow_schema(), indent=2, ensure_ascii=False) + "\n", (
        "run make schema"
    )


@pytest.mark.parametrize("name", examples())
def test_example_workflows_satisfy_schema_and_api(name: str) -> None:
    VALIDATOR.validate(examples()[name])
    _read(examples()[name])


@pytest.mark.parametrize(
    ("definition", "pointer"),
    [
        ({"name": "n"}, "jobs"),
        ({"name": "n", "jobs": []}, "jobs"),
        ({"name": "", "jobs": [{"name": "a"}]}, "name"),
        ({"name": "n", "jobs": [{"name": "a"}], "version": "2"}, "version"),
        ({"name": "n", "jobs": [{"name": "a"}], "failure_policy": "never"}, "failure_policy"),
        ({"name": "n", "jobs": [{"name": "a"}], "unknown": 1}, "unknown"),
        ({"name": "n", "jobs": [{"name": "a", "unknown": 1}]}, "jobs/0/unknown"),
        ({"name": "n", "jobs": [{"name": "a", "depends_on": "b"}]}, "jobs/0/depends_on"),
        ({"name": "n", "jobs": [{"name": "a", "trigger_rule": "some"}]}, "jobs/0/trigger_rule"),
        ({"name": "n", "jobs": [{"name": "a", "start_delay": -1}]}, "jobs/0/start_delay"),
        ({"name": "n", "jobs": [{"name": "a", "retry": {"max_attempts": 0}}]}, "jobs/0/retry"),
    ],
)
def test_definition_rejected_by_the_schema_is_rejected_by_the_api(definition: Any, pointer: str) -> None:
    assert not VALIDATOR.is_valid(definition)
    with pytest.raises(ValidationFailed) as refused:
        _read(definition)
    assert any(problem.pointer.startswith(f"/{pointer}") for problem in refused.value.problems)


def test_null_counts_as_absent_and_whole_and_decimal_numbers_are_valid() -> None:
    definition = {"name": "n", "timeout": None, "jobs": [{"name": "a", "timeout": 2, "retry": {"multiplier": 1.5}}]}
    VALIDATOR.validate(definition)
    _read(definition)


def _read(definition: Any) -> None:
    parse_workflow("demo", loads(json.dumps(definition)), ID, now=datetime.now(UTC), find_types=lambda *_: {})
