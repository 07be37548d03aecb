"""Lambda function `sweeper`: process what is due, on timers and messages, and sweep every minute."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from aws_lambda_powertools import Logger

from vigil_core import wiring
from vigil_core.domain.exact_json import loads
from vigil_core.runtime.lambda_context import LambdaContext
from vigil_core.services.background.sweeper import is_sweep, on_message, on_timer, start_sweep

logger = Logger()


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Fire a schedule, start the sweep of all partitions, or process messages and report the failed ones.

    Sweeps are processed last, because they take long.
    """
    if "timer" in event:
        on_timer(wiring.context(), event["timer"])
        logger.info("schedule_fired", extra={"action": "fire_schedule", **event["timer"]})
        return {}
    if "Records" not in event:
        start_sweep(wiring.context())
        logger.info("sweep started", extra={"action": "start_sweep"})
        return {}
    failed: list[str] = []
    for record in sorted(event["Records"], key=lambda record: is_sweep(loads(record["body"]))):
        try:
            time_left = timedelta(milliseconds=context.get_remaining_time_in_millis())
            processed = on_message(wiring.context(), loads(record["body"]), time_left=time_left)
            logger.info("done", extra={"action": "sweeper", "message_id": record["messageId"], "due_rows": processed})
        except Exception:
            logger.exception(
                "Due row failed; its message is delivered again", extra={"message_id": record["messageId"]}
            )
            failed.append(record["messageId"])
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}
