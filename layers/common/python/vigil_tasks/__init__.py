"""The SDK for Lambda functions that run jobs of executor `lambda`. See docs/executors.md.

It calls Vigil's HTTP API with an API key of the jobs' namespace. It imports the standard library, `vigil_core.domain`
and, to read the key, the boto3 of the Lambda runtime.
"""

from __future__ import annotations

from vigil_tasks.errors import Cancelled, Permanent, TaskError
from vigil_tasks.lambda_handler import LambdaContext, Task, TaskFunction, task

__all__ = ["Cancelled", "LambdaContext", "Permanent", "Task", "TaskError", "TaskFunction", "task"]
