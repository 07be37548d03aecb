"""Brings the local cloud up and down: what the commands of `vigil local` and the tests call."""

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
from vigil.local.emulator import NO_PROXY_OPENER, START_TIMEOUT_S, STOP_TIMEOUT_S, is_healthy, port_in_use, stop_orphan
from vigil.local.errors import LocalError
from vigil.local.stack import REGION, STACK_NAME, Stack, client_config, endpoint, session
from vigil.local.state_dir import StateDir, read_json, tail, wait_until

DEFAULT_PORT = 4566
ARTIFACTS = "vigil-local-artifacts"
NAMESPACE = "default"
KEY_NAME = "local"
# A tag of the deployed stack: what it was made of. It is saved and lost together with what it describes.
FINGERPRINT = "vigil-local-fingerprint"

# Functions under way come first, then the saving of the state.
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
    """Have the cloud running in the background with what the checkout holds deployed. Again changes only what is
    different. `addresses` are listened on besides 127.0.0.1. Raises LocalError."""
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
    """Stop it and keep its state. Returns whether there was anything to stop. Raises LocalError."""
    supervisor, emulator = state_dir.supervisor.holder(), state_dir.emulator.holder()
    if supervisor is None and emulator is None:
        return False
    port = int((supervisor or emulator or {})["port"])
    if supervisor is not None:
        say("Stopping; the state is being saved")
        os.kill(int(supervisor["pid"]), signal.SIGTERM)
        if not wait_until(lambda: not state_dir.supervisor.alive, SUPERVISOR_STOP_TIMEOUT_S):
            raise LocalError("The local cloud does not stop.", tail(state_dir.supervisor_log))
    if state_dir.emulator.alive:
        say("Stopping the emulator that a killed supervisor left behind")
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
    """A stack of one's own, on its own port, for as long as the block runs. It starts from nothing in a directory that
    is removed afterwards, or from what is in `home`. What is built of the sources is shared with every other cloud of
    the checkout. Raises LocalError."""
    with tempfile.TemporaryDirectory(prefix="vigil-local-") as temporary:
        state_dir = StateDir.of(root, home or Path(temporary))
        try:
            yield up(state_dir, port=port, addresses=addresses, parameters=parameters)
        finally:
            down(state_dir)


# ---------------------------------------------------------------- the steps of `up`


def _ensure_supervisor(state_dir: StateDir, port: int, addresses: tuple[str, ...], say: Say) -> int:
    """Returns its process id."""
    holder = state_dir.supervisor.holder()
    if holder is not None:
        if holder["port"] != port:
            raise LocalError(f"It runs on port {holder['port']} already; stop it first with `vigil local down`.")
    else:
        say(f"Starting the emulator on port {port}")
        # A program on the port that is not the emulator left behind by a killed supervisor.
        if port_in_use(port) and not state_dir.emulator.alive:
            raise LocalError(f"Port {port} is taken by another program; choose one with --port.")
        _start_supervisor(state_dir, port, addresses)
        holder = state_dir.supervisor.holder()
    if holder is None or not wait_until(lambda: is_healthy(port), START_TIMEOUT_S):
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
    # Whoever started it may outlive it, and then reaps it.
    threading.Thread(target=process.wait, daemon=True).start()
    # First an emulator left behind has to be stopped, which may take as long as any stop.
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
    all_parameters = {"ExecuteApiBase": f"http://localhost:{port}/_aws/execute-api", **parameters}
    fingerprint = f"{sources}-{_digest(all_parameters)}"
    if _deployed_fingerprint(endpoint_url) == fingerprint and _functions_exist(endpoint_url):
        say("Nothing has changed since the last deployment")
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
    """The stack, or None when there is none."""
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
    """Until the supervisor serves every stream mapping that there is now: it looks once a second."""
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
        raise LocalError("The stack is not there after its deployment.")
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


def _ensure_key(state_dir: StateDir, outputs: Mapping[str, str], endpoint_url: str, say: Say) -> tuple[str, str]:
    """The API key of earlier starts, or a new one when there is none that is still let in."""
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
    """Have the admin function do something. Raises LocalError when it fails or refuses."""
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
    """What a GET answers; None when nobody does."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with NO_PROXY_OPENER.open(urllib.request.Request(url, headers=headers), timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (urllib.error.URLError, OSError):
        return None


# ---------------------------------------------------------------- what it is doing


@dataclass(frozen=True)
class Health:
    """The cloud as it is now. `api_status` is what GET /openapi.json answers, None when nobody does."""

    running: bool
    stack: Stack | None
    api_status: int | None
    readers: list[dict[str, Any]]
    dead_letters: int | None

    @property
    def is_healthy(self) -> bool:
        """Whether it can be worked with."""
        return self.running and self.api_status == 200


def health(state_dir: StateDir) -> Health:
    """Look at everything once. Raises LocalError for an unreadable stack file."""
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
    """Records' files in the bucket and messages in the dead-letter queues; None when the emulator does not say."""
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
