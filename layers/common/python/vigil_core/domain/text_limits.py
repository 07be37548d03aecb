"""What programs say, in the form in which a job's message takes it."""

from __future__ import annotations

MAX_MESSAGE_CHARS = 1_024
"""The API takes no longer text, in characters."""


def sanitize(text: str) -> str:
    """Text that the API and a log take: without NUL and halves of surrogate pairs."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def truncate_message(text: str) -> str:
    """Text that the API takes, and not too long."""
    sanitized = sanitize(text)
    return sanitized if len(sanitized) <= MAX_MESSAGE_CHARS else sanitized[: MAX_MESSAGE_CHARS - 1] + "…"


def format_exception(error: BaseException, trace: str) -> str:
    """What the exception says, and the last lines of the traceback that fit."""
    try:
        summary = truncate_message(str(error) or type(error).__name__)
    except Exception:  # Not every exception can say what it is.
        summary = type(error).__name__
    message = summary
    tail = ""
    for line in reversed(trace.rstrip().splitlines()):
        tail = f"{line}\n{tail}" if tail else line
        if len(summary) + 1 + len(tail) > MAX_MESSAGE_CHARS:
            break
        message = f"{summary}\n{tail}"
    return message
