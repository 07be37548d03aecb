"""Times on the wire and in the table: ISO 8601, UTC, milliseconds, ending in `Z`. They sort as text."""

from __future__ import annotations

from datetime import UTC, datetime


def to_text(timestamp: datetime) -> str:
    """`2026-01-31T09:30:00.123Z`. Raises ValueError for a time without a zone."""
    if timestamp.tzinfo is None:
        raise ValueError("a time needs a zone")
    return timestamp.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_text(text: str) -> datetime:
    """The inverse of `to_text`; takes any ISO 8601 time with a zone. Raises ValueError otherwise."""
    timestamp = datetime.fromisoformat(text)
    if timestamp.tzinfo is None:
        raise ValueError("a time needs a zone, such as Z")
    return timestamp.astimezone(UTC)


def to_epoch_s(timestamp: datetime) -> int:
    """Whole seconds since 1970, rounded down: what DynamoDB's TTL takes."""
    return int(timestamp.timestamp())


def from_epoch_s(seconds: int) -> datetime:
    """The inverse of `to_epoch_s`."""
    return datetime.fromtimestamp(seconds, UTC)


def truncate_to_ms(timestamp: datetime) -> datetime:
    """The moment without what the wire cannot carry."""
    return timestamp.replace(microsecond=timestamp.microsecond // 1000 * 1000)
