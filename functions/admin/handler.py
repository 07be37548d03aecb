"""Serves operators, who invoke it with AWS credentials: keys, dead letters, what is stuck."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from vigil_core.wiring import admin, now

logger = Logger()


def handler(event: object, context: LambdaContext) -> dict[str, Any]:
    """One answer to each request. CloudTrail knows who asked."""
    deadline = now() + timedelta(milliseconds=context.get_remaining_time_in_millis())
    answer = admin().handle(event, deadline)
    requested_action = event.get("action") if isinstance(event, dict) else None
    logger.info("refused" if "error" in answer else "done", extra={"action": "admin", "asked": requested_action})
    return answer
