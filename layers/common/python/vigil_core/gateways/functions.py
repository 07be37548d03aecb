"""Invoke a Lambda function and wait for its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.config import Config

if TYPE_CHECKING:
    from mypy_boto3_lambda.client import LambdaClient

PATIENTLY = Config(read_timeout=70, retries={"total_max_attempts": 1})
"""For a client that outwaits a function's 60 s and does not, in doubt, run it a second time beside the first."""


@dataclass(frozen=True, kw_only=True)
class FunctionAnswer:
    """What a function returned, or, when it `failed`, the error that Lambda tells in its place."""

    failed: bool
    body: bytes


class Functions:
    """Functions by their ARN."""

    def __init__(self, client: LambdaClient) -> None:
        self._client = client

    def invoke(self, function_arn: str, event: str) -> FunctionAnswer:
        """Run a function with an event, which is JSON text."""
        answer = self._client.invoke(
            FunctionName=function_arn, InvocationType="RequestResponse", Payload=event.encode()
        )
        return FunctionAnswer(failed="FunctionError" in answer, body=answer["Payload"].read())
