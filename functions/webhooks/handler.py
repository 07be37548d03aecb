"""Attempts webhook deliveries: sends events to the URLs that users named."""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools import Logger

from vigil_core import wiring
from vigil_core.domain.exact_json import loads
from vigil_core.services.webhooks.deliver import attempt_delivery
from vigil_core.services.webhooks.slow_receivers import InvocationSlots, KnownReceivers

logger = Logger()
known_receivers = KnownReceivers()


def handler(event: dict[str, Any], _: object) -> dict[str, Any]:
    """Attempt the deliveries of a batch in parallel.

    A refused or failed request is not a failure of the message: the row of the delivery contains the time of the retry.
    """
    context, http_client = wiring.context(), wiring.outbound_http()
    slots = InvocationSlots(context, known_receivers)

    def process(record: dict[str, Any]) -> str | None:
        log_fields = {"action": "webhook", "message_id": record["messageId"]}
        try:
            message = loads(record["body"])
            if isinstance(message, dict):
                log_fields |= {name: message.get(name) for name in ("namespace", "webhook", "delivery", "try")}
            outcome = attempt_delivery(context, http_client, message, slots)
            logger.info("delivery attempted", extra={**log_fields, "outcome": outcome})
        except Exception:
            logger.exception("the attempt failed; the message is delivered again", extra=log_fields)
            return str(record["messageId"])
        return None

    try:
        failed = [message_id for message_id in context.in_parallel(process, event["Records"]) if message_id]
    finally:
        slots.release()
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}
