"""Invoke Lambda functions: and wait for the answer, or leave that to whom the function tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from vigil_core.domain.executors.targets import ExecutorBusy, ExecutorRefused

if TYPE_CHECKING:
    from mypy_boto3_lambda.client import LambdaClient

LONG_CALL_CONFIG = Config(read_timeout=70, retries={"total_max_attempts": 1})
"""For a client that outwaits a function's 60 s and does not, in doubt, run it a second time beside the first."""


PERMANENT_ERRORS = frozenset(
    {
        "AccessDeniedException", "InvalidParameterValueException", "InvalidRequestContentException",
        "RequestTooLargeException", "ResourceNotFoundException", "UnsupportedMediaTypeException", "ValidationException",
    }
)  # fmt: skip
"""What asking again does not help. https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html"""


@dataclass(frozen=True, kw_only=True)
class FunctionResponse:
    """What a function returned, or, when it `failed`, the error that Lambda tells in its place."""

    failed: bool
    body: bytes


class LambdaFunctions:
    """Functions by their ARN."""

    def __init__(self, client: LambdaClient) -> None:
        self._client = client

    def invoke(self, function_arn: str, event: str) -> FunctionResponse:
        """Run a function with an event, which is JSON text."""
        response = self._client.invoke(
            FunctionName=function_arn, InvocationType="RequestResponse", Payload=event.encode()
        )
        return FunctionResponse(failed="FunctionError" in response, body=response["Payload"].read())


class LambdaExecutors:
    """Runs what is dispatched, by asynchronous invocations. `caller` is the function that calls HTTP targets."""

    def __init__(self, client: Callable[[], LambdaClient], http_executor: str | None) -> None:
        self._client = client
        self._http_executor = http_executor

    def call_http(self, event: str) -> None:
        """Have an HTTP target called. Raises ExecutorRefused, ExecutorBusy."""
        if self._http_executor is None:
            raise ExecutorRefused("This function calls no targets")
        self.invoke_lambda(self._http_executor, event)

    def invoke_lambda(self, function: str, event: str) -> None:
        """Leave an event to Lambda, which runs the function with it soon. Raises ExecutorRefused, ExecutorBusy."""
        try:
            self._client().invoke(FunctionName=function, InvocationType="Event", Payload=event.encode())
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in PERMANENT_ERRORS:
                raise ExecutorRefused(f"The function {function} cannot be invoked: {code}") from error
            raise ExecutorBusy(f"The function {function} was not invoked: {code}") from error
        except BotoCoreError as error:
            raise ExecutorBusy(f"The function {function} was not invoked: {type(error).__name__}") from error
