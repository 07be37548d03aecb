"""Access to a stack for operators' commands: they invoke its admin function with AWS credentials."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vigil.cli.terminal import echo
from vigil_core.domain.exact_json import dumps, loads

if TYPE_CHECKING:
    from mypy_boto3_cloudformation.client import CloudFormationClient
    from mypy_boto3_lambda.client import LambdaClient

ADMIN_FUNCTION = "VIGIL_ADMIN_FUNCTION"
_READ_TIMEOUT_S = 310
"""The function runs for up to 5 minutes."""

StackOption = Annotated[
    str | None,
    typer.Option(
        help=f"The name of a stack on AWS. The default is the function that {ADMIN_FUNCTION} names, "
        "otherwise the local cloud of this directory.",
        show_default=False,
    ),
]
NamespaceOption = Annotated[str, typer.Option(help="The namespace (tenant) of the key.", show_default=False)]


@dataclass(frozen=True)
class AdminFunction:
    """The admin function of a stack. `label` describes the stack in messages."""

    client: LambdaClient
    name: str
    label: str

    @classmethod
    def for_stack(cls, stack: str | None) -> AdminFunction:
        """Find the admin function: of the option, the environment or the local cloud. Otherwise end the command."""
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        from vigil.local.errors import LocalError
        from vigil.local.stack import Stack, session
        from vigil.local.state_dir import StateDir

        # No retries: the first invocation may still be running.
        config = Config(read_timeout=_READ_TIMEOUT_S, retries={"total_max_attempts": 1})
        try:
            if stack:
                name = _stack_output(boto3.client("cloudformation"), stack, "AdminFunctionName")
                return cls(boto3.client("lambda", config=config), name, f"the stack {stack}")
            if function_name := os.environ.get(ADMIN_FUNCTION):
                return cls(boto3.client("lambda", config=config), function_name, f"the function {function_name}")
            if local_stack := Stack.read(StateDir.of(Path.cwd()).stack_file):
                client = session().client("lambda", endpoint_url=local_stack.endpoint_url, config=config)
                return cls(client, local_stack.admin_function, "the local cloud")
        except (BotoCoreError, ClientError, LocalError) as error:
            raise fail(str(error)) from error
        raise fail(f"No stack is configured. Use --stack NAME, set {ADMIN_FUNCTION}, or run `vigil local up` here.")

    def invoke(self, action: str, **fields: object) -> dict[str, Any]:
        """Invoke the function and return its answer. End the command with a message if it refuses or fails."""
        from botocore.exceptions import BotoCoreError, ClientError

        request = dumps({"action": action, **{name: value for name, value in fields.items() if value is not None}})
        try:
            response = self.client.invoke(FunctionName=self.name, Payload=request.encode())
        except (BotoCoreError, ClientError) as error:
            raise fail(f"Cannot invoke {self.name}: {error}") from error
        result: Any = loads(response["Payload"].read())
        if response.get("FunctionError"):
            raise fail(f"{self.name} failed: {result.get('errorType')}: {result.get('errorMessage')}")
        if "error" in result:
            problems = [f"{problem['pointer'].strip('/')}: {problem['detail']}" for problem in result["errors"]]
            raise fail("\n".join(problems) or result["message"])
        return dict(result)


def fail(message: str, exit_code: int = 1) -> typer.Exit:
    """Print an error message on stderr and return the exception that ends the command."""
    echo(message, err=True, color=typer.colors.RED)
    return typer.Exit(exit_code)


def _stack_output(client: CloudFormationClient, stack: str, output: str) -> str:
    outputs = client.describe_stacks(StackName=stack)["Stacks"][0].get("Outputs", [])
    value = {item.get("OutputKey"): item.get("OutputValue") for item in outputs}.get(output)
    if value is None:
        raise fail(f"The stack {stack} has no output {output}: it is not a Vigil stack.")
    return value
