"""Print the JSON Schema of workflow definitions: `python -m vigil_core.api.workflows.json_schema`."""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import models_json_schema

from vigil_core.api.openapi import without_titles
from vigil_core.api.workflows.models import WorkflowBody, WorkflowJob

_REF = "#/$defs/{model}"


def workflow_schema() -> dict[str, Any]:
    """The schema of what `POST /v1/workflows` takes. It says nothing of names that do not exist, of circles and of
    conditions: `POST /v1/workflows/validate` does."""
    references, generated = models_json_schema(
        [(WorkflowBody, "validation"), (WorkflowJob, "validation")], ref_template=_REF
    )
    definitions = {name: without_titles(definition) for name, definition in sorted(generated["$defs"].items())}
    body = definitions.pop(references[WorkflowBody, "validation"]["$ref"].rsplit("/", 1)[1])
    # The API reads each job for itself, so that it can say everything that is wrong with all of them.
    body["properties"]["jobs"]["items"] = references[WorkflowJob, "validation"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Vigil workflow",
        **body,
        "$defs": definitions,
    }


if __name__ == "__main__":
    print(json.dumps(workflow_schema(), indent=2, ensure_ascii=False))  # noqa: T201
