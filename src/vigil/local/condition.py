"""The condition of the emulator's state, as `vigil local` asks for it and reports it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import Any

from vigil.local.emulator import NO_PROXY_OPENER
from vigil.local.errors import LocalError

STATE_PATH = "/_vigil/state"
SNAPSHOT_PATH = "/_vigil/snapshot"
# Saving a state of some hundred megabytes takes tens of seconds.
SNAPSHOT_TIMEOUT_S = 60


def _request(method: str, url: str, timeout_s: float) -> Any:
    request = urllib.request.Request(url, method=method)
    with NO_PROXY_OPENER.open(request, timeout=timeout_s) as response:
        return json.loads(response.read())


def state_condition(endpoint_url: str) -> dict[str, Any] | None:
    """Return the condition of the state, or None if the emulator does not answer."""
    try:
        condition: dict[str, Any] = _request("GET", endpoint_url + STATE_PATH, 10)
    except (OSError, ValueError):
        return None
    return condition


def take_snapshot(endpoint_url: str) -> None:
    """Let the emulator take a snapshot.

    Raises:
        LocalError: It cannot be saved.
    """
    try:
        _request("POST", endpoint_url + SNAPSHOT_PATH, SNAPSHOT_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        reason = json.loads(error.read()).get("failure")
        raise LocalError(f"The state cannot be saved: {reason}. The last good files remain.") from error
    except OSError as error:
        raise LocalError(f"The emulator does not save its state: {error}") from error


def clock_time(at: float) -> str:
    """Return a time in seconds since the epoch as local date and time."""
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def recovery_report(condition: dict[str, Any] | None) -> list[str]:
    """Return what a start recovered after an end without a stop, as lines of text."""
    recovery = (condition or {}).get("recovery")
    if recovery is None or recovery["is_complete"]:
        return []
    snapshot = f"the snapshot of {clock_time(recovery['saved_at'])}" if recovery["saved_at"] else "no snapshot"
    until = f", the last one of {clock_time(recovery['until'])}" if recovery["until"] else ""
    lines = [
        "The local cloud ended without a stop. The table and the buckets are recovered: "
        f"{snapshot} and {recovery['writes']} later writes{until}.",
        "Writes of the last two seconds are missing if the machine crashed, and invocations in flight are lost. "
        "The sweep repairs open work within 2 minutes.",
    ]
    if recovery["is_torn"]:
        lines.append("The last write was incomplete and is left out.")
    if recovery["skipped"]:
        lines.append(f"{recovery['skipped']} writes to resources of an unfinished deployment are left out.")
    return lines
