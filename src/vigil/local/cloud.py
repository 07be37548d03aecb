"""Start and stop the local cloud, for the commands of `vigil local` and the tests."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
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
from pathlib import Path
from typing import Any

from vigil.local import api_gateway as http_api
from vigil.local import sam
from vigil.local.condition import clock_time, recovery_report, state_condition, take_snapshot
from vigil.local.emulator import (
    NO_PROXY_OPENER,
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
    concurrency,
    is_healthy,
    port_in_use,
    port_taken,
    require_saved,
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

EMULATOR_PACKAGES = ("ministack", "uvicorn", "httptools", "uvloop", "samtranslator")

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
    _require_emulator()
    sources = sam.source_fingerprint(state_dir.root)
    state_dir.directory.mkdir(parents=True, exist_ok=True)
    with (state_dir.directory / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        supervisor, has_started = _ensure_supervisor(state_dir, port, addresses, say)
        if has_started:
            for line in recovery_report(state_condition(endpoint(port))):
                say(line)
        is_deployed = _ensure_deployed(state_dir, port, sources, parameters or {}, say)
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
        if is_deployed:
            say("Saving the state")
            take_snapshot(endpoint_url)
        return stack


def down(state_dir: StateDir, say: Say = _silent) -> bool:
    """Stop the local cloud and keep its state. Return whether it was running.

    Raises:
        LocalError: A process does not stop, or the state could not be saved.
    """
    supervisor, emulator = state_dir.supervisor.holder(), state_dir.emulator.holder()
    if supervisor is None and emulator is None:
        return False
    port = int((supervisor or emulator or {})["port"])
    condition = state_condition(endpoint(port)) or {}
    if supervisor is not None:
        say("Stopping and saving the state")
        os.kill(int(supervisor["pid"]), signal.SIGTERM)
        if not wait_until(lambda: not state_dir.supervisor.alive, SUPERVISOR_STOP_TIMEOUT_S):
            raise LocalError("The local cloud does not stop.", tail(state_dir.supervisor_log))
    if state_dir.emulator.alive:
        say("Stopping the emulator of a supervisor that was killed")
        stop_orphan(state_dir)
    if failure := condition.get("failure"):
        say(f"The state could not be saved since {clock_time(condition['failed_at'])}: {failure}")
    if not wait_until(lambda: not port_in_use(port), 10):
        raise LocalError(f"Port {port} is still taken.", tail(state_dir.supervisor_log))
    require_saved(state_dir)
    return True


@contextmanager
def running_stack(
    root: Path | str,
    port: int,
    *,
    home: Path | str | None = None,
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
        state_dir = StateDir.of(root, home or temporary)
        try:
            yield up(state_dir, port=port, addresses=addresses, parameters=parameters)
        finally:
            down(state_dir)


# ---------------------------------------------------------------- Steps of `up`


def _require_emulator() -> None:
    """Check that the emulator is installed. `pip install vigil-jobs` without the extra does not install it.

    Raises:
        LocalError: A package is missing.
    """
    missing = [name for name in EMULATOR_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise LocalError(
            f"The local cloud needs {', '.join(missing)}: run `make venv` in the checkout and use .venv/bin/vigil, "
            "or install the extra `vigil-jobs[local]`."
        )


def _ensure_supervisor(state_dir: StateDir, port: int, addresses: tuple[str, ...], say: Say) -> tuple[int, bool]:
    """Start the supervisor if none runs. Return its process id, and whether it was started."""
    orphan: dict[str, Any] | None = None

    def is_ready() -> bool:
        # Until the new supervisor has stopped it, the orphan of a killed one still answers.
        emulator = state_dir.emulator.holder()
        is_orphan = emulator is not None and orphan is not None and emulator["pid"] == orphan["pid"]
        return emulator is not None and not is_orphan and is_healthy(port)

    holder = _settled_supervisor(state_dir)
    has_started = holder is None
    if holder is not None and holder["port"] != port:
        raise LocalError(
            f"The local cloud already runs on port {holder['port']}; stop it first with `vigil local down`."
        )
    if holder is None:
        say(f"Starting the emulator on port {port}")
        # An emulator whose supervisor was killed may hold the port: the new supervisor stops it.
        if port_in_use(port) and not state_dir.emulator.alive:
            raise LocalError(port_taken(port))
        orphan = state_dir.emulator.holder()
        _start_supervisor(state_dir, port, addresses)
        holder = state_dir.supervisor.holder()
    if holder is None or not wait_until(is_ready, START_TIMEOUT_S):
        raise LocalError("The emulator does not answer.", tail(state_dir.emulator_log))
    return int(holder["pid"]), has_started


def _settled_supervisor(state_dir: StateDir) -> dict[str, Any] | None:
    """Return the supervisor whose emulator answers. If the emulator was killed, wait until its supervisor has ended."""
    holder = state_dir.supervisor.holder()
    if holder is not None:
        port = int(holder["port"])
        wait_until(lambda: is_healthy(port) or not state_dir.supervisor.alive, SUPERVISOR_STOP_TIMEOUT_S)
    return state_dir.supervisor.holder()


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
        if state_dir.start_error.exists():
            raise LocalError(state_dir.start_error.read_text(encoding="utf-8"))
        raise LocalError("The local cloud did not start.", tail(state_dir.supervisor_log))


def _ensure_deployed(state_dir: StateDir, port: int, sources: str, parameters: Mapping[str, str], say: Say) -> bool:
    """Deploy the checkout if it or its parameters changed, and return whether they did."""
    aws = session()
    endpoint_url = endpoint(port)
    all_parameters = {
        "ExecuteApiBase": f"http://localhost:{port}/_aws/execute-api",
        "Concurrency": concurrency(),
        **parameters,
    }
    fingerprint = f"{sources}-{_digest(all_parameters)}"
    is_current = _deployed_fingerprint(endpoint_url) == fingerprint and _functions_exist(endpoint_url)
    if is_current:
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
    return not is_current


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
