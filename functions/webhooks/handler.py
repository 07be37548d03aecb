"""Tells webhooks: posts what is to be delivered to the addresses that users named."""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools import Logger

from vigil_core import wiring
from vigil_core.domain.exact_json import loads
from vigil_core.services.webhooks.deliver import attempt_delivery

logger = Logger()


def handler(event: dict[str, Any], _: object) -> dict[str, Any]:
    """All messages of a batch at once. A receiver that does not take one is no failure: its row says when to go on."""
    context, http_client = wiring.context(), wiring.outbound_http()

    def process(record: dict[str, Any]) -> str | None:
        log_fields = {"action": "webhook", "message_id": record["messageId"]}
        try:
            message = loads(record["body"])
            if isinstance(message, dict):
                log_fields |= {name: message.get(name) for name in ("namespace", "webhook", "delivery", "try")}
            logger.info("told", extra={**log_fields, "came": attempt_delivery(context, http_client, message)})
        except Exception:
            logger.exception("A delivery failed; it comes again", extra=log_fields)
            return str(record["messageId"])
        return None

    failed = [message_id for message_id in context.in_parallel(process, event["Records"]) if message_id]
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}
