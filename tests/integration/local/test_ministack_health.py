"""Every queue and every timer of the emulator is examined: each fault has its own problem."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ministack.core.responses import AccountRegionScopedDict
from ministack.services import eventbridge, lambda_svc, scheduler, sqs

from vigil.local.ministack_health import MAX_DELAY_S, examine

ACCOUNT, REGION = "000000000000", "us-east-1"


@pytest.fixture(autouse=True)
def _resources(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start with one queue that a function receives, one rule, and one schedule, all of which work."""
    sqs.reset()
    for module, name in [(lambda_svc, "_esms"), (lambda_svc, "_functions"), (eventbridge, "_rules")]:
        monkeypatch.setattr(module, name, AccountRegionScopedDict())
    for module, name in [(eventbridge, "_targets"), (scheduler, "_schedules")]:
        monkeypatch.setattr(module, name, AccountRegionScopedDict())
    monkeypatch.setattr(eventbridge, "_rule_last_fired", {})
    monkeypatch.setattr(scheduler, "_schedule_last_fired", {})
    sqs._act_create_queue({"QueueName": "work"}, "")
    variables = {"WORK_QUEUE_URL": sqs._queue_url("work"), "OTHER": "x"}
    put(lambda_svc._functions, "worker", {"config": {"Environment": {"Variables": variables}}})
    put(lambda_svc._esms, "m", {"EventSourceArn": arn("work"), "FunctionName": "worker", "State": "Enabled"})
    put(eventbridge._rules, "tick", {"Name": "tick", "State": "ENABLED", "ScheduleExpression": "rate(1 minute)"})
    put(eventbridge._rules, "event", {"Name": "event", "State": "DISABLED", "EventPattern": "{}"})
    put(eventbridge._targets, "tick", [{"Arn": "x"}])
    eventbridge._rule_last_fired[ACCOUNT, REGION, "tick"] = time.time()
    put(scheduler._schedules, "g/once", {"State": "ENABLED", "ScheduleExpression": at(60)})
    yield
    sqs.reset()


def put(store: Any, name: str, value: Any) -> None:
    store.set_scoped(ACCOUNT, REGION, name, value)


def arn(queue: str) -> str:
    return f"arn:aws:sqs:{REGION}:{ACCOUNT}:{queue}"


def at(seconds: float) -> str:
    return time.strftime("at(%Y-%m-%dT%H:%M:%S)", time.gmtime(time.time() + seconds))


def problems(started_s_ago: float = 10_000) -> dict[str, str]:
    condition = examine(time.time() - started_s_ago)
    entries = [*condition["queues"], *condition["timers"]]
    assert json.dumps(entries)
    return {entry["name"]: entry["problem"] for entry in entries if entry["problem"]}


def test_working_queues_and_timers_have_no_problem() -> None:
    assert problems() == {}
    names = {entry["name"] for entries in examine(0).values() for entry in entries}
    assert names == {"work", "tick", "g/once"}


def test_message_that_no_function_receives_is_a_problem_after_a_while() -> None:
    sqs._act_send_message({"QueueUrl": sqs._queue_url("work"), "MessageBody": "x"}, "")
    assert problems() == {}
    [(_, queue)] = sqs._queues.all_items()
    queue["messages"][0]["visible_at"] -= MAX_DELAY_S + 10
    assert "waits for" in problems()["work"]
    # A message from before the start still has some time.
    assert problems(started_s_ago=5) == {}


def test_queue_of_another_port_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqs, "DEFAULT_PORT", "4777")
    assert "not of this port" in problems()["work"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda: put(lambda_svc._esms, "m", {**mapping(), "State": "Disabled"}), "do not reach worker"),
        (lambda: lambda_svc._functions._data.clear(), "the function does not exist"),
        (lambda: sqs.reset(), "does not exist"),
        (lambda: sqs._queues._data.clear() or lambda_svc._esms._data.clear(), "sends to it"),
    ],
)
def test_queue_that_is_not_served_is_a_problem(change: Any, problem: str) -> None:
    change()
    assert problem in problems()["work"]


def mapping() -> dict[str, Any]:
    return dict(lambda_svc._esms._data[ACCOUNT, REGION, "m"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda: eventbridge._rule_last_fired.clear(), "has not fired"),
        (lambda: eventbridge._targets._data.clear(), "no target"),
        (lambda: eventbridge._rules._data[ACCOUNT, REGION, "tick"].update(State="DISABLED"), "disabled"),
    ],
)
def test_rule_that_does_not_fire_is_a_problem(change: Any, problem: str) -> None:
    change()
    assert problem in problems()["tick"]


def test_late_schedule_is_a_problem_until_it_has_fired() -> None:
    put(scheduler._schedules, "g/once", {"State": "ENABLED", "ScheduleExpression": at(-MAX_DELAY_S - 30)})
    assert "late" in problems()["g/once"]
    assert problems(started_s_ago=5) == {}
    scheduler._schedule_last_fired[ACCOUNT, REGION, "g/once"] = time.time()
    assert problems() == {}
