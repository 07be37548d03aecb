"""Limits for texts that programs report, such as the message of a job."""

from __future__ import annotations

MAX_MESSAGE_CHARS = 1_024
"""Maximum length of a message in the API, in characters."""


def sanitize(text: str) -> str:
    """Replace NUL characters and halves of surrogate pairs, which neither the API nor a log accepts."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def truncate_message(text: str) -> str:
    """Sanitize a text and cut it to the maximum length of a message."""
    sanitized = sanitize(text)
    return sanitized if len(sanitized) <= MAX_MESSAGE_CHARS else sanitized[: MAX_MESSAGE_CHARS - 1] + "…"


def format_exception(error: BaseException, trace: str) -> str:
    """Return the text of an exception, and as many of the last lines of its traceback as fit."""
    try:
        summary = truncate_message(str(error) or type(error).__name__)
    except Exception:  # The `__str__` of an exception can fail, too.
        summary = type(error).__name__
    message = summary
    tail = ""
    for line in reversed(trace.rstrip().splitlines()):
        tail = f"{line}\n{tail}" if tail else line
        if len(summary) + 1 + len(tail) > MAX_MESSAGE_CHARS:
            break
        message = f"{summary}\n{tail}"
    return message
