"""Trace ids for the log and for X-Ray: both can be searched by the same ids.

Lambda creates a segment for each invocation that X-Ray samples. This module adds a subsegment for each piece of work,
with the ids as annotations, in the format of the X-Ray daemon:
https://docs.aws.amazon.com/xray/latest/devguide/xray-api-sendingdata.html#xray-api-daemon
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from vigil_core.domain.exact_json import dumps
from vigil_core.domain.jobs.job import Job
from vigil_core.domain.workflows.run import WorkflowRun

IDS = ("namespace", "workflow_id", "job_id", "wait_id", "trace_id", "correlation_id")
"""`trace_id` and `correlation_id` are ids of the user; a trace of X-Ray also has its own id."""
DAEMON_HEADER = b'{"format": "json", "version": 1}\n'
MAX_VALUE_CHARS = 1_000
"""The limit of an annotation: https://docs.aws.amazon.com/xray/latest/devguide/xray-sdk-python-segment.html"""
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and lone surrogates, which UTF-8 cannot encode."""


def ids_in(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Select the ids from log fields."""
    return {name: fields[name] for name in IDS if fields.get(name) is not None}


def ids_of(entity: Job | WorkflowRun) -> dict[str, str]:
    """Select the ids of a job or run."""
    workflow_id = entity.workflow.workflow_id if isinstance(entity, Job) else entity.workflow_id
    return ids_in(vars(entity) | {"workflow_id": workflow_id})


@contextmanager
def traced(fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Trace a piece of work as a subsegment.

    Tracing never raises and never blocks. It does nothing if X-Ray does not sample the invocation.

    Args:
        fields: The log fields, with the `action`; they must be complete when the work ends.
    """
    started_at = time.time()
    try:
        yield fields
    finally:
        with suppress(Exception):
            _send_subsegment(fields, started_at)


def _send_subsegment(fields: Mapping[str, Any], started_at: float) -> None:
    trace = dict(pair.partition("=")[::2] for pair in os.environ.get("_X_AMZN_TRACE_ID", "").split(";"))
    host, _, port = os.environ.get("AWS_XRAY_DAEMON_ADDRESS", "").rpartition(":")
    if trace.get("Sampled") != "1" or not host:
        return
    subsegment = {
        "type": "subsegment",
        "name": fields["action"],
        "id": os.urandom(8).hex(),
        "trace_id": trace["Root"],
        "parent_id": trace["Parent"],
        "start_time": started_at,
        "end_time": time.time(),
        "annotations": {
            name: _UNPRINTABLE.sub("?", str(value))[:MAX_VALUE_CHARS] for name, value in ids_in(fields).items()
        },
    }
    socket.inet_aton(host)  # Reject a host name, whose resolution would block.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)  # A full buffer drops the subsegment.
        sender.sendto(DAEMON_HEADER + dumps(subsegment).encode(), (host, int(port)))
