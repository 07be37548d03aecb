"""What a piece of work is about, for the log and for X-Ray: the ids by which both are searched.

Lambda makes a segment of each invocation that X-Ray samples. Here each piece of work adds a subsegment to it, with the
ids as annotations, written as the daemon takes it:
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
"""`trace_id` and `correlation_id` are the user's own; X-Ray's trace has an id besides."""
DAEMON_HEADER = b'{"format": "json", "version": 1}\n'
MAX_VALUE_CHARS = 1_000
"""Of an annotation: https://docs.aws.amazon.com/xray/latest/devguide/xray-sdk-python-segment.html"""
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and halves of surrogate pairs, which no UTF-8 has."""


def ids_in(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The ids that something names."""
    return {name: fields[name] for name in IDS if fields.get(name) is not None}


def ids_of(entity: Job | WorkflowRun) -> dict[str, str]:
    """The ids of a job or a run."""
    return ids_in(vars(entity))


@contextmanager
def traced(fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A piece of work: `said` is its `action` and what it is about, as the log has it, complete when it is over.

    Fails nothing and waits for nothing; does nothing where Lambda has no trace of this invocation.
    """
    started_at = time.time()
    try:
        yield fields
    finally:
        with suppress(Exception):
            _send_subsegment(fields, started_at)


def _send_subsegment(fields: Mapping[str, Any], started_at: float) -> None:
    trace = dict(part.partition("=")[::2] for part in os.environ.get("_X_AMZN_TRACE_ID", "").split(";"))
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
    socket.inet_aton(host)  # Of a name somebody would have to be asked, and waited for.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)  # What there is no room for is lost.
        sender.sendto(DAEMON_HEADER + dumps(subsegment).encode(), (host, int(port)))
