"""What goes wrong with the local cloud, as a person should read it."""

from __future__ import annotations


class LocalError(Exception):
    """The local cloud cannot do what was asked. The message says why and what to do; `details` is a log's tail."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details
