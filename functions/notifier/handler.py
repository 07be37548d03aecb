"""Publishes the changes of the table to WebSockets, SNS and webhooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aws_lambda_powertools import Logger, Metrics

from vigil_core.runtime.batch_response import batch_response
from vigil_core.runtime.lambda_context import InvokedFunction
from vigil_core.runtime.metrics import count_dead_letters, count_events
from vigil_core.runtime.settings import NotifierSettings
from vigil_core.services.background.stream_consumer import StreamConsumer, consume, retry_postponed
from vigil_core.services.events.publish import notify
from vigil_core.store.stream import StreamRecord, stream_records
from vigil_core.wiring import context, dead_letters, sns_topic, web_sockets

logger = Logger()
metrics = Metrics(namespace="Vigil")


def handler(event: dict[str, Any], function: InvokedFunction) -> dict[str, Any]:
    """Publish the events of a batch of stream records, or of the postponed records of one job, run or wait.

    The answer names the records of the stream that must be delivered again.
    """
    consumer = StreamConsumer(name="notifier", function_arn=function.invoked_function_arn, dead_letters=dead_letters)
    if "postponed" in event:
        report = retry_postponed(context(), consumer, **event["postponed"], process=_notify)
    else:
        report = consume(context(), consumer, stream_records(event), _notify)
    count_dead_letters(metrics, report.dead_letters)
    return batch_response(report.failed)


def _notify(records: Sequence[StreamRecord], *, is_retry: bool) -> Mapping[str, Exception]:
    all_changes = NotifierSettings.from_environment().all_changes
    report = notify(context(), web_sockets(), sns_topic(), records, all_changes=all_changes, is_retry=is_retry)
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
    return report.failed
