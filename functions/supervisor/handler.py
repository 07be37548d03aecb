"""Does what the states of a run's supervisor ask for, and hears of supervisors that have ended before their time."""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools import Logger

from vigil_core import wiring
from vigil_core.domain.exact_json import loads
from vigil_core.runtime.tracing import ids_in, ids_of, traced
from vigil_core.services.workflows.supervisor import mourn, supervise

logger = Logger()


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """A state's request, or EventBridge's word of an execution."""
    ended = event.get("detail")
    if ended is not None:
        said = {"action": "mourn", "execution": ended["name"], "status": ended["status"]}
    else:
        said = {"action": event["action"], "supervised": event["supervised"], **ids_in(event)}
    with traced(said):
        if ended is not None:
            run = mourn(wiring.context(), loads(ended["input"]), ended["status"])
        else:
            run = supervise(wiring.context(), event)
        said |= {} if run is None else ids_of(run)
        logger.info("done", extra=said)
    return {}
