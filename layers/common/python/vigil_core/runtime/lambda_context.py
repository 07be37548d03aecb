"""What Lambda passes beside the event, as far as Vigil reads it."""

from __future__ import annotations

from typing import Protocol


class LambdaContext(Protocol):
    """https://docs.aws.amazon.com/lambda/latest/dg/python-context.html"""

    @property
    def aws_request_id(self) -> str: ...

    def get_remaining_time_in_millis(self) -> int: ...
