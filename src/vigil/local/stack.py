"""The stack file of `vigil local up`: the addresses and the key of the deployed stack."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Self

from vigil.local.errors import LocalError
from vigil.local.state_dir import read_json, write_json

if TYPE_CHECKING:
    import boto3
    from botocore.config import Config

REGION = "us-east-1"
STACK_NAME = "vigil"
# The credentials of the emulator's root account.
ACCESS_KEY = "test"
SECRET_KEY = "test"


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The deployed stack, stored in `stack.json` (mode 0600, because it contains an API key)."""

    api_url: str
    ws_url: str
    api_key: str
    key_id: str
    topic_arn: str
    table_name: str
    endpoint_url: str
    region: str
    stack_name: str
    pid: int
    admin_function: str
    dead_letter_bucket: str
    fan_out_queue_url: str
    sweeper_queue_url: str
    http_api_id: str
    websocket_api_id: str

    def write(self, path: Path) -> None:
        """Write the stack file."""
        write_json(path, asdict(self), mode=0o600)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read a stack file. Return None if it does not exist.

        Raises:
            LocalError: The file is not a stack file of this version.
        """
        document = read_json(path)
        if document is None:
            return None
        try:
            return cls(**{field.name: document[field.name] for field in fields(cls)})
        except (KeyError, TypeError) as error:
            raise LocalError(f"{path} is not a stack file of this version; `vigil local up` replaces it.") from error


def endpoint(port: int) -> str:
    """Return the endpoint URL of the emulator, for boto3."""
    return f"http://127.0.0.1:{port}"


def session() -> boto3.Session:
    """Return a session of the emulator's root account, independent of this machine's credentials."""
    import boto3

    return boto3.Session(aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY, region_name=REGION)


def client_config(read_timeout_s: float = 60, retries: int = 2, connections: int = 10) -> Config:
    """Return the client configuration for an endpoint on this machine: short connect timeout, no proxy."""
    from botocore.config import Config

    return Config(
        connect_timeout=5,
        read_timeout=read_timeout_s,
        retries={"total_max_attempts": retries + 1, "mode": "standard"},
        max_pool_connections=connections,
        proxies={},
    )
