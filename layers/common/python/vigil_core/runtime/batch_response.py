"""What a function answers to a batch of stream records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def batch_response(failed: Iterable[str]) -> dict[str, Any]:
    """The records that failed, by their sequence numbers; what comes after the lowest of them is delivered again.

    https://docs.aws.amazon.com/lambda/latest/dg/services-ddb-batchfailurereporting.html
    """
    return {"batchItemFailures": [{"itemIdentifier": sequence_number} for sequence_number in failed]}
