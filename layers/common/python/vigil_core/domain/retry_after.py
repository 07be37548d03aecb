"""The `Retry-After` header of an HTTP response."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def parse_retry_after(header: str | None, now: datetime) -> int | None:
    """Parse a `Retry-After` header into seconds from now.

    The value is a number of seconds or an HTTP date: https://www.rfc-editor.org/rfc/rfc9110#name-retry-after

    Returns:
        The seconds, or None if the header is absent or malformed.
    """
    text = (header or "").strip()
    if re.fullmatch("[0-9]{1,9}", text, re.ASCII):
        return int(text)
    try:
        parsed = parsedate_to_datetime(text)
        retry_at = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
        return max(0, math.ceil((retry_at - now).total_seconds()))
    except (ValueError, TypeError, OverflowError):
        return None
