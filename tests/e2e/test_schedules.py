"""Schedules on EventBridge Scheduler, which fires within seconds here, and within a minute on AWS."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.e2e.harness import Aws, Client, Key, body_of, eventually, problem

pytestmark = pytest.mark.timeout(240)

EVERY_MINUTE: dict[str, Any] = {"cron": "* * * * *", "timezone": "Asia/Kathmandu"}


def put(client: Client, name: str, status: int = 201, **body: Any) -> Any:
    return body_of(client.call("PUT", f"/v1/schedules/{name}", body), status)


def fired_timers(aws: Aws, key: Key) -> set[str]:
    """Return the schedules of a namespace whose timer fired, from the sweeper's log."""
    pages = aws.logs.get_paginator("filter_log_events").paginate(
        logGroupName=f"/aws/lambda/{aws.stack.stack_name}-sweeper"
    )
    lines = [event["message"] for page in pages for event in page["events"] if '"fire_schedule"' in event["message"]]
    told = [json.loads(line) for line in lines]
    return {line["schedule"] for line in told if line["namespace"] == key.namespace}


def test_schedule_fires_by_timer_and_the_sweep_fires_after_a_lost_timer(aws: Aws, client: Client, key: Key) -> None:
    """Create two schedules, both every minute.

    The timer of one fires; the timer of the other is lost, and the sweep fires the schedule.
    """
    put(client, "rings", **EVERY_MINUTE, job={"job_type": "rung", "payload": {"n": 1}})
    put(client, "silent", **EVERY_MINUTE, job={"job_type": "swept"})
    put(client, "paused", **EVERY_MINUTE, job={"job_type": "never"}, enabled=False)
    (row,) = [row for row in aws.rows(f"{key.namespace}#schedules") if row["sk"]["S"] == "silent"]
    next_at = datetime.fromisoformat(row["next_fire_at"]["S"])
    aws.scheduler.delete_schedule(Name=f"{row['generation']['S']}-{next_at:%Y%m%dT%H%M%SZ}", GroupName=aws.timer_group)

    def run_of(name: str) -> Any:
        return client.get(f"/v1/schedules/{name}")["last_run"]

    rung = eventually(lambda: run_of("rings"), within_s=100, every_s=1, what="rung")
    assert rung["outcome"] == "created"
    late = datetime.fromisoformat(rung["at"]) - datetime.fromisoformat(rung["planned_at"])
    assert timedelta(0) <= late < timedelta(seconds=60)
    eventually(lambda: "rings" in fired_timers(aws, key), within_s=30, every_s=1, what="an alarm in the sweeper's log")
    job = client.get(f"/v1/jobs/{rung['job_id']}")
    assert (job["job_type"], job["status"], job["payload"]) == ("rung", "pending", {"n": 1})
    assert client.get(f"/v1/jobs/{rung['job_id']}/events")["events"][0]["by"] == "schedule"

    swept = eventually(lambda: client.get("/v1/jobs?job_type=swept")["jobs"], within_s=150, every_s=1, what="swept")
    late = datetime.fromisoformat(swept[-1]["created_at"]) - next_at
    assert timedelta(seconds=20) <= late < timedelta(seconds=100), "by the sweep; its next run has an alarm again"
    eventually(lambda: run_of("silent"), what="told of")
    assert run_of("silent")["outcome"] == "created"
    assert client.get("/v1/jobs?job_type=never")["jobs"] == []
    for name in ("rings", "silent"):
        assert client.call("DELETE", f"/v1/schedules/{name}").status_code == 204
    problem(client.call("GET", "/v1/schedules/rings"), 404, "SCHEDULE_NOT_FOUND")


@pytest.mark.smoke
def test_schedule_has_a_timer_unless_paused_or_deleted(aws: Aws, client: Client, key: Key) -> None:
    def armed() -> list[str]:
        listed = aws.scheduler.list_schedules(GroupName=aws.timer_group, MaxResults=100)["Schedules"]
        inputs = [aws.scheduler.get_schedule(Name=each["Name"], GroupName=aws.timer_group) for each in listed]
        return [each["ScheduleExpression"] for each in inputs if key.namespace in each["Target"].get("Input", "")]

    made = put(client, "monthly", rate="30 days", job={"job_type": "t"})
    assert armed() == [f"at({made['next_times'][0][:19]})"]
    client.post("/v1/schedules/monthly/pause")
    assert armed() == []
    client.post("/v1/schedules/monthly/resume")
    assert len(armed()) == 1
    assert client.call("DELETE", "/v1/schedules/monthly").status_code == 204
    assert armed() == []
