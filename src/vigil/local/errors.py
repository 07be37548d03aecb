"""The exception of the local cloud."""

from __future__ import annotations


class LocalError(Exception):
    """A failure of the local cloud.

    The message gives the reason and the remedy; `details` is the end of a log.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details
