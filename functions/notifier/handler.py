"""Publishes the changes of the table to WebSockets, SNS and webhooks."""

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
    """Publish the events of a batch of stream records. Lambda delivers only the failed records again."""
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
            "enqueued": report.enqueued,
            "failed": len(report.failed),
        },
    )
    for record in records:
        if (error := report.failed.get(record.sequence_number)) is not None:
            logger.error(
                "publishing a change failed; the record is delivered again",
                extra={"action": "notify", "sequence_number": record.sequence_number, "row": record.key},
                exc_info=error,
            )
    return batch_response(report.failed)
