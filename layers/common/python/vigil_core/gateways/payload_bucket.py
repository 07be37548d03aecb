"""The S3 bucket for payloads and results that are too large for a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

RetentionClass: TypeAlias = Literal["open", "ended", "long"]

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

URL_TTL_S = 3_600
_TAGS: Mapping[RetentionClass, Mapping[str, str]] = {
    "open": {"Tagging": "retention=open"},
    "ended": {"Tagging": "retention=ended"},
    "long": {},
}
"""The tag by which the lifecycle rules of the bucket select an object."""
_TYPE = "application/json"
_MAX_DELETE_KEYS = 1_000
"""DeleteObjects accepts at most a thousand keys."""


class PayloadBucket:
    """Immutable objects, which the lifecycle rules of the bucket expire by retention class.

    The client is created with the first call, because most requests need no object.
    """

    def __init__(self, client: Callable[[], S3Client], bucket: str | None) -> None:
        self._client = client
        self._bucket = bucket or ""

    def put(self, key: str, text: str, *, retention_class: RetentionClass) -> None:
        """Store an object."""
        request: Any = {
            "Bucket": self._bucket,
            "Key": key,
            "Body": text.encode(),
            "ContentType": _TYPE,
            **_TAGS[retention_class],
        }
        self._client().put_object(**request)

    def get(self, key: str) -> str | None:
        """Read the text of an object; return None if it does not exist."""
        client = self._client()
        try:
            return client.get_object(Bucket=self._bucket, Key=key)["Body"].read().decode()
        except client.exceptions.NoSuchKey:
            return None

    def renew(self, key: str, *, retention_class: RetentionClass, source: str | None = None) -> None:
        """Reset the age of an object by copying it onto itself, or create it as a copy of `source`.

        An operator may have removed the object: a renewal ignores that. A missing `source` is an error.
        """
        client = self._client()
        request: Any = {
            "Bucket": self._bucket,
            "Key": key,
            "CopySource": {"Bucket": self._bucket, "Key": source or key},
            "ContentType": _TYPE,
            "MetadataDirective": "REPLACE",
            "TaggingDirective": "REPLACE",
            **_TAGS[retention_class],
        }
        try:
            client.copy_object(**request)
        except client.exceptions.ClientError as error:
            if source is not None or error.response["Error"]["Code"] != "NoSuchKey":
                raise

    def remove(self, keys: Sequence[str]) -> None:
        """Delete objects."""
        for start in range(0, len(keys), _MAX_DELETE_KEYS):
            objects = [{"Key": key} for key in keys[start : start + _MAX_DELETE_KEYS]]
            self._client().delete_objects(Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True})  # type: ignore[typeddict-item]

    def names(self, prefix: str) -> list[str]:
        """Return the names of the first objects with a prefix, up to 1,000."""
        response = self._client().list_objects_v2(Bucket=self._bucket, Prefix=prefix)
        return [item["Key"] for item in response.get("Contents", [])]

    def url(self, key: str) -> str:
        """Return a signed URL from which the object can be read for an hour."""
        return self._client().generate_presigned_url(
            "get_object", Params={"Bucket": self._bucket, "Key": key}, ExpiresIn=URL_TTL_S
        )

    def upload_url(self, key: str, size: int) -> str:
        """Return a signed URL that accepts, for an hour, an object of exactly `size` bytes."""
        return self._client().generate_presigned_url(
            "put_object", Params={"Bucket": self._bucket, "Key": key, "ContentLength": size}, ExpiresIn=URL_TTL_S
        )

    def size(self, key: str) -> int | None:
        """Return the size of an object in bytes; None if it does not exist."""
        client = self._client()
        try:
            return client.head_object(Bucket=self._bucket, Key=key)["ContentLength"]
        except client.exceptions.ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
                return None
            raise
