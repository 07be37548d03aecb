"""A stream consumer that stores each record under its partition key in another table, and fails as the record asks."""

import os
import time
from typing import Any

import boto3

table = boto3.resource("dynamodb").Table(os.environ["SEEN_TABLE"])


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Return a partial batch response. Records with `poison` always fail, records with `fragile` fail once."""
    failures = []
    for record in event["Records"]:
        image, sequence = record["dynamodb"]["NewImage"], record["dynamodb"]["SequenceNumber"]
        seen = table.update_item(
            Key={"pk": image["pk"]["S"], "sk": image["sk"]["S"]},
            UpdateExpression="SET #at = :now, batch_size = :size ADD times :one",
            ExpressionAttributeNames={"#at": "at"},
            ExpressionAttributeValues={
                ":now": str(time.time()),
                ":one": 1,
                ":size": len(event["Records"]),
            },
            ReturnValues="ALL_NEW",
        )["Attributes"]
        if "poison" in image or ("fragile" in image and seen["times"] == 1):
            failures.append({"itemIdentifier": sequence})
            break
    print(f"{len(event['Records'])} records, {len(failures)} failed")  # noqa: T201
    return {"batchItemFailures": failures}
