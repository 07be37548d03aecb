"""Does wide work: registers pages of large waits, matches a job that very many wait for."""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools import Logger

from vigil_core import wiring
from vigil_core.domain.exact_json import loads
from vigil_core.runtime.lambda_context import LambdaContext
from vigil_core.runtime.tracing import ids_in, traced
from vigil_core.services.background.fan_out import fan_out

logger = Logger()

LOGGED_FIELDS = ("kind", "chunks", "generation", "page")
"""What of a message stands in the log beside ids, and no row."""
MIN_TIME_LEFT_MS = 30_000
"""With less than this left the work stops where it is, and its message comes again."""


def handler(event: dict[str, Any], context: LambdaContext) -> None:
    """One message at a time, in the order of its group. One that fails or is not finished comes again."""
    for record in event["Records"]:
        message = loads(record["body"])
        fields = message if isinstance(message, dict) else {}
        log_fields = {"action": "wide_work", "message_id": record["messageId"]}
        log_fields |= ids_in(fields) | {name: fields[name] for name in LOGGED_FIELDS if name in fields}
        with traced(log_fields), wiring.queues().retry_soon_on_error(record["receiptHandle"]):
            try:
                finished = fan_out(
                    wiring.context(),
                    message,
                    has_time_left=lambda: context.get_remaining_time_in_millis() > MIN_TIME_LEFT_MS,
                )
            except Exception:
                logger.exception("Wide work failed; it comes again", extra=log_fields)
                raise
            logger.info("worked", extra={**log_fields, "finished": finished})
            if not finished:
                raise TimeoutError("Not finished in time: the message is to come again")
