"""The JSON Schema of workflow definitions: committed, and of one mind with the API about shapes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from vigil.workflow import Workflow
from vigil_core.api.workflows.json_schema import schema
from vigil_core.api.workflows.models import run_of_body
from vigil_core.domain.errors import ValidationFailed
from vigil_core.domain.exact_json import loads

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "docs/workflow.schema.json"
EXAMPLES = ROOT / "examples/workflows"
ID = "019bf000-0000-7000-8000-000000000001"
VALIDATOR = Draft202012Validator(schema())


def examples() -> dict[str, Any]:
    """By their files, the definitions of the examples; that of the schedule too."""
    found = {}
    for path in sorted([*EXAMPLES.glob("*.yaml"), *EXAMPLES.glob("*.json")]):
        said = Workflow.from_file(path).to_dict()
        found[path.name] = said.get("workflow", said)
    return found


def test_the_committed_schema_is_that_of_the_code() -> None:
    Draft202012Validator.check_schema(schema())
    assert COMMITTED.read_text() == json.dumps(schema(), indent=2, ensure_ascii=False) + "\n", "run make schema"


@pytest.mark.parametrize("name", examples())
def test_the_examples_are_valid(name: str) -> None:
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
def test_what_the_schema_refuses_the_api_refuses(definition: Any, pointer: str) -> None:
    assert not VALIDATOR.is_valid(definition)
    with pytest.raises(ValidationFailed) as refused:
        _read(definition)
    assert any(problem.pointer.startswith(f"/{pointer}") for problem in refused.value.problems)


def test_nulls_are_absent_and_numbers_are_numbers() -> None:
    definition = {"name": "n", "timeout": None, "jobs": [{"name": "a", "timeout": 2, "retry": {"multiplier": 1.5}}]}
    VALIDATOR.validate(definition)
    _read(definition)


def _read(definition: Any) -> None:
    run_of_body("demo", loads(json.dumps(definition)), ID, now=datetime.now(UTC), find_types=lambda *_: {})
