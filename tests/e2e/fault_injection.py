"""Make a deployed function fail.

`Aws.sabotaged` ships this file as a layer and points the function's `Handler` to it, so the function runs as it was
deployed. Nothing else imports this module.
"""

from __future__ import annotations

import json
import random
from typing import Any

import boto3
from botocore.exceptions import ClientError


def one_in_twenty(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Fail for one record in twenty: the function crashes before the record, or its response is lost."""
    records = event["Records"]
    unlucky = next((at for at in range(len(records)) if random.random() < 1 / 20), None)
    if unlucky is None:
        return _own(event, context)
    print(json.dumps({"injected_fault": records[unlucky]["dynamodb"]["SequenceNumber"]}))  # noqa: T201
    match random.choice(["dies before it", "is not heard of it", "is heard of nothing"]):
        case "dies before it":
            _own({"Records": records[:unlucky]}, context)
        case "is not heard of it":
            _own(event, context)
        case _:
            _own(event, context)
            raise RuntimeError("injected-fault after the work")
    return {"batchItemFailures": [{"itemIdentifier": records[unlucky]["dynamodb"]["SequenceNumber"]}]}


def poisoned(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Fail for one record, whatever else is in its batch."""
    if "poison-pill" in json.dumps(event):
        raise RuntimeError("injected-fault by a poisoned record")
    return _own(event, context)


def broken(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Fail for every event."""
    raise RuntimeError("injected-fault")


def ignore_events(_: dict[str, Any], __: object) -> dict[str, Any]:
    """Return success without doing anything."""
    print(json.dumps({"injected_fault": "everything"}))  # noqa: T201
    return {"batchItemFailures": []}


def trespass(event: dict[str, Any], _: object) -> dict[str, str]:
    """Try the AWS calls of the event, `{"name": [service, operation, arguments]}`; return the result of each."""
    answers: dict[str, str] = {}
    for name, (service, operation, arguments) in event.items():
        try:
            getattr(boto3.client(service), operation)(**arguments)
            answers[name] = "allowed"
        except ClientError as error:
            answers[name] = error.response["Error"]["Code"]
    return answers


def _own(event: dict[str, Any], context: object) -> dict[str, Any]:
    from handler import handler  # type: ignore[import-not-found]

    answer: dict[str, Any] = handler(event, context)
    return answer
