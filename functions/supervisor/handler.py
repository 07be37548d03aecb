"""Does what the states of a run's supervisor ask for, and hears of supervisors that have ended before their time."""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools import Logger

from vigil_core import wiring
from vigil_core.domain.jsontext import loads
from vigil_core.services.supervise import mourn, supervise

logger = Logger()


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """A state's request, or EventBridge's word of an execution."""
    if "detail" in event:
        ended = event["detail"]
        mourn(wiring.context(), loads(ended["input"]), ended["status"])
        told = {"action": "mourn", "execution": ended["name"], "status": ended["status"]}
    else:
        supervise(wiring.context(), event)
        told = {name: event[name] for name in ("action", "namespace", "workflow_id", "supervised")}
    logger.info("done", extra=told)
    return {}
