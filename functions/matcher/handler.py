"""Lambda function `matcher`: process changed jobs and runs from the table's stream."""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools import Logger

from vigil_core import wiring
from vigil_core.runtime.batch_response import batch_response
from vigil_core.services.background.matcher import match_records
from vigil_core.store.stream import stream_records

logger = Logger()


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Process a batch of stream records, and report the failed ones, which the stream delivers again."""
    records = stream_records(event)
    failed = match_records(wiring.context(), records)
    logger.info("matched", extra={"action": "match", "records": len(records), "failed": len(failed)})
    for record in records:
        if (error := failed.get(record.sequence_number)) is not None:
            logger.error(
                "Change could not be processed; the stream delivers it again",
                extra={"action": "match", "sequence_number": record.sequence_number, "row": record.key},
                exc_info=error,
            )
    return batch_response(failed)
