"""Patches of the emulator where it differs from AWS and its public APIs do not help: one function each.

`vigil.local.emulator_server` applies them in ministack's process before it serves. They rely on internals of ministack,
so they refuse every version but the pinned one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Any

REQUIRED_VERSION = "1.5.33"


def check_version() -> None:
    """Check that the installed ministack has the version that the patches need.

    Raises:
        RuntimeError: It has another version.
    """
    installed = importlib.metadata.version("ministack")
    if installed != REQUIRED_VERSION:
        raise RuntimeError(f"The local cloud needs ministack {REQUIRED_VERSION}, but {installed} is installed.")


def disable_stream_poller() -> None:
    """Disable the emulator's poller of DynamoDB streams. Vigil's stream poller serves the mappings instead.

    The emulator's poller supports no partial batch responses, bisection, retry limits, batching windows,
    parallelisation or S3 destinations, and a failing batch blocks its stream forever. Disabling each mapping through
    the API would leave a window at every deployment in which both pollers serve it.
    """
    from ministack.services import lambda_svc

    assert callable(lambda_svc._poll_dynamodb_streams)
    lambda_svc._poll_dynamodb_streams = lambda: False


def deliver_groups_in_parallel() -> None:
    """Deliver the groups of a FIFO queue in parallel if a batch has one message, up to the mapping's concurrency.

    The emulator processes one batch of a FIFO queue at a time, because a batch of several messages may span groups. A
    batch of one message cannot, and the emulator's queue delivers no message of a group in flight.
    """
    from ministack.services import lambda_svc

    limit_of = lambda_svc._sqs_esm_concurrency

    @functools.wraps(limit_of)
    def limit_of_groups(esm: dict[str, Any], func_rec: Any, config: Any, queue: dict[str, Any] | None = None) -> int:
        is_fifo = bool((queue or {}).get("is_fifo"))
        standard_queue = None if is_fifo and esm.get("BatchSize") == 1 else queue
        limit: int = limit_of(esm, func_rec, config, standard_queue)
        return limit

    lambda_svc._sqs_esm_concurrency = limit_of_groups


def signal_stream_records(wakeup_fd: int) -> None:
    """Write a byte to a pipe for each new stream record, so that the stream poller does not poll.

    A `GetRecords` request costs both sides several milliseconds. A request every 10 ms would use half a core while
    idle.
    """
    from ministack.services import dynamodb

    emit = dynamodb._emit_stream_event
    os.set_blocking(wakeup_fd, False)

    @functools.wraps(emit)
    def emit_and_signal(*arguments: Any, **options: Any) -> None:
        emit(*arguments, **options)
        # A full pipe already wakes the poller, and a broken pipe has no reader.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(wakeup_fd, b".")

    dynamodb._emit_stream_event = emit_and_signal


def share_layers() -> None:
    """Unpack each layer once, as Lambda does, instead of once per process.

    Unpacking and compiling takes three quarters of a cold start's second of CPU. A machine with two cores may have a
    hundred cold starts at once, because each open long poll occupies a process.
    """
    from ministack.core import lambda_runtime
    from ministack.services import lambda_svc

    spawn = lambda_runtime.Worker._spawn
    unpack_lock = threading.Lock()

    def unpack(layer: Any) -> str:
        content: bytes = lambda_svc._resolve_layer_zip(layer)
        directory = Path(tempfile.gettempdir()) / "layers" / hashlib.sha256(content).hexdigest()
        with unpack_lock:
            if not directory.exists():
                directory.parent.mkdir(exist_ok=True)
                unfinished = tempfile.mkdtemp(dir=directory.parent)
                with zipfile.ZipFile(io.BytesIO(content)) as archive:
                    archive.extractall(unfinished)
                Path(unfinished).rename(directory)
        return str(directory)

    @functools.wraps(spawn)
    def spawn_with_shared_layers(worker: Any) -> None:
        config = worker.config
        directories = os.pathsep.join(unpack(layer) for layer in config.get("Layers") or [])
        variables = {**(config.get("Environment") or {}).get("Variables", {}), "_LAMBDA_LAYERS_DIRS": directories}
        worker.config = {**config, "Layers": [], "Environment": {"Variables": variables}}
        try:
            spawn(worker)
        finally:
            worker.config = config

    lambda_runtime.Worker._spawn = spawn_with_shared_layers


def authorize_batches_as_messages() -> None:
    """Authorize a batch of messages as the action on a single message, as AWS does.

    This matters if roles are enforced.

    https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonsqs.html
    https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonsns.html
    """
    from ministack.core import iam_actions

    extract = iam_actions.extract_iam_action

    @functools.wraps(extract)
    def extract_for_one(*arguments: Any, **options: Any) -> str | None:
        action: str | None = extract(*arguments, **options)
        return action.removesuffix("Batch") if action and action.startswith(("sqs:", "sns:")) else action

    iam_actions.extract_iam_action = extract_for_one


def authorize_schedules_by_group() -> None:
    """Authorize requests on schedules by their schedule group. This matters if roles are enforced.

    The emulator treats every schedule as one of the default group.

    https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazoneventbridgescheduler.html
    """
    from ministack.core import iam_actions

    extract = iam_actions.extract_resource_arn

    @functools.wraps(extract)
    def extract_with_group(
        service: str, method: str, path: str, headers: Any, body: bytes, query: Any, *rest: str
    ) -> str:
        arn: str = extract(service, method, path, headers, body, query, *rest)
        if service != "scheduler" or ":schedule/default/" not in arn:
            return arn
        values = json.loads(body).get("GroupName") if body else query.get("groupName")
        group = values[0] if isinstance(values, list) else values
        return arn.replace(":schedule/default/", f":schedule/{group or 'default'}/")

    iam_actions.extract_resource_arn = extract_with_group
