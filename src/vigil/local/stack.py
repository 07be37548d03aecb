"""What `vigil local up` leaves for others: where the stack is and how to talk to it."""

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
# The emulator's root account takes these and nothing else needs to know more.
ACCESS_KEY = "test"
SECRET_KEY = "test"


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The deployed stack, as kept in `stack.json` (mode 0600: it holds an API key)."""

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
        """Keep it for others to read."""
        write_json(path, asdict(self), mode=0o600)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The stack kept there, or None. Raises LocalError for a file that is not one."""
        document = read_json(path)
        if document is None:
            return None
        try:
            return cls(**{field.name: document[field.name] for field in fields(cls)})
        except (KeyError, TypeError) as error:
            raise LocalError(f"{path} is not a stack file of this version; `vigil local up` writes it anew.") from error


def endpoint(port: int) -> str:
    """Where AWS is, for boto3."""
    return f"http://127.0.0.1:{port}"


def session() -> boto3.Session:
    """AWS as the emulator's root account, whatever this machine's own credentials are."""
    import boto3

    return boto3.Session(aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY, region_name=REGION)


def client_config(read_timeout_s: float = 60, retries: int = 2, connections: int = 10) -> Config:
    """How to call an endpoint on this machine: at once, and not through a proxy."""
    from botocore.config import Config

    return Config(
        connect_timeout=5,
        read_timeout=read_timeout_s,
        retries={"total_max_attempts": retries + 1, "mode": "standard"},
        max_pool_connections=connections,
        proxies={},
    )
