"""The functions' logs from the emulator's CloudWatch, as readable lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vigil.local.errors import LocalError
from vigil.local.stack import Stack, client_config, session

if TYPE_CHECKING:
    from mypy_boto3_logs.client import CloudWatchLogsClient

_PREFIX = "/aws/lambda/"
POLL_INTERVAL_S = 0.5
# How many milliseconds a line may appear after a later line of another function.
MAX_LATENESS_MS = 5_000
# The lines that Lambda writes around each invocation are not shown.
_LIFECYCLE_PREFIXES = ("START RequestId", "END RequestId", "REPORT RequestId", "INIT_START")
# Members of a structured line that are shown elsewhere or not at all.
_HIDDEN_FIELDS = frozenset(
    {
        *("level", "message", "timestamp", "service", "location", "cold_start", "function_arn", "function_memory_size"),
        *("function_name", "function_request_id", "xray_trace_id", "exception", "exception_name", "stack_trace"),
    }
)


@dataclass(frozen=True, order=True)
class Line:
    """One log line. `at` is in milliseconds since the epoch. `level` is empty for an unstructured line."""

    at: int
    function: str
    level: str
    text: str


def lines(stack: Stack, function: str | None, *, since_ms: int = 0, is_following: Callable[[], bool]) -> Iterator[Line]:
    """Yield the log lines of one function or of all.

    Args:
        function: The function's full name, or its name without the stack's, or None for all.
        since_ms: The time of the first line, in milliseconds since the epoch.
        is_following: Whether to wait for further lines.

    Raises:
        LocalError: The function has no logs.
    """
    logs = session().client("logs", endpoint_url=stack.endpoint_url, config=client_config())
    seen: set[Line] = set()
    while True:
        groups = _groups(logs, stack, function)
        new_lines = sorted(line for group in groups for line in _events(logs, group, since_ms))
        yield from (line for line in new_lines if line not in seen)
        seen = set(new_lines)
        if new_lines:
            since_ms = max(since_ms, new_lines[-1].at - MAX_LATENESS_MS)
        if not is_following():
            return
        time.sleep(POLL_INTERVAL_S)


def _groups(logs: CloudWatchLogsClient, stack: Stack, function: str | None) -> list[str]:
    pages = logs.get_paginator("describe_log_groups").paginate(logGroupNamePrefix=_PREFIX)
    names = [group["logGroupName"] for page in pages for group in page["logGroups"]]
    if function is None:
        return names
    candidates = {f"{_PREFIX}{function}", f"{_PREFIX}{stack.stack_name}-{function}"}
    chosen = [name for name in names if name in candidates]
    if not chosen:
        known_names = ", ".join(sorted(name.removeprefix(_PREFIX) for name in names)) or "none yet"
        raise LocalError(f"There are no logs of {function}. Functions with logs: {known_names}.")
    return chosen


def _events(logs: CloudWatchLogsClient, group: str, since_ms: int) -> Iterator[Line]:
    pages = logs.get_paginator("filter_log_events").paginate(logGroupName=group, startTime=since_ms)
    for event in (entry for page in pages for entry in page["events"]):
        message = event["message"].rstrip()
        if message and not message.startswith(_LIFECYCLE_PREFIXES):
            yield parse(group.removeprefix(_PREFIX), event["timestamp"], message)


def parse(function: str, at: int, message: str) -> Line:
    """Parse a log event. A structured one becomes its message and its members; any other text stays unchanged."""
    try:
        record = json.loads(message)
    except ValueError:
        return Line(at, function, "", message)
    if not isinstance(record, dict) or "message" not in record:
        return Line(at, function, "", message)
    fields = "".join(f" {name}={_as_text(value)}" for name, value in record.items() if name not in _HIDDEN_FIELDS)
    trace = f"\n{record['exception']}" if record.get("exception") else ""
    return Line(at, function, str(record.get("level", "")), f"{_as_text(record['message'])}{fields}{trace}")


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def clock_time(at: int) -> str:
    """Format a time as local time of day with milliseconds."""
    return f"{datetime.fromtimestamp(at / 1000, UTC).astimezone():%H:%M:%S.%f}"[:-3]
