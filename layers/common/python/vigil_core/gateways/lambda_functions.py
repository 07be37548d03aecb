"""Invocations of Lambda functions, synchronous and asynchronous."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from vigil_core.domain.exact_json import to_ascii
from vigil_core.domain.executors.targets import ExecutorBusy, ExecutorRefused

if TYPE_CHECKING:
    from mypy_boto3_lambda.client import LambdaClient

LONG_CALL_CONFIG = Config(read_timeout=70, retries={"total_max_attempts": 1})
"""For a client that waits longer than a function's timeout of 60 s and never invokes it a second time."""

PERMANENT_ERRORS = frozenset(
    {
        "AccessDeniedException", "InvalidParameterValueException", "InvalidRequestContentException",
        "RequestTooLargeException", "ResourceNotFoundException", "UnsupportedMediaTypeException", "ValidationException",
    }
)  # fmt: skip
"""The errors that a retry cannot resolve. https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html"""


@dataclass(frozen=True, kw_only=True)
class FunctionResponse:
    """The response of a function, or the error that Lambda reports if the function `failed`."""

    failed: bool
    body: bytes


class LambdaFunctions:
    """Synchronous invocations of functions by ARN."""

    def __init__(self, client: LambdaClient) -> None:
        self._client = client

    def invoke(self, function_arn: str, event: str) -> FunctionResponse:
        """Invoke a function with an event (JSON text) and wait for its response."""
        response = self._client.invoke(
            FunctionName=function_arn, InvocationType="RequestResponse", Payload=to_ascii(event).encode()
        )
        return FunctionResponse(failed="FunctionError" in response, body=response["Payload"].read())


class LambdaStreamConsumers:
    """Asynchronous invocations of the functions that consume the stream.

    Args:
        client: Creates the Lambda client.
        functions: The ARN of each consumer by its name; None in functions that retry no records.
    """

    def __init__(self, client: Callable[[], LambdaClient], functions: Mapping[str, str | None]) -> None:
        self._client = client
        self._functions = functions

    def retry_postponed(self, consumer: str, event: str) -> None:
        """Queue an event with Lambda for a consumer, which then retries a group of postponed records."""
        function = self._functions[consumer]
        if function is None:
            raise RuntimeError("this function retries no records")
        self._client().invoke(FunctionName=function, InvocationType="Event", Payload=event.encode())


class LambdaExecutors:
    """Asynchronous invocations for dispatched jobs.

    Args:
        client: Creates the Lambda client.
        http_executor: The name of the function that calls HTTP targets; None in functions that dispatch no jobs.
    """

    def __init__(self, client: Callable[[], LambdaClient], http_executor: str | None) -> None:
        self._client = client
        self._http_executor = http_executor

    def call_http(self, event: str) -> None:
        """Invoke the HTTP executor with an event.

        Raises:
            ExecutorRefused: The invocation cannot succeed.
            ExecutorBusy: A retry may succeed.
        """
        if self._http_executor is None:
            raise ExecutorRefused("This function cannot call HTTP targets")
        self.invoke_lambda(self._http_executor, event)

    def invoke_lambda(self, function: str, event: str) -> None:
        """Queue an event with Lambda, which invokes the function soon.

        Raises:
            ExecutorRefused: The invocation cannot succeed.
            ExecutorBusy: A retry may succeed.
        """
        try:
            self._client().invoke(FunctionName=function, InvocationType="Event", Payload=to_ascii(event).encode())
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in PERMANENT_ERRORS:
                raise ExecutorRefused(f"The function {function} cannot be invoked: {code}") from error
            raise ExecutorBusy(f"The function {function} was not invoked: {code}") from error
        except BotoCoreError as error:
            raise ExecutorBusy(f"The function {function} was not invoked: {type(error).__name__}") from error
