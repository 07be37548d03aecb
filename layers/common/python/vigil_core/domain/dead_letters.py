"""Dead letters of the stream: objects in a bucket, one for a batch of records that could not be processed.

AWS Lambda stores a batch that failed too often. A consumer stores a record that it cannot process, in the same format.

https://docs.aws.amazon.com/lambda/latest/dg/services-dynamodb-errors.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import simplejson

from vigil_core.domain.errors import MalformedRequest, VigilError
from vigil_core.domain.exact_json import JsonValue, dumps, loads


class InvalidDeadLetter(VigilError):
    """An object in the bucket does not have the format that Lambda writes."""

    code = "INVALID_DEAD_LETTER"


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A failed batch: its function, the reason of the failure (`condition`), and the event as JSON text."""

    function_arn: str
    condition: str
    records: int
    event: str

    def is_for(self, function_arn: str) -> bool:
        """Return True if the batch belongs to a function, in any of its versions."""
        return self.function_arn == function_arn or self.function_arn.startswith(f"{function_arn}:")


def dead_letter_body(function_arn: str, condition: str, record: Mapping[str, object], *, error: str) -> bytes:
    """Build the object for one stream record, in the format of Lambda, with the name of the error.

    The text is ASCII, because a record may contain what UTF-8 cannot encode.
    """
    document = {
        "requestContext": {"functionArn": function_arn, "condition": condition},
        "error": error,
        "payload": simplejson.dumps({"Records": [record]}, use_decimal=True, ensure_ascii=True),
    }
    return simplejson.dumps(document, ensure_ascii=True).encode()


def dead_letter_key(consumer: str, sequence_number: str) -> str:
    """Return the name of the object for one stream record. A record that is stored twice has one object."""
    return f"vigil/{consumer}/{sequence_number}"


def parse_dead_letter(body: bytes) -> DeadLetter:
    """Parse an object of the bucket. Its `payload` is the event, as an object or as text.

    Raises:
        InvalidDeadLetter: The object does not have the format that Lambda writes.
    """
    try:
        document = _require_object(loads(body), "the object")
        context = _require_object(document.get("requestContext"), "requestContext")
        payload = document.get("payload")
        event = _require_object(loads(payload) if isinstance(payload, str) else payload, "payload")
    except MalformedRequest as error:
        raise InvalidDeadLetter("it is not valid JSON") from error
    function_arn, records = context.get("functionArn"), event.get("Records")
    if not isinstance(function_arn, str) or not isinstance(records, list):
        raise InvalidDeadLetter("it has no function ARN or no records")
    condition = str(context.get("condition", "unknown"))
    return DeadLetter(function_arn=function_arn, condition=condition, records=len(records), event=dumps(event))


def _require_object(value: JsonValue, label: str) -> Mapping[str, JsonValue]:
    if not isinstance(value, Mapping):
        raise InvalidDeadLetter(f"{label} is not a JSON object")
    return value
