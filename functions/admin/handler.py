"""Lambda function `admin`: API keys, dead letters and the doctor, for operators with AWS credentials."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from vigil_core.wiring import admin, now

logger = Logger()


def handler(event: object, context: LambdaContext) -> dict[str, Any]:
    """Run one action. CloudTrail records the identity of the operator."""
    deadline = now() + timedelta(milliseconds=context.get_remaining_time_in_millis())
    response = admin().handle(event, deadline)
    requested_action = event.get("action") if isinstance(event, dict) else None
    logger.info("refused" if "error" in response else "done", extra={"action": "admin", "requested": requested_action})
    return response
