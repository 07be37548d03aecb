"""Limits for texts that programs report, such as the message of a job."""

from __future__ import annotations

from vigil_core.domain.text_rule import sanitize

MAX_MESSAGE_CHARS = 1_024
"""Maximum length of a message in the API, in characters."""


def truncate_message(text: str) -> str:
    """Sanitize a text and cut it to the maximum length of a message."""
    sanitized = sanitize(text)
    return sanitized if len(sanitized) <= MAX_MESSAGE_CHARS else sanitized[: MAX_MESSAGE_CHARS - 1] + "…"


def exception_message(error: BaseException) -> str:
    """Return the text of an exception, or the name of its type if it has none."""
    try:
        return truncate_message(str(error) or type(error).__name__)
    except Exception:  # The `__str__` of an exception can fail, too.
        return type(error).__name__


def exception_type(error: BaseException) -> str:
    """Return the full name of an exception's type, such as `json.decoder.JSONDecodeError`."""
    return truncate_message(f"{type(error).__module__}.{type(error).__qualname__}")


def last_lines(text: str) -> str:
    """Return the last lines of a text that fit into a message, or the end of the last line."""
    lines = sanitize(text).rstrip().splitlines()
    tail = lines.pop()[-MAX_MESSAGE_CHARS:] if lines else ""
    while lines and len(lines[-1]) + 1 + len(tail) <= MAX_MESSAGE_CHARS:
        tail = f"{lines.pop()}\n{tail}"
    return tail
