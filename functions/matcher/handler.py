"""Lambda function `matcher`: process changed jobs and runs from the table's stream."""

from __future__ import annotations

from functools import partial
from typing import Any

from aws_lambda_powertools import Logger, Metrics

from vigil_core import wiring
from vigil_core.runtime.batch_response import batch_response
from vigil_core.runtime.lambda_context import InvokedFunction
from vigil_core.runtime.metrics import count_dead_letters
from vigil_core.services.background.matcher import match_records
from vigil_core.services.background.stream_consumer import StreamConsumer, consume, retry_postponed
from vigil_core.store.stream import stream_records

logger = Logger()
metrics = Metrics(namespace="Vigil")


def handler(event: dict[str, Any], context: InvokedFunction) -> dict[str, Any]:
    """Process a batch of stream records, or the postponed records of one job or run.

    The answer names the records of the stream that must be delivered again.
    """
    consumer = StreamConsumer(
        name="matcher", function_arn=context.invoked_function_arn, dead_letters=wiring.dead_letters
    )
    process = partial(match_records, wiring.context())
    if "postponed" in event:
        report = retry_postponed(wiring.context(), consumer, **event["postponed"], process=process)
    else:
        report = consume(wiring.context(), consumer, stream_records(event), process)
    count_dead_letters(metrics, report.dead_letters)
    logger.info("matched", extra={"action": "match", "records": len(event.get("Records", ())), **report.log_fields()})
    return batch_response(report.failed)
