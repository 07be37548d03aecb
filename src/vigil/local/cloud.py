"""Start, stop and inspect the local cloud, for the commands of `vigil local` and the tests."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vigil.local import api_gateway as http_api
from vigil.local import sam
from vigil.local.emulator import (
    NO_PROXY_OPENER,
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
    concurrency,
    is_healthy,
    port_in_use,
    stop_orphan,
)
from vigil.local.errors import LocalError
from vigil.local.stack import REGION, STACK_NAME, Stack, client_config, endpoint, session
from vigil.local.state_dir import StateDir, read_json, tail, wait_until

DEFAULT_PORT = 4566
ARTIFACTS = "vigil-local-artifacts"
NAMESPACE = "default"
KEY_NAME = "local"
# A tag of the deployed stack with the hash of its sources. The emulator saves and loses both together.
FINGERPRINT = "vigil-local-fingerprint"

# A stop first ends running functions and then saves the state.
SUPERVISOR_STOP_TIMEOUT_S = STOP_TIMEOUT_S + 30

Say = Callable[[str], None]


def _silent(_message: str) -> None:
    pass


def up(
    state_dir: StateDir,
    *,
    port: int = DEFAULT_PORT,
    addresses: tuple[str, ...] = (),
    parameters: Mapping[str, str] | None = None,
    say: Say = _silent,
) -> Stack:
    """Start the local cloud in the background and deploy the checkout. If it runs, deploy only the changes.

    Args:
        addresses: The addresses to listen on in addition to 127.0.0.1.
        say: Receives a message for each step.

    Raises:
        LocalError: A step failed.
    """
    sources = sam.source_fingerprint(state_dir.root)
    state_dir.directory.mkdir(parents=True, exist_ok=True)
    with (state_dir.directory / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        supervisor = _ensure_supervisor(state_dir, port, addresses, say)
        _ensure_deployed(state_dir, port, sources, parameters or {}, say)
        _await_streams(state_dir, port)
        endpoint_url = endpoint(port)
        outputs = _outputs(endpoint_url)
        key, key_id = _ensure_key(state_dir, outputs, endpoint_url, say)
        stack = Stack(
            api_url=outputs["HttpApiUrl"],
            ws_url=outputs["WebSocketUrl"],
            api_key=key,
            key_id=key_id,
            topic_arn=outputs["TopicArn"],
            table_name=outputs["TableName"],
            endpoint_url=endpoint_url,
            region=REGION,
            stack_name=STACK_NAME,
            pid=supervisor,
            admin_function=outputs["AdminFunctionName"],
            dead_letter_bucket=outputs["DeadLetterBucketName"],
            fan_out_queue_url=outputs["FanOutQueueUrl"],
            sweeper_queue_url=outputs["SweeperQueueUrl"],
            http_api_id=outputs["HttpApiId"],
            websocket_api_id=outputs["WebSocketApiId"],
        )
        stack.write(state_dir.stack_file)
        return stack


def down(state_dir: StateDir, say: Say = _silent) -> bool:
    """Stop the local cloud and keep its state. Return whether it was running.

    Raises:
        LocalError: A process does not stop.
    """
    supervisor, emulator = state_dir.supervisor.holder(), state_dir.emulator.holder()
    if supervisor is None and emulator is None:
        return False
    port = int((supervisor or emulator or {})["port"])
    if supervisor is not None:
        say("Stopping and saving the state")
        os.kill(int(supervisor["pid"]), signal.SIGTERM)
        if not wait_until(lambda: not state_dir.supervisor.alive, SUPERVISOR_STOP_TIMEOUT_S):
            raise LocalError("The local cloud does not stop.", tail(state_dir.supervisor_log))
    if state_dir.emulator.alive:
        say("Stopping the emulator of a supervisor that was killed")
        stop_orphan(state_dir)
    if not wait_until(lambda: not port_in_use(port), 10):
        raise LocalError(f"Port {port} is still taken.", tail(state_dir.supervisor_log))
    return True


@contextmanager
def running_stack(
    root: Path,
    port: int,
    *,
    home: Path | None = None,
    addresses: tuple[str, ...] = (),
    parameters: Mapping[str, str] | None = None,
) -> Iterator[Stack]:
    """Run a separate local cloud on its own port while the block runs.

    Args:
        home: The state directory. The default is a new directory, which is removed afterwards.

    Raises:
        LocalError: The local cloud does not start or stop.
    """
    with tempfile.TemporaryDirectory(prefix="vigil-local-") as temporary:
        state_dir = StateDir.of(root, home or Path(temporary))
        try:
            yield up(state_dir, port=port, addresses=addresses, parameters=parameters)
        finally:
            down(state_dir)


# ---------------------------------------------------------------- Steps of `up`


def _ensure_supervisor(state_dir: StateDir, port: int, addresses: tuple[str, ...], say: Say) -> int:
    """Start the supervisor if none runs, and return its process id."""
    holder = state_dir.supervisor.holder()
    orphan = None
    if holder is not None:
        if holder["port"] != port:
            raise LocalError(
                f"The local cloud already runs on port {holder['port']}; stop it first with `vigil local down`."
            )
    else:
        say(f"Starting the emulator on port {port}")
        # An emulator whose supervisor was killed may hold the port: the new supervisor stops it.
        if port_in_use(port) and not state_dir.emulator.alive:
            raise LocalError(f"Port {port} is taken by another program; choose another one with --port.")
        orphan = state_dir.emulator.holder()
        _start_supervisor(state_dir, port, addresses)
        holder = state_dir.supervisor.holder()

    def is_ready() -> bool:
        # Until the new supervisor has stopped it, the orphan of a killed one still answers.
        emulator = state_dir.emulator.holder()
        is_orphan = emulator is not None and orphan is not None and emulator["pid"] == orphan["pid"]
        return not is_orphan and is_healthy(port)

    if holder is None or not wait_until(is_ready, START_TIMEOUT_S):
        raise LocalError("The emulator does not answer.", tail(state_dir.emulator_log))
    return int(holder["pid"])


def _start_supervisor(state_dir: StateDir, port: int, addresses: tuple[str, ...]) -> None:
    package = Path(__file__).parents[2]
    with state_dir.supervisor_log.open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "vigil.local.supervisor",
                str(state_dir.root),
                str(state_dir.directory),
                str(port),
                *addresses,
            ],
            env={**os.environ, "PYTHONPATH": str(package)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # This process may outlive the supervisor and must then reap it.
    threading.Thread(target=process.wait, daemon=True).start()
    # The supervisor may first have to stop an orphaned emulator, which takes as long as any stop.
    wait_until(
        lambda: (
            process.poll() is not None or (state_dir.supervisor.alive and state_dir.emulator.alive and is_healthy(port))
        ),
        START_TIMEOUT_S + STOP_TIMEOUT_S,
    )
    if process.poll() is not None:
        raise LocalError("The local cloud did not start.", tail(state_dir.supervisor_log))


def _ensure_deployed(state_dir: StateDir, port: int, sources: str, parameters: Mapping[str, str], say: Say) -> None:
    aws = session()
    endpoint_url = endpoint(port)
    all_parameters = {
        "ExecuteApiBase": f"http://localhost:{port}/_aws/execute-api",
        "Concurrency": concurrency(),
        **parameters,
    }
    fingerprint = f"{sources}-{_digest(all_parameters)}"
    if _deployed_fingerprint(endpoint_url) == fingerprint and _functions_exist(endpoint_url):
        say("Nothing changed since the last deployment")
    else:
        say("Building (sam build)")
        template = sam.build(state_dir.root, state_dir.directory / "build.log")
        aws.client("s3", endpoint_url=endpoint_url, config=client_config()).create_bucket(Bucket=ARTIFACTS)
        say("Deploying (sam deploy)")
        sam.deploy(
            state_dir.root,
            template,
            state_dir.directory / "deploy.log",
            endpoint_url=endpoint_url,
            stack_name=STACK_NAME,
            bucket=ARTIFACTS,
            parameters=all_parameters,
            tags={FINGERPRINT: fingerprint},
        )
    http_api.apply_openapi(aws, endpoint_url, STACK_NAME)


def _digest(parameters: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:8]


def _describe_stack(endpoint_url: str) -> Any:
    """Return the description of the stack, or None if it does not exist."""
    from botocore.exceptions import ClientError

    cloudformation = session().client("cloudformation", endpoint_url=endpoint_url, config=client_config())
    try:
        return cloudformation.describe_stacks(StackName=STACK_NAME)["Stacks"][0]
    except ClientError:
        return None


def _deployed_fingerprint(endpoint_url: str) -> str | None:
    stack = _describe_stack(endpoint_url)
    if stack is None or not stack["StackStatus"].endswith("_COMPLETE") or "ROLLBACK" in stack["StackStatus"]:
        return None
    return next((tag["Value"] for tag in stack.get("Tags", []) if tag["Key"] == FINGERPRINT), None)


def _functions_exist(endpoint_url: str) -> bool:
    from botocore.exceptions import ClientError

    aws = session()
    cloudformation = aws.client("cloudformation", endpoint_url=endpoint_url, config=client_config())
    functions = aws.client("lambda", endpoint_url=endpoint_url, config=client_config())
    resources = cloudformation.describe_stack_resources(StackName=STACK_NAME)["StackResources"]
    names = [entry["PhysicalResourceId"] for entry in resources if entry["ResourceType"] == "AWS::Lambda::Function"]
    try:
        for name in names:
            functions.get_function(FunctionName=name)
    except ClientError:
        return False
    return True


def _await_streams(state_dir: StateDir, port: int) -> None:
    """Wait until the supervisor serves every stream mapping. It checks for new ones once a second."""
    functions = session().client("lambda", endpoint_url=endpoint(port), config=client_config())
    pages = functions.get_paginator("list_event_source_mappings").paginate()
    expected = {
        entry["UUID"]
        for page in pages
        for entry in page["EventSourceMappings"]
        if ":dynamodb:" in entry.get("EventSourceArn", "") and entry["State"] == "Enabled"
    }

    def served() -> bool:
        return expected <= {
            reader["mapping"] for reader in (read_json(state_dir.streams_file) or {}).get("readers", [])
        }

    if not wait_until(served, 15):
        raise LocalError("The streams are not served.", tail(state_dir.supervisor_log))


def _outputs(endpoint_url: str) -> dict[str, str]:
    stack = _describe_stack(endpoint_url)
    if stack is None:
        raise LocalError("The stack does not exist after its deployment.")
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


def _ensure_key(state_dir: StateDir, outputs: Mapping[str, str], endpoint_url: str, say: Say) -> tuple[str, str]:
    """Return the API key of an earlier start if it is still accepted, otherwise a new one."""
    existing = Stack.read(state_dir.stack_file) if state_dir.stack_file.exists() else None
    if existing is not None and _is_accepted(outputs["HttpApiUrl"], existing.api_key):
        return existing.api_key, existing.key_id
    say("Creating an API key")
    response = invoke_admin(
        endpoint_url,
        outputs["AdminFunctionName"],
        {"action": "create_key", "namespace": NAMESPACE, "scopes": ["admin"], "name": KEY_NAME},
    )
    return response["token"], response["key"]["key_id"]


def invoke_admin(endpoint_url: str, function: str, event: Mapping[str, Any]) -> dict[str, Any]:
    """Invoke the admin function and return its answer.

    Raises:
        LocalError: The function failed or refused the request.
    """
    functions = session().client("lambda", endpoint_url=endpoint_url, config=client_config())
    response = functions.invoke(FunctionName=function, Payload=json.dumps(event).encode())
    body = response["Payload"].read().decode()
    if response.get("FunctionError"):
        raise LocalError(f"The admin function failed; see `vigil local logs {function}`.", body)
    result: dict[str, Any] = json.loads(body)
    if "error" in result:
        raise LocalError(f"The admin function refuses: {result['message']}", body)
    return result


def _is_accepted(api_url: str, api_key: str) -> bool:
    status = http_status(f"{api_url}/v1/jobs?page_size=1", api_key)
    return status is not None and status not in {401, 403}


def http_status(url: str, api_key: str | None = None) -> int | None:
    """Return the status of a GET request, or None without an answer."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with NO_PROXY_OPENER.open(urllib.request.Request(url, headers=headers), timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (urllib.error.URLError, OSError):
        return None


# ---------------------------------------------------------------- Health


@dataclass(frozen=True)
class Health:
    """The current state of the local cloud. `api_status` is the status of GET /openapi.json, or None."""

    running: bool
    stack: Stack | None
    api_status: int | None
    readers: list[dict[str, Any]]
    dead_letters: int | None

    @property
    def is_healthy(self) -> bool:
        """Whether the local cloud runs and its API answers."""
        return self.running and self.api_status == 200


def health(state_dir: StateDir) -> Health:
    """Return the current state of the local cloud.

    Raises:
        LocalError: The stack file is invalid.
    """
    running = state_dir.supervisor.alive and state_dir.emulator.alive
    stack = Stack.read(state_dir.stack_file)
    if not running or stack is None:
        return Health(running=running, stack=stack, api_status=None, readers=[], dead_letters=None)
    return Health(
        running=True,
        stack=stack,
        api_status=http_status(f"{stack.api_url}/openapi.json"),
        readers=(read_json(state_dir.streams_file) or {}).get("readers", []),
        dead_letters=_dead_letters(stack),
    )


def _dead_letters(stack: Stack) -> int | None:
    """Count the dead letters in the bucket and in the queues. Return None if the emulator does not answer."""
    from botocore.exceptions import BotoCoreError, ClientError

    aws = session()
    buckets = aws.client("s3", endpoint_url=stack.endpoint_url, config=client_config())
    queues = aws.client("sqs", endpoint_url=stack.endpoint_url, config=client_config())
    with contextlib.suppress(BotoCoreError, ClientError):
        pages = buckets.get_paginator("list_objects_v2").paginate(Bucket=stack.dead_letter_bucket)
        count = sum(page.get("KeyCount", 0) for page in pages)
        for url in (stack.fan_out_queue_url, stack.sweeper_queue_url):
            attributes = queues.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])["Attributes"]
            arn = json.loads(attributes["RedrivePolicy"])["deadLetterTargetArn"]
            queue_url = queues.get_queue_url(QueueName=arn.split(":")[-1])["QueueUrl"]
            attributes_of_queue = queues.get_queue_attributes(
                QueueUrl=queue_url, AttributeNames=["ApproximateNumberOfMessages"]
            )
            count += int(attributes_of_queue["Attributes"]["ApproximateNumberOfMessages"])
        return count
    return None
