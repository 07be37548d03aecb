"""What programs say, in the form in which a job's message takes it."""

from __future__ import annotations

MAX_MESSAGE = 1_024
"""The API takes no longer text, in characters."""


def clean(text: str) -> str:
    """Text that the API and a log take: without NUL and halves of surrogate pairs."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def sendable(text: str) -> str:
    """Text that the API takes, and not too long."""
    sent = clean(text)
    return sent if len(sent) <= MAX_MESSAGE else sent[: MAX_MESSAGE - 1] + "…"


def explained(error: BaseException, trace: str) -> str:
    """What the exception says, and the last lines of the traceback that fit."""
    try:
        said = sendable(str(error) or type(error).__name__)
    except Exception:  # Not every exception can say what it is.
        said = type(error).__name__
    message = said
    tail = ""
    for line in reversed(trace.rstrip().splitlines()):
        tail = f"{line}\n{tail}" if tail else line
        if len(said) + 1 + len(tail) > MAX_MESSAGE:
            break
        message = f"{said}\n{tail}"
    return message
