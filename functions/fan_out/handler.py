"""Does wide work: registers pages of large waits, matches a job that very many wait for."""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools import Logger

from vigil_core import wiring
from vigil_core.domain.exact_json import loads
from vigil_core.runtime.lambda_context import LambdaContext
from vigil_core.runtime.tracing import ids_in, traced
from vigil_core.services.background.fan_out import do_wide_work

logger = Logger()

NAMED = ("kind", "chunks", "generation", "page")
"""What of a message stands in the log beside ids, and no row."""
TIME_TO_STOP_MS = 30_000
"""With less than this left the work stops where it is, and its message comes again."""


def handler(event: dict[str, Any], context: LambdaContext) -> None:
    """One message at a time, in the order of its group. One that fails or is not finished comes again."""
    for record in event["Records"]:
        message = loads(record["body"])
        told = message if isinstance(message, dict) else {}
        which = {"action": "wide_work", "message_id": record["messageId"]}
        which |= ids_in(told) | {name: told[name] for name in NAMED if name in told}
        with traced(which), wiring.queues().working_on(record["receiptHandle"]):
            try:
                done = do_wide_work(
                    wiring.context(),
                    message,
                    still_time=lambda: context.get_remaining_time_in_millis() > TIME_TO_STOP_MS,
                )
            except Exception:
                logger.exception("Wide work failed; it comes again", extra=which)
                raise
            logger.info("worked", extra={**which, "finished": done})
            if not done:
                raise TimeoutError("Not finished in time: the message is to come again")
