"""Timestamps in JSON and in the table: ISO 8601, UTC, milliseconds, ending in `Z`, sortable as text. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

MAX_TIMESTAMP = datetime(9000, 1, 1, tzinfo=UTC)
"""The latest time of a request. Every expiry that is computed from such a time stays before the year 10,000."""


def to_text(timestamp: datetime) -> str:
    """Format a timestamp, for example `2026-01-31T09:30:00.123Z`.

    Raises:
        ValueError: The timestamp has no time zone.
    """
    if timestamp.tzinfo is None:
        raise ValueError("a timestamp needs a time zone")
    return timestamp.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_text(text: str) -> datetime:
    """Parse any ISO 8601 timestamp with a time zone; the inverse of `to_text`.

    Raises:
        ValueError: The text is malformed or has no time zone.
    """
    timestamp = datetime.fromisoformat(text)
    if timestamp.tzinfo is None:
        raise ValueError("a timestamp needs a time zone, such as Z")
    return timestamp.astimezone(UTC)


def from_request(value: object) -> datetime:
    """Parse a time of a request: ISO 8601 with a time zone, at most `MAX_TIMESTAMP`.

    Raises:
        ValueError: The value is not such a time.
    """
    try:
        timestamp = from_text(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("must be an ISO 8601 time with a zone, such as Z") from error
    if timestamp > MAX_TIMESTAMP:
        raise ValueError(f"must be at most {to_text(MAX_TIMESTAMP)}")
    return timestamp


def to_epoch_s(timestamp: datetime) -> int:
    """Convert a timestamp to whole seconds since 1970, rounded down, as a DynamoDB TTL requires."""
    return int(timestamp.timestamp())


def from_epoch_s(seconds: int) -> datetime:
    """Convert seconds since 1970 to a timestamp; the inverse of `to_epoch_s`."""
    return datetime.fromtimestamp(seconds, UTC)


def truncate_to_ms(timestamp: datetime) -> datetime:
    """Drop the microseconds below a millisecond, which the text format cannot represent."""
    return timestamp.replace(microsecond=timestamp.microsecond // 1000 * 1000)
