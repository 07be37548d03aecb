"""Calls the HTTP targets of jobs. Each dispatch invokes it asynchronously, once per attempt."""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools import Logger

from vigil_core import wiring
from vigil_core.runtime.tracing import ids_in, traced
from vigil_core.services.executors.call_http import call_target

logger = Logger()


def handler(event: dict[str, Any], context: object) -> None:
    """Call the target of one job. The log contains neither the request nor the response."""
    with traced({"action": "call", **ids_in(event)}) as log_fields:
        outcome = call_target(wiring.context(), wiring.outbound_http(), wiring.secret_values(), event)
        logger.info("called", extra={**log_fields, "outcome": outcome})
