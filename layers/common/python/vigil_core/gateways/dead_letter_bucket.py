"""The bucket that keeps the stream records that a consumer gave up on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An object, unread."""

    key: str
    stored_at: datetime


class DeadLetterBucket:
    """Each object is one batch."""

    def __init__(self, client: S3Client, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    def list(self) -> list[StoredObject]:
        """Every object, oldest first."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket)
        objects = [
            StoredObject(key=item["Key"], stored_at=item["LastModified"])
            for page in pages
            for item in page.get("Contents", [])
        ]
        return sorted(objects, key=lambda item: (item.stored_at, item.key))

    def read(self, key: str) -> bytes:
        """An object's bytes."""
        return self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()

    def remove(self, key: str) -> None:
        """Forget an object."""
        self._client.delete_object(Bucket=self._bucket, Key=key)
