"""Tells WebSockets and SNS of what has happened, and has webhooks told."""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools import Logger, Metrics

from vigil_core.runtime.batch_response import batch_response
from vigil_core.runtime.metrics import count_events
from vigil_core.runtime.settings import NotifierSettings
from vigil_core.services.events.publish import notify
from vigil_core.store.stream import stream_records
from vigil_core.wiring import context, sns_topic, web_sockets

logger = Logger()
metrics = Metrics(namespace="Vigil")


def handler(event: dict[str, Any], _: object) -> dict[str, Any]:
    """Failed records come again; the others of the batch are told."""
    records = stream_records(event)
    all_changes = NotifierSettings.from_environment().all_changes
    report = notify(context(), web_sockets(), sns_topic(), records, all_changes=all_changes)
    count_events(metrics, report.by_type)
    logger.info(
        "notified",
        extra={
            "action": "notify",
            "records": len(records),
            "events": report.events,
            "messages": report.messages,
            "published": report.published,
            "handed_over": report.enqueued,
            "failed": len(report.failed),
        },
    )
    for record in records:
        if (error := report.failed.get(record.sequence_number)) is not None:
            logger.error(
                "A change could not be told; it will be delivered again",
                extra={"action": "notify", "sequence_number": record.sequence_number, "row": record.key},
                exc_info=error,
            )
    return batch_response(report.failed)
