"""The report of a recovery, the problems in `vigil local status`, and the two paths of the emulator."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest

from vigil.local.condition import recovery_report
from vigil.local.health import Health, problems_of
from vigil.local.origin_guard import Message
from vigil.local.state_api import serve_state
from vigil.local.state_store import StateStore

RECOVERED = {
    "is_complete": False,
    "saved_at": 1_800_000_000.0,
    "writes": 12,
    "skipped": 0,
    "until": 1_800_000_060.0,
    "is_torn": False,
}


def test_start_after_a_stop_reports_nothing() -> None:
    assert recovery_report({"recovery": {**RECOVERED, "is_complete": True}}) == []
    assert recovery_report(None) == []


def test_start_after_a_crash_reports_what_is_recovered_and_what_is_lost() -> None:
    [recovered, lost] = recovery_report({"recovery": RECOVERED})
    assert "12 later writes, the last one of 2027-01-15" in recovered
    assert "two seconds" in lost
    assert "within 2 minutes" in lost
    more = recovery_report({"recovery": {**RECOVERED, "is_torn": True, "skipped": 3, "saved_at": None, "until": None}})
    assert "no snapshot and 12 later writes." in more[0]
    assert any("incomplete" in line for line in more)
    assert any("3 writes" in line for line in more)


def test_each_queue_and_timer_with_a_problem_makes_the_stack_unhealthy() -> None:
    works = {"name": "works", "problem": None}
    condition: dict[str, Any] = {"failure": None, "failed_at": None, "queues": [works], "timers": [works]}
    assert problems_of(condition) == []
    assert Health(running=True, stack=None, api_status=200).is_healthy
    condition["queues"].append({"name": "q", "problem": "it is broken"})
    condition["timers"].append({"name": "t", "problem": "it is late"})
    condition |= {"failure": "No space left on device", "failed_at": 1_800_000_000.0}
    problems = problems_of(condition)
    assert [problem.split()[1] for problem in problems] == ["state", "queue", "timer"]
    assert "No space left on device" in problems[0]
    assert not Health(running=True, stack=None, api_status=200, problems=problems).is_healthy
    assert problems_of(None)


class FailingStore:
    """A store that cannot save."""

    refusal = "No space left on device"

    def status(self) -> dict[str, Any]:
        return {"failure": self.refusal}

    def snapshot(self) -> None:
        raise OSError(28, self.refusal)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/_vigil/state", 200),
        ("POST", "/_vigil/snapshot", 503),
        ("POST", "/_aws/execute-api/a1/v1/jobs", 503),
        ("DELETE", "/_aws/execute-api/a1/v1/jobs/1", 503),
        ("GET", "/_aws/execute-api/a1/v1/jobs", None),
        ("OPTIONS", "/_aws/execute-api/a1/v1/jobs", None),
        # The table and the buckets refuse their own writes.
        ("POST", "/", None),
    ],
)
def test_writes_get_503_while_the_state_cannot_be_saved(method: str, path: str, status: int | None) -> None:
    sent: list[Message] = []

    async def inner(_scope: Message, _receive: Any, send: Any) -> None:
        await send({"status": None})

    async def receive() -> Message:
        return {}

    async def send(message: Message) -> None:
        sent.append(message)

    app = serve_state(inner, cast("StateStore", FailingStore()), lambda: {"queues": [], "timers": []})
    asyncio.run(app({"type": "http", "method": method, "path": path}, receive, send))
    assert sent[0]["status"] == status
    if status is not None:
        assert "No space left on device" in json.dumps(json.loads(sent[1]["body"]))
