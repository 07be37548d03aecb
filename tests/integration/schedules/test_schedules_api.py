"""Schedules over HTTP."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from functions.sweeper.handler import handler as sweeper
from tests.support.api import SOME_ID, TIMER_GROUP, Client, LambdaContext, pages
from tests.support.events import sample
from tests.support.table import aws

NIGHTLY: dict[str, Any] = {"cron": "30 2 * * *", "timezone": "Europe/Berlin", "job": {"job_type": "report"}}


def put(client: Client, name: str = "nightly", status: int = 201, **changed: Any) -> Any:
    return client.call("PUT", f"/v1/schedules/{name}", {**NIGHTLY, **changed}).ok(status)


def timers() -> list[Any]:
    """Return all timers in EventBridge Scheduler."""
    scheduler = aws("scheduler")
    names = [each["Name"] for each in scheduler.list_schedules(GroupName=TIMER_GROUP)["Schedules"]]
    return [scheduler.get_schedule(Name=name, GroupName=TIMER_GROUP) for name in names]


def test_schedule_shows_its_next_five_fire_times(client: Client) -> None:
    created = put(client, job={"job_type": "report", "payload": {"n": 1.50}, "queue": None})
    assert created == client.get("/v1/schedules/nightly").ok()
    times = [datetime.fromisoformat(text) for text in created.pop("next_times")]
    assert len(times) == 5
    assert times == sorted(times)
    assert timedelta(0) < times[0] - datetime.now(UTC) < timedelta(days=1, hours=1)
    created_at = created.pop("created_at")
    assert created.pop("updated_at") == created_at
    assert str(created["job"]["payload"]["n"]) == "1.5"
    assert created == {
        "name": "nightly", "cron": "30 2 * * *", "rate": None, "timezone": "Europe/Berlin", "workflow": None,
        "job": {"job_type": "report", "payload": {"n": created["job"]["payload"]["n"]}}, "enabled": True,
        "missed": "skip", "overlap": "allow", "last_run": None,
    }  # fmt: skip


def test_schedule_creates_one_timer_in_utc(client: Client) -> None:
    next_time = put(client)["next_times"][0]
    put(client, status=200)
    (timer,) = timers()
    assert timer["ScheduleExpression"] == f"at({next_time[:19]})"
    assert (timer["ScheduleExpressionTimezone"], timer["ActionAfterCompletion"]) == ("UTC", "DELETE")
    assert timer["FlexibleTimeWindow"] == {"Mode": "OFF"}
    assert timer["Target"]["Arn"].endswith(":function:vigil-sweeper")
    event = json.loads(timer["Target"]["Input"])
    assert {**event["timer"], "generation": "…"} == {"namespace": "demo", "schedule": "nightly", "generation": "…"}
    assert sample("sweeper_timer")["timer"].keys() == event["timer"].keys()
    assert sweeper(event, LambdaContext()) == {}, "the timer is early, so nothing happens"
    assert sweeper(sample("sweeper_timer"), LambdaContext()) == {}, (
        "the timer belongs to no current schedule generation"
    )
    assert client.get("/v1/jobs").ok()["jobs"] == []


def test_schedule_is_paused_resumed_and_deleted(client: Client) -> None:
    put(client)
    for _ in range(2):
        paused = client.post("/v1/schedules/nightly/pause").ok()
        assert (paused["enabled"], paused["next_times"]) == (False, [])
        assert timers() == []
    for _ in range(2):
        resumed = client.post("/v1/schedules/nightly/resume").ok()
        assert (resumed["enabled"], len(resumed["next_times"])) == (True, 5)
        assert len(timers()) == 1
    client.delete("/v1/schedules/nightly").ok(204)
    assert timers() == []
    for reply in (
        client.get("/v1/schedules/nightly"),
        client.delete("/v1/schedules/nightly"),
        client.post("/v1/schedules/nightly/pause"),
        client.post("/v1/schedules/nightly/resume"),
        client.get("/v1/schedules/%00"),
    ):
        reply.problem(404, "SCHEDULE_NOT_FOUND")


def test_schedule_created_as_disabled_has_no_timer(client: Client) -> None:
    assert put(client, enabled=False)["next_times"] == []
    assert timers() == []


def test_schedules_are_listed_by_name(client: Client) -> None:
    for name in ("b", "a", "c"):
        put(client, name)
    schedule_pages = pages(client, "/v1/schedules", page_size=2)
    assert [[each["name"] for each in page["schedules"]] for page in schedule_pages] == [["a", "b"], ["c"]]


@pytest.mark.parametrize("name", ["every night", "größe", "100%", "a#b", "a/b"])
def test_schedule_with_special_characters_in_its_name_is_found(client: Client, name: str) -> None:
    put(client, quote(name, safe=""))
    assert client.get(f"/v1/schedules/{quote(name, safe='')}").ok()["name"] == name


WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({}, [""]),
    ({"cron": "* * * * *", "rate": "1 day"}, [""]),
    ({"cron": "* * * *"}, ["/cron"]),
    ({"cron": "0 0 30 2 *"}, ["/cron"]),
    ({"cron": "* " * 200}, ["/cron"]),
    ({"cron": 5}, ["/cron"]),
    ({"rate": "5 seconds"}, ["/rate"]),
    ({"rate": "1 day", "timezone": "Mars/Olympus"}, ["/timezone"]),
    ({"rate": "1 day", "timezone": "\x00"}, ["/timezone"]),
    ({"rate": "1 day", "missed": "twice"}, ["/missed"]),
    ({"rate": "1 day", "overlap": "cancel"}, ["/overlap"]),
    ({"rate": "1 day", "enabled": "yes"}, ["/enabled"]),
    ({"rate": "1 day", "job": None}, [""]),
    ({"rate": "1 day", "job": []}, ["/job"]),
    ({"rate": "1 day", "job": {}}, ["/job/job_type"]),
    ({"rate": "1 day", "job": {"job_type": "t", "job_id": "01980c4e-5a00-7c3b-9e21-3f6b0a1d2c4e"}}, ["/job/job_id"]),
    ({"rate": "1 day", "job": {"job_type": "t", "scheduled_at": "2030-01-01T00:00:00Z"}}, ["/job/scheduled_at"]),
    ({"rate": "1 day", "job": {"job_type": "t", "priority": "urgent"}}, ["/job/priority"]),
    ({"rate": "1 day", "job": {"job_type": "t", "payload": "x" * 70_000}}, ["/job"]),
    ({"rate": "1 day", "unknown": 1}, ["/unknown"]),
]


@pytest.mark.parametrize(("body", "pointers"), WRONG)
def test_invalid_schedule_members_are_named(client: Client, body: dict[str, Any], pointers: list[str]) -> None:
    reply = client.call("PUT", "/v1/schedules/s", {"job": {"job_type": "t"}, **body})
    assert reply.pointers() == pointers
    assert client.get("/v1/schedules").ok()["schedules"] == []
    assert timers() == []


def test_schedule_may_contain_a_workflow(client: Client) -> None:
    workflow = {"name": "w", "jobs": [{"name": "a"}, {"name": "b", "depends_on": ["a"], "start_delay": 60}]}
    assert client.call("PUT", "/v1/schedules/s", {**NIGHTLY, "workflow": workflow}).pointers() == [""]
    timing = {name: NIGHTLY[name] for name in ("cron", "timezone")}
    created = client.call("PUT", "/v1/schedules/s", {**timing, "workflow": workflow}).ok(201)
    assert (created["job"], created["workflow"]) == (None, workflow)
    broken = {"name": "w", "jobs": [{"name": "a", "depends_on": ["b"]}]}
    reply = client.call("PUT", "/v1/schedules/s", {**timing, "workflow": broken})
    assert [error["pointer"] for error in reply.problem(422, "MISSING_DEPENDENCY")["errors"]] == [
        "/workflow/jobs/0/depends_on/0"
    ]


def test_job_of_a_schedule_is_validated_by_its_type(client: Client) -> None:
    client.call("PUT", "/v1/job-types/report", {"payload_schema": {"required": ["n"]}}).ok(201)
    reply = client.call("PUT", "/v1/schedules/nightly", {**NIGHTLY, "job": {"job_type": "report", "payload": {}}})
    assert reply.pointers() == ["/job/payload"]


def test_job_of_a_schedule_must_refer_to_what_exists(client: Client) -> None:
    refers = {"job_type": "report", "depends_on": ["pair"]}
    reply = client.call("PUT", "/v1/schedules/bad", {"cron": "* * * * *", "job": refers})
    assert [error["pointer"] for error in reply.problem(422, "MISSING_DEPENDENCY")["errors"]] == ["/job/depends_on/0"]
    upload = {"job_type": "report", "payload_ref": SOME_ID}
    assert client.call("PUT", "/v1/schedules/bad", {"rate": "1 day", "job": upload}).pointers() == ["/job/payload_ref"]
    assert client.get("/v1/schedules").ok()["schedules"] == []
    existing = {"job_type": "report", "depends_on": [client.create()["job_id"]]}
    client.call("PUT", "/v1/schedules/good", {"rate": "1 day", "job": existing}).ok(201)


def test_schedule_name_with_control_character_is_refused(client: Client) -> None:
    assert client.call("PUT", "/v1/schedules/a%0Ab", NIGHTLY).pointers() == ["{schedule}"]
