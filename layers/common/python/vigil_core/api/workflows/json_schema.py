"""Print the JSON Schema of workflow definitions: `python -m vigil_core.api.workflows.json_schema`."""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import models_json_schema

from vigil_core.api.openapi import without_titles
from vigil_core.schemas.workflows import WorkflowBody, WorkflowJob

_REF = "#/$defs/{model}"


def workflow_schema() -> dict[str, Any]:
    """Return the schema of the body of `POST /v1/workflows`.

    A schema cannot check unknown names, cycles and conditions. `POST /v1/workflows/validate` checks them.
    """
    references, generated = models_json_schema(
        [(WorkflowBody, "validation"), (WorkflowJob, "validation")], ref_template=_REF
    )
    definitions = {name: without_titles(definition) for name, definition in sorted(generated["$defs"].items())}
    body = definitions.pop(references[WorkflowBody, "validation"]["$ref"].rsplit("/", 1)[1])
    # The API parses each job separately, so that it can report the problems of all jobs at once.
    body["properties"]["jobs"]["items"] = references[WorkflowJob, "validation"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Vigil workflow",
        **body,
        "$defs": definitions,
    }


if __name__ == "__main__":
    print(json.dumps(workflow_schema(), indent=2, ensure_ascii=False))  # noqa: T201
