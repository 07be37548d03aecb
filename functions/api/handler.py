"""Lambda function `api`: serves every HTTP route."""

from __future__ import annotations

from typing import Any

from vigil_core.runtime.lambda_context import LambdaContext
from vigil_core.wiring import http_api


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer one request."""
    return http_api().handle(event, context)
