"""The context object of a Lambda invocation, limited to the members that Vigil reads."""

from __future__ import annotations

from typing import Protocol


class LambdaContext(Protocol):
    """The context of an invocation: https://docs.aws.amazon.com/lambda/latest/dg/python-context.html."""

    @property
    def aws_request_id(self) -> str:
        """The id of the invocation."""

    def get_remaining_time_in_millis(self) -> int:
        """Return the time before Lambda ends the invocation."""


class InvokedFunction(Protocol):
    """The same context, for functions that need only their own name."""

    @property
    def invoked_function_arn(self) -> str:
        """The ARN of the function."""
