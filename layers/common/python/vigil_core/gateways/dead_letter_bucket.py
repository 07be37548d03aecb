"""The S3 bucket with the stream records that a consumer could not process."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An object of the bucket, without its content."""

    key: str
    stored_at: datetime


class DeadLetterBucket:
    """The bucket of dead letters; each object is one batch of stream records."""

    def __init__(self, client: S3Client, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def list(self) -> list[StoredObject]:
        """List all objects, oldest first."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket)
        objects = [
            StoredObject(key=item["Key"], stored_at=item["LastModified"])
            for page in pages
            for item in page.get("Contents", [])
        ]
        return sorted(objects, key=lambda item: (item.stored_at, item.key))

    def put(self, key: str, body: bytes) -> None:
        """Store an object, or replace it."""
        self._client.put_object(Bucket=self._bucket, Key=key, Body=body, ContentType="application/json")

    def read(self, key: str) -> bytes:
        """Read the bytes of an object."""
        return self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()

    def remove(self, key: str) -> None:
        """Delete an object."""
        self._client.delete_object(Bucket=self._bucket, Key=key)
