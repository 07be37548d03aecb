"""Lambda function `supervisor`: perform the actions of supervisors, and replace executions that ended too early."""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools import Logger

from vigil_core import wiring
from vigil_core.domain.exact_json import loads
from vigil_core.runtime.tracing import ids_in, ids_of, traced
from vigil_core.services.workflows.supervisor import on_execution_ended, supervise

logger = Logger()


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Process a request of the state machine, or an event of EventBridge about an ended execution."""
    execution = event.get("detail")
    if execution is not None:
        log_fields = {"action": "execution_ended", "execution": execution["name"], "status": execution["status"]}
    else:
        log_fields = {"action": event["action"], "supervisor_id": event["supervisor_id"], **ids_in(event)}
    with traced(log_fields):
        if execution is not None:
            run = on_execution_ended(wiring.context(), loads(execution["input"]), execution["status"])
        else:
            run = supervise(wiring.context(), event)
        log_fields |= {} if run is None else ids_of(run)
        logger.info("done", extra=log_fields)
    return {}
