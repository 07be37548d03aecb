"""The response of a function to a batch of stream records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def batch_response(failed: Iterable[str]) -> dict[str, Any]:
    """Report the failed records by sequence number; Lambda redelivers the batch from the lowest one.

    https://docs.aws.amazon.com/lambda/latest/dg/services-ddb-batchfailurereporting.html
    """
    return {"batchItemFailures": [{"itemIdentifier": sequence_number} for sequence_number in failed]}
