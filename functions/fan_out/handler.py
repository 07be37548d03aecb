"""Lambda function `fan_out`: do bulk work for large waits, batches and runs, one message at a time."""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools import Logger

from vigil_core import wiring
from vigil_core.domain.exact_json import loads
from vigil_core.runtime.lambda_context import LambdaContext
from vigil_core.runtime.tracing import ids_in, traced
from vigil_core.services.background.fan_out import fan_out

logger = Logger()

LOGGED_FIELDS = ("kind", "blocks", "generation", "page")
"""The members of a message that the log shows, in addition to ids. Rows are not logged."""
MIN_TIME_LEFT_MS = 30_000
"""With less time left, the work stops, and its message is delivered again."""


def handler(event: dict[str, Any], context: LambdaContext) -> None:
    """Process messages in the order of their group. A message that fails or is not finished is delivered again."""
    for record in event["Records"]:
        message = loads(record["body"])
        fields = message if isinstance(message, dict) else {}
        log_fields = {"action": "fan_out", "message_id": record["messageId"]}
        log_fields |= ids_in(fields) | {name: fields[name] for name in LOGGED_FIELDS if name in fields}
        with traced(log_fields), wiring.queues().retry_soon_on_error(record["receiptHandle"]):
            try:
                finished = fan_out(
                    wiring.context(),
                    message,
                    has_time_left=lambda: context.get_remaining_time_in_millis() > MIN_TIME_LEFT_MS,
                    sockets=wiring.web_sockets,
                )
            except Exception:
                logger.exception("Bulk work failed; the message is delivered again", extra=log_fields)
                raise
            logger.info("processed", extra={**log_fields, "finished": finished})
            if not finished:
                raise TimeoutError("Bulk work is not finished in time; the message is delivered again")
