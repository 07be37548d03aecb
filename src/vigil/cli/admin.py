"""How operators' commands reach a stack: they invoke its admin function with AWS credentials and know no table."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vigil_core.domain.exact_json import dumps, loads

if TYPE_CHECKING:
    from mypy_boto3_cloudformation.client import CloudFormationClient
    from mypy_boto3_lambda.client import LambdaClient

ADMIN_FUNCTION = "VIGIL_ADMIN_FUNCTION"
_READ_TIMEOUT_S = 310
"""The function may work for 5 minutes."""

StackOption = Annotated[
    str | None,
    typer.Option(
        help=f"A stack on AWS. Without it: the function that {ADMIN_FUNCTION} names, "
        "else the local cloud of this directory.",
        show_default=False,
    ),
]
NamespaceOption = Annotated[str, typer.Option(help="The tenant that the key belongs to.", show_default=False)]


@dataclass(frozen=True)
class AdminFunction:
    """A stack's admin function. `where` says for people which stack that is."""

    client: LambdaClient
    name: str
    label: str

    @classmethod
    def for_stack(cls, stack: str | None) -> AdminFunction:
        """The function of the stack that is meant. Ends the command when that is unclear."""
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        from vigil.local.errors import LocalError
        from vigil.local.stack import Stack, session
        from vigil.local.state_dir import StateDir

        # Not asked twice: the first may still be at work.
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
        raise fail(f"Which stack? Say --stack NAME, set {ADMIN_FUNCTION}, or start one here with `vigil local up`.")

    def invoke(self, action: str, **fields: object) -> dict[str, Any]:
        """What the function answers. Ends the command, saying why, when it refuses or fails."""
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
    """Say what went wrong, on stderr; the exception that ends the command."""
    typer.secho(message, err=True, fg=typer.colors.RED)
    return typer.Exit(exit_code)


def _stack_output(client: CloudFormationClient, stack: str, output: str) -> str:
    outputs = client.describe_stacks(StackName=stack)["Stacks"][0].get("Outputs", [])
    value = {item.get("OutputKey"): item.get("OutputValue") for item in outputs}.get(output)
    if value is None:
        raise fail(f"The stack {stack} has no output {output}: it is no stack of Vigil.")
    return value
