"""Print the OpenAPI document: `python -m vigil_core.api`."""

from __future__ import annotations

import json

from vigil_core.api.routes import openapi

print(json.dumps(openapi(), indent=2, ensure_ascii=False))  # noqa: T201
